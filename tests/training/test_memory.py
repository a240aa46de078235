"""training/memory.py: what a run needs is printed, and too little of it refused or warned of."""
import random
import re
import shutil
from argparse import Namespace
from collections import namedtuple

import pytest

import train
from artgpt4 import STOP, ArtGPT4
from gallery.scenes import random_scenes
from tests.training.short_runs import TINY
from training import memory
from training.data import Gallery
from training.memory import check_room

ARGS = Namespace(dtype="float32", accumulate=1, stage=2, data="pictures", checkpointing=False,
                 fsdp=False, optimizer_bits=32, cache_vision=False)
RECIPE = train.RECIPES["tiny", 2]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def check(talker, tmp_path, monkeypatch, capsys):
    """check(room, where, free): check_room with so many bytes of memory and of disk -> what it
    printed, on stdout and on stderr."""
    def run(room=100e9, where="this machine", free=100e9):
        monkeypatch.setattr(memory, "room_of", lambda device: (room, where))
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(free, 0, free))
        check_room(talker, RECIPE, ARGS, "cpu", tmp_path)
        return capsys.readouterr()
    return run


def size(text):
    """The bytes of a text that ends with "1.23 GB" or "4.5 MB"."""
    number, unit = text.split()[-2:]
    return float(number) * {"GB": 1e9, "MB": 1e6}[unit]


def needed(printed):
    """The bytes of memory and of a checkpoint in the line that says them."""
    texts = re.search(r"memory: about (\S+ .B) .* each checkpoint (\S+ .B)", printed).groups()
    return [size(text) for text in texts]


def test_the_parts_of_the_estimate_add_up_and_enough_room_gives_no_warning(check):
    out, err = check()
    parts = re.search(r"\((.*)\)", out)[1].split(", ")
    assert [" ".join(part.split()[:-2]) for part in parts] == [
        "frozen weights", "trainable weights", "gradients", "AdamW's two moments", "activations"]
    assert sum(map(size, parts)) == pytest.approx(needed(out)[0], abs=0.5e6) and err == ""


def test_a_gpu_that_is_clearly_too_small_is_refused_and_a_tight_one_warned_of(check):
    memory_needed, _ = needed(check().out)
    with pytest.raises(ValueError, match=r"training needs about .* GB; this GPU has .* --int8, "):
        check(0.8 * memory_needed, "this GPU")
    assert check(memory_needed, "this GPU").err.startswith("warning: this GPU has ")
    assert check(1.3 * memory_needed, "this GPU").err == ""


def test_too_little_memory_of_the_machine_is_a_warning_alone(check):
    memory_needed, _ = needed(check().out)
    err = check(0.5 * memory_needed).err
    assert err.startswith("warning: this machine has ") and "--optimizer-bits 8" in err


def test_no_sequence_of_the_gallery_is_longer_than_the_estimate():
    tiny = ArtGPT4.from_pretrained(TINY)
    gallery = object.__new__(Gallery)                         # without its paintings
    gallery.scenes, longest = random_scenes(300, "training"), 0
    for i in range(300):
        prompt, text = gallery.words(i, 2, random.Random(i), random.Random(f"batch {i}"))
        count = len(tiny.prompt_ids(prompt)) + len(tiny.tokenizer.encode(text + STOP))
        longest = max(longest, count)
    estimate = memory.sequence_length(tiny, 2, RECIPE.max_text_tokens, gallery=True)
    assert longest <= estimate < 1.5 * longest


def test_a_disk_without_room_for_three_checkpoints_is_refused_but_for_those_it_holds(
        check, talker, tmp_path):
    trainable = sum(talker.get_parameter(name).numel() for name in talker.trainable_names())
    checkpoint = 12 * trainable                               # float32, with two moments
    assert needed(check(free=3.1 * checkpoint).out)[1] == pytest.approx(checkpoint, abs=0.1e6)
    with pytest.raises(ValueError, match=r": .* MB are free; a run needs .* MB, for two checkp"):
        check(free=2.9 * checkpoint)
    with open(tmp_path / "checkpoint-0000001-of-0000009.pt", "wb") as old:
        old.truncate(checkpoint)
    check(free=2.1 * checkpoint)
