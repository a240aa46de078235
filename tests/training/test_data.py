"""Examples, their order, and what makes them: the same for any number of workers and processes."""
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from artgpt4 import IGNORE, IMAGE_SLOT, INSTRUCTIONS, chat_prompt, example, normalise, preprocess
from tests.training.kill_and_resume import ENVIRONMENT, SAVING, flags_of, small_data
from tests.training.small_files import (examples_of, jpeg, source_of, tiny_model, write_files,
                                        write_tar)
from training import data
from training.sources import QUESTIONS


@pytest.fixture
def source(tmp_path):
    return source_of(small_data(tmp_path / "pairs"))


def listed(batches):
    """What data.batches yields, as lists."""
    return [[[[tensor.tolist() for tensor in part] for part in parts], *notes]
            for parts, *notes in batches]


@pytest.mark.parametrize("size", [(200, 150), (150, 200), (64, 64), (1000, 20), (1, 1)])
def test_crops_lie_in_the_picture_with_the_area_and_aspect_asked_for(size):
    rng = random.Random(0)
    width, height = size
    for _ in range(200):
        crop = data.random_crop(Image.new("RGB", size), rng, 0.5)
        assert 0 < crop.width <= width and 0 < crop.height <= height
        if min(size) > 50:
            assert 0.48 <= crop.width * crop.height / (width * height) <= 1
            assert 0.73 <= crop.width / crop.height <= 1.37


def test_every_epoch_is_a_new_shuffle_of_the_pairs_and_a_function_of_the_seed(source, tiny):
    def keys(first=0, numbers=range(12), **changes):
        examples = examples_of(source, tiny)
        examples.recipe = replace(examples.recipe, **({"batch_size": 5, "steps": 12} | changes))
        examples.numbers = list(numbers)
        return list(examples.keys(first))

    whole = keys()
    assert [step for batch in whole for step, _, _ in batch] == [i // 5 for i in range(60)]
    epochs = [[i for batch in whole for _, of, i in batch if of == epoch] for epoch in range(5)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs) and epochs[0] != epochs[1]
    assert whole == keys() != keys(seed=2)
    assert all(keys(first) == whole[first:] for first in range(12))   # of a resumed run
    assert keys(steps=6) == whole[:6]
    assert {i for batch in keys(numbers=(2, 5)) for _, _, i in batch} == {2, 5}


def test_batches_are_the_same_for_any_workers_processes_and_parts(source, tiny, monkeypatch):
    examples = examples_of(source, tiny)
    examples.recipe = replace(examples.recipe, accumulate=1, steps=12)
    whole = list(data.batches(examples))
    of_workers = iter(data.batches(examples, first_step=2, workers=2))
    found = [next(of_workers), next(of_workers)]              # one of each worker
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)                    # as a terminal's Ctrl-C does
    assert listed(whole[2:]) == listed([*found, *of_workers])
    examples.recipe, of_ranks = replace(examples.recipe, accumulate=2), []
    monkeypatch.setattr(data, "WORLD", 2)
    for rank in (0, 1):
        monkeypatch.setattr(data, "RANK", rank)
        of_ranks += [part for parts, _ in data.batches(examples) for part in parts]
    assert [len(ids) for _, ids, _ in of_ranks] == [1] * 4 * 12

    def known_by(parts):                                      # without the padding
        return sorted((picture.numpy().tobytes(), row[row != 0].tolist())
                      for pixels, ids, _ in parts for picture, row in zip(pixels, ids, strict=True))
    assert known_by(of_ranks) == known_by(part for parts, _ in whole for part in parts)


def test_an_example_is_what_the_model_is_given_and_its_text_is_cut_at_its_longest(tmp_path, tiny):
    source = source_of(write_files(tmp_path, {"a.jpg": jpeg(90, 60), "a.txt": b"A red house."}))
    examples = examples_of(source, tiny, seed=5)
    pixels, ids, targets, faults = examples[0, 3, 0]
    crop = data.random_crop(source.picture(0), random.Random("5 3 0"), 0.8)
    assert torch.equal(normalise(pixels)[0], preprocess(crop, 112))
    question = f"{IMAGE_SLOT} {random.Random('5 0').choice(INSTRUCTIONS + QUESTIONS)}"
    prompt = chat_prompt([question])
    assert (ids, targets) == example(tiny.tokenizer, 16, prompt, "A red house.###", 240)
    assert faults == []
    length = len(targets) - targets.count(IGNORE)
    for longest, cut in ((length, False), (length - 1, True), (2, True)):
        examples.recipe = replace(examples.recipe, max_text_tokens=longest)
        _, short_ids, short, faults = examples[0, 3, 0]
        assert len(faults) == cut and len(short) - short.count(IGNORE) == longest
        assert short == targets[:len(short)] and short_ids == ids[:len(short)]


def test_of_a_talk_all_answers_are_learned_and_no_question(source, tiny, monkeypatch):
    talk = chat_prompt([f"{IMAGE_SLOT} Is it a cat?", "No.", "Why?"])
    monkeypatch.setattr(source, "example", lambda i, *_: ([source.picture(i)], talk, "It is not."))
    _, ids, targets, _ = examples_of(source, tiny)[0, 0, 0]
    learned = tiny.tokenizer.decode([token for token in targets if token != IGNORE])
    assert learned.replace(" ", "") == "No.###Human:Itisnot.###"
    assert all(target in (IGNORE, token) for target, token in zip(targets, ids[1:], strict=False))


@pytest.mark.parametrize("stage, style, end", [
    (1, "vicuna_v0", "\n"), (2, "vicuna_v0", "###"), (2, "vicuna_v1", "</s>")])
def test_an_answer_ends_as_stage_and_conversation_format_say(tmp_path, stage, style, end):
    other = tiny_model()
    other.config.prompt = style
    examples = examples_of(source_of(small_data(tmp_path / "pairs", 1), stage, other.config), other)
    _, _, targets, _ = examples[0, 0, 0]
    learned = [token for token in targets if token != IGNORE]
    last = other.tokenizer.id_to_piece(learned[-1])           # decode() drops EOS
    assert end in (last, other.tokenizer.decode(learned)[-len(end):])


BAD = {"cut": jpeg(600, 600)[:2000], "empty": b"", "html": b"<html>404</html>"}   # pictures


def test_every_bad_sample_is_named_and_replaced_by_the_same_other_one(tmp_path, tiny):
    pictures = BAD | {f"good{i}": jpeg() for i in range(6)}
    members = {f"{key}.{suffix}": content for key, picture in pictures.items()
               for suffix, content in (("jpg", picture), ("txt", b"x" if key in BAD else b"good"))}
    examples = examples_of(source_of(write_tar(tmp_path / "0.tar", members), stage=1), tiny)
    for i, key in enumerate(BAD):
        _, ids, targets, faults = examples[0, 0, i]
        assert (ids, targets) == examples[5, 0, i][1:3] and ids == examples[0, 0, len(BAD)][1]
        name, reason = faults[0]
        assert name == f"0.tar:{key}" and reason and "\n" not in reason
    assert len([*data.held_out_batches(examples, found := [])]) == 3
    assert {f"0.tar:{key}" for key in BAD} <= {name for name, _ in found}


def test_data_with_nothing_usable_is_an_error_that_names_a_sample(source, tiny):
    for file in source.files:
        file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="(?s)nothing usable.*[0-9].jpg"):
        next(iter(data.batches(examples_of(source, tiny))))


def test_a_worker_ends_when_the_process_that_started_it_is_killed(tmp_path, pairs):
    flags = [*flags_of(pairs, tmp_path / "run", 10 ** 6), "--workers", "1"]
    run = subprocess.Popen([sys.executable, "-c", SAVING, *flags], env=ENVIRONMENT,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list(tmp_path.glob("run/checkpoint*")):
        assert run.poll() is None
        time.sleep(0.1)
    run.kill()
    run.communicate(timeout=60)                               # to the end of the pipe of both
    assert run.returncode == -9
