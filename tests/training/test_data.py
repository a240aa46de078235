"""training/data.py: crops, the order of pairs, batches, bad samples, which data a name means."""
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from artgpt4 import IMAGE_MARK, INSTRUCTIONS, SYSTEM, instruction_prompt, preprocess
from gallery import words
from gallery.scenes import UNSEEN_PAIRS
from tests.training.small_files import write_tar
from training import data, sources


@pytest.fixture
def cc_sbu_align(tmp_path):
    """A folder in the layout of cc_sbu_align, with twelve pictures whose captions grow longer."""
    (tmp_path / "image").mkdir()
    for i in range(12):
        Image.new("RGB", (60 + 10 * i, 50), (20 * i, 10, 200)).save(tmp_path / "image" / f"{i}.jpg")
    pairs = [{"image_id": str(i), "caption": f"Picture No. {i}!" + " More." * i} for i in range(12)]
    (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": pairs}))
    return tmp_path


@pytest.fixture
def source(cc_sbu_align):
    return data.open_source(cc_sbu_align)


def numbers(steps):
    """What a caption of the fixture says it is, for all pairs of each step."""
    found = []
    for step in steps:
        texts = [text for batch in step for text in batch.texts]
        found.append([int(text.split()[2].rstrip("!")) for text in texts])
    return found


def same(one, other):
    """Whether two lists of batches are equal."""
    for a, b in zip(one, other, strict=True):
        if not torch.equal(a.pixels, b.pixels) or a[1:] != b[1:]:
            return False
    return True


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


def test_every_epoch_is_a_new_shuffle_of_all_pairs_and_a_pure_function_of_the_seed(source):
    batches = list(data.global_batches(source, batch_size=5, steps=12, seed=1))
    assert all(step == at for at, batch in enumerate(batches) for step, _, _ in batch)
    pairs = [pair for batch in batches for _, *pair in batch]
    epochs = [[i for _, i in pairs[start:start + 12]] for start in range(0, 60, 12)]
    assert [epoch for epoch, _ in pairs] == [epoch for epoch in range(5) for _ in range(12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert batches == list(data.global_batches(source, 5, 12, seed=1))
    assert batches != list(data.global_batches(source, 5, 12, seed=2))


@pytest.mark.parametrize("window", [0, 4])
def test_a_resumed_run_sees_the_same_pairs_without_reading_the_earlier_ones(
        source, window, monkeypatch):
    whole = list(data.global_batches(source, 5, 11, 1, window=window))
    for first in range(11):
        assert list(data.global_batches(source, 5, 11, 1, first, window)) == whole[first:]
    shorter = list(data.global_batches(source, 5, 6, 1, window=window))
    assert shorter == whole[:6]                      # the length of the run does not matter
    read, caption = [], source.caption

    def reading(i):
        read.append(i)
        return caption(i)

    monkeypatch.setattr(source, "caption", reading)
    [last] = data.batches(source, 1, 14, 5, 11, 1, workers=0, first_step=10, window=window)
    assert read == [i for _, _, i in whole[10]] and numbers([last]) == [read]


def test_a_window_has_batches_of_like_length_in_random_order(source):
    def spread(batches):
        """How much the lengths in a batch differ, summed over the batches."""
        total = 0
        for batch in batches:
            lengths = [source.text_length(i) for _, _, i in batch]
            total += max(lengths) - min(lengths)
        return total

    def pairs_of(batches):
        return sorted(pair for batch in batches for _, *pair in batch)

    plain = list(data.global_batches(source, 3, 64, 1, window=0))
    sorted_ = list(data.global_batches(source, 3, 64, 1, window=8))
    assert spread(sorted_) < 0.4 * spread(plain)
    for first in range(0, 64, 8):
        assert pairs_of(plain[first:first + 8]) == pairs_of(sorted_[first:first + 8])
    lengths = [source.text_length(batch[0][2]) for batch in sorted_[:8]]
    assert lengths != sorted(lengths)


def test_batches_are_the_same_for_any_number_of_workers_processes_and_parts(source):
    whole = [batch for [batch] in data.batches(source, 2, 28, 4, 4, seed=3, workers=0)]
    assert whole[0].pixels.shape == (4, 3, 28, 28) and whole[0].pixels.is_contiguous()
    assert same(whole, [batch for [batch] in data.batches(source, 2, 28, 4, 4, seed=3, workers=2)])
    ranks = [list(data.batches(source, 2, 28, 4, 4, 3, workers=0, rank=rank, world=2, accumulate=2))
             for rank in (0, 1)]
    for batch, *of_ranks in zip(whole, *ranks, strict=True):
        parts = [part for of_rank in of_ranks for part in of_rank]
        assert [len(part.texts) for part in parts] == [1] * 4
        assert sorted(map(known_by, parts)) == sorted(map(known_by, data.in_parts(batch, 4)))


def known_by(batch):
    """Text, prompt and pixels of a Batch of one pair, so that it is found again."""
    return batch.texts[0], batch.prompts[0], batch.pixels.numpy().tobytes()


def test_the_parts_of_a_batch_have_texts_of_like_length_and_their_pictures():
    pixels, marks = torch.arange(5.0).reshape(5, 1), f"{IMAGE_MARK} and {IMAGE_MARK}"
    batch = data.Batch(pixels, [IMAGE_MARK, marks, IMAGE_MARK, IMAGE_MARK],
                       ["a long description of it", "yes", "no", "a longer description of it"],
                       [{"step": 1}])
    short, long = data.in_parts(batch, 2)
    assert short.texts == ["no", "yes"] and short.prompts == [IMAGE_MARK, marks]
    assert short.pixels.flatten().tolist() == [3, 1, 2]
    assert long.texts == ["a long description of it", "a longer description of it"]
    assert long.pixels.flatten().tolist() == [0, 4]
    assert (short.skipped, long.skipped) == ([{"step": 1}], [])
    assert data.in_parts(batch, 1) == (batch,)


def test_a_batch_that_cannot_be_shared_is_refused(source):
    with pytest.raises(ValueError, match="4 cannot be divided among 3 processes with 1 parts each"):
        data.batches(source, 1, 28, 4, 4, seed=3, world=3)
    with pytest.raises(ValueError, match="a batch of 2 cannot be divided"):
        data.batches(source, 1, 28, 2, 4, seed=3, accumulate=4)


def test_pixels_are_those_of_the_crop_as_the_model_is_given_pictures(source):
    [[batch]] = data.batches(source, 1, 28, 12, 1, seed=5, workers=0)
    keys = next(data.global_batches(source, 12, 1, 5))
    for pixels, (_, epoch, i) in zip(batch.pixels, keys, strict=True):
        crop = data.random_crop(source.picture(i), random.Random(f"5 {epoch} {i}"), 0.5)
        assert torch.equal(pixels, preprocess(crop, 28))


def test_the_crop_of_a_pair_depends_on_the_epoch_and_not_on_the_step(source):
    pairs = data.Pairs(source, 1, 28, 0.5, seed=0)
    Image.effect_noise((60, 50), 80).convert("RGB").save(source.pairs[0][0])
    crops = [pairs[step, epoch, 0][0] for step, epoch in ((0, 0), (7, 0), (7, 1))]
    assert torch.equal(crops[0], crops[1]) and not torch.equal(crops[0], crops[2])


# ---- Bad samples


def test_a_bad_pair_is_named_and_replaced_by_the_same_other_pair_in_every_run(source):
    source.pairs[7][0].write_bytes(b"no picture")
    runs = [list(data.batches(source, 1, 28, 4, 6, 1, workers=workers, first_step=first))
            for workers, first in ((0, 0), (2, 0), (0, 3))]
    assert same([batch for [batch] in runs[0]], [batch for [batch] in runs[1]])
    assert same([batch for [batch] in runs[0][3:]], [batch for [batch] in runs[2]])
    assert all(len(found) == 4 and 7 not in found for found in numbers(runs[0]))
    reason = "not a picture that Pillow can read"
    expected = [{"step": step + 1, "sample": "7.jpg", "reason": reason}
                for batch in data.global_batches(source, 4, 6, 1) for step, _, i in batch if i == 7]
    found = [entry for [batch] in runs[0] for entry in batch.skipped]
    assert len(expected) == 2
    assert [entry for entry in found if entry in expected] and found[0] == expected[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_data_with_nothing_usable_is_an_error_of_one_line_at_once(source, workers):
    for file, _ in source.pairs:
        file.unlink()
    message = r"^nothing usable in the training data: 20 samples .*No such file[^\n]*$"
    with pytest.raises(ValueError, match=message):
        next(data.batches(source, 1, 28, 4, 6, 1, workers=workers))


# ---- Sources


def test_cc_sbu_align_gives_clean_captions_in_stage_1_and_an_instruction_in_stage_2(source):
    assert len(source) == 12 and source.picture(3).size == (90, 50) and source.name(3) == "3.jpg"
    prompt, text = source.words(2, 1, random.Random(0), random.Random(1))
    assert prompt is None and text == "picture no 2 more more"
    prompt, text = source.words(2, 2, random.Random(0), random.Random(1))
    other_prompt, _ = source.words(3, 2, random.Random(5), random.Random(1))
    assert prompt == other_prompt                    # a batch has one instruction
    assert text == "Picture No. 2! More. More."
    assert prompt in [instruction_prompt(instruction) for instruction in INSTRUCTIONS]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"annotations": []}', '{"annotations": [{"image_id": "1"}]}'])
def test_a_filter_cap_json_without_annotations_is_refused_by_name(tmp_path, content):
    (tmp_path / "filter_cap.json").write_text(content)
    with pytest.raises(ValueError, match="filter_cap.json: (not a list of|no) annotations"):
        data.open_source(tmp_path)


def test_what_lies_at_a_path_tells_which_kind_of_data_it_is(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = source.pairs[0][0].read_bytes()
    Path("tars").mkdir()
    for tar in ("tars/0.tar", "tars/1.tar"):
        write_tar(tar, {"0.jpg": picture, "0.txt": b"a caption"})
    Path("own").mkdir()
    Path("own/a.jpg").write_bytes(picture)
    for nothing in (".", "own"):
        with pytest.raises(ValueError, match="none with a caption NAME.txt beside it"):
            (tmp_path / "filter_cap.json").unlink(missing_ok=True)
            data.open_source(nothing)
    Path("own/a.txt").write_text("mine")
    for spec, pairs in (("tars", 2), ("tars/{0..1}.tar", 2), (Path("tars/1.tar"), 1), ("own", 1)):
        assert len(data.open_source(spec, "index")) == pairs
    assert len(list(Path("index").iterdir())) == 2
    with pytest.raises(ValueError, match="own/a.txt: not a tar file; --data takes"):
        data.open_source("own/a.txt")
    with pytest.raises(ValueError, match="gone: no such file"):
        data.open_source("gone")


def test_a_folder_named_as_a_tar_file_is_a_folder(tmp_path, source):
    (tmp_path / "tars" / "x.tar").mkdir(parents=True)
    picture = source.pairs[0][0].read_bytes()
    write_tar(tmp_path / "tars" / "0.tar", {"0.jpg": picture, "0.txt": b"a caption"})
    assert len(data.open_source(tmp_path / "tars", tmp_path / "index")) == 1
    with pytest.raises(ValueError, match="x.tar: a folder without tar files"):
        data.open_source(tmp_path / "tars" / "*.tar", tmp_path / "index")


def test_validation_pairs_are_drawn_by_the_seed_and_the_rest_is_trained_on(source):
    def names(part):
        return [part.name(i) for i in range(len(part))]

    train, val = data.split(source, 4, seed=1)
    everything = names(source)
    assert sorted(names(train) + names(val)) == sorted(everything) and len(val) == 4
    assert names(val) == names(data.split(source, 4, seed=1)[1]) != everything[-4:]
    assert names(val) != names(data.split(source, 4, seed=2)[1])


def test_a_fingerprint_tells_other_data_and_not_another_place(source, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "image", copy / "image")
    shutil.copy(tmp_path / "filter_cap.json", copy)
    assert data.open_source(f"{copy}/").fingerprint() == source.fingerprint()
    content = (copy / "filter_cap.json").read_text()
    (copy / "filter_cap.json").write_text(content.replace("No.", "no."))
    assert data.open_source(copy).fingerprint() != source.fingerprint()


def test_the_gallery_trains_on_no_held_out_pair_and_crops_what_it_painted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gallery = data.Gallery(20)
    assert not {(scene.subject, scene.style) for scene in gallery.scenes} & set(UNSEEN_PAIRS)
    assert gallery.paintings.shape == (20, 224, 224, 3)
    painted_again = data.painted(gallery.scenes)              # from the file
    assert np.array_equal(painted_again, gallery.paintings)
    assert len(list(Path("runs/gallery").iterdir())) == 1
    pairs, whole = data.Pairs(gallery, 1, 56, 0.5, seed=0), preprocess(gallery.picture(4), 56)
    crops = [data.normalised(pairs[0, epoch, 4][0])[0] for epoch in range(3)]
    assert crops[0].shape == whole.shape
    assert not any(torch.equal(crop, whole) for crop in crops)
    assert not torch.equal(crops[0], crops[1])
    _, prompt, text, _ = pairs[0, 0, 4]
    assert prompt is None and gallery.scenes[4].subject in text


def test_the_gallery_s_second_stage_asks_for_what_it_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gallery, kinds = data.Gallery(12), set()
    for step in range(120):
        i = step % 12
        prompt, text = gallery.words(i, 2, random.Random(step), random.Random(f"batch {step}"))
        shown = gallery.pictures(i, 56, prompt)
        assert prompt.count("<ImageHere>") == len(shown) and shown[-1] == gallery.picture(i)
        if len(shown) == 2:
            kinds.add("two pictures")
        elif prompt in [instruction_prompt(instruction) for instruction in INSTRUCTIONS]:
            assert words.named(text) == gallery.scenes[i].attributes
            kinds.add("description")
        else:
            assert prompt.startswith(SYSTEM) and prompt.endswith("###Assistant:")
            if text.startswith("```html"):
                kinds.add("page")
            elif prompt.count("###Human:") == 2:
                kinds.add("second")
            else:
                kinds.add("first")
    assert kinds == {"description", "page", "second", "first", "two pictures"}


def test_a_batch_has_the_pictures_of_its_prompts_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gallery = data.Gallery(12)
    for [batch] in data.batches(gallery, 2, 28, 4, 12, seed=1, min_crop_area=1.0, workers=0):
        shown = [prompt.count("<ImageHere>") for prompt in batch.prompts]
        assert len(batch.pixels) == sum(shown)
    part, prompt = sources.Part(gallery, [3, 4, 9]), "<ImageHere> <ImageHere>"
    assert part.pictures(2, 56, prompt) == [gallery.picture(gallery.other(9)), gallery.picture(9)]
    assert part.pictures(2, 56, None) == [gallery.picture(9)]
