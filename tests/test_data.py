"""data.py: captions, crops, sources, batches."""
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
from artgpt4 import INSTRUCTIONS, SYSTEM, instruction_prompt, preprocess
from gallery import words
from gallery.scenes import UNSEEN_PAIRS

EXPECTED = json.loads((Path(__file__).parent / "golden" / "expected.json").read_text())


@pytest.fixture
def cc_sbu_align(tmp_path):
    """A folder in the layout of cc_sbu_align, with five pictures."""
    (tmp_path / "image").mkdir()
    for i in range(5):
        Image.new("RGB", (60 + 10 * i, 50), (40 * i, 10, 200)).save(tmp_path / "image" / f"{i}.jpg")
    pairs = [{"image_id": str(i), "caption": f"Picture No. {i}!"} for i in range(5)]
    (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": pairs}))
    return tmp_path


@pytest.mark.parametrize("text, cleaned", EXPECTED["caption_processor"])
def test_captions_are_cleaned_as_the_released_code_does(text, cleaned):
    assert data.clean_caption(text) == cleaned


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


def test_every_epoch_is_a_new_shuffle_of_all_pairs_and_a_pure_function_of_the_seed():
    batches = list(data.order(count=7, batch_size=3, steps=14, seed=1))
    assert all(step == at for at, batch in enumerate(batches) for step, _ in batch)
    pairs = [i for batch in batches for _, i in batch]
    epochs = [pairs[start:start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert batches == list(data.order(7, 3, 14, seed=1))
    assert batches != list(data.order(7, 3, 14, seed=2))


def test_batches_are_the_same_for_any_number_of_workers(cc_sbu_align):
    source = data.CCSBUAlign(cc_sbu_align)
    runs = [list(data.batches(source, 2, 28, 2, 4, seed=3, workers=workers)) for workers in (0, 2)]
    for (pixels, *texts), (other_pixels, *other_texts) in zip(*runs, strict=True):
        assert torch.equal(pixels, other_pixels) and texts == other_texts
    assert pixels.shape == (2, 3, 28, 28)


def test_cc_sbu_align_gives_cleaned_captions_in_stage_1_and_whole_ones_after_an_instruction_in_stage_2(cc_sbu_align):
    source = data.CCSBUAlign(cc_sbu_align)
    assert len(source) == 5 and source.picture(3).size == (90, 50)
    assert source.words(2, 1, random.Random(0), random.Random(1)) == (None, "picture no 2")
    prompt, text = source.words(2, 2, random.Random(0), random.Random(1))
    assert prompt == source.words(3, 2, random.Random(5), random.Random(1))[0]        # one instruction a batch
    assert text == "Picture No. 2!"
    assert prompt in [instruction_prompt(instruction) for instruction in INSTRUCTIONS]


@pytest.mark.parametrize("content", ["", "[]", '{"annotations": []}', '{"annotations": [{"image_id": "1"}]}'])
def test_a_folder_that_is_not_cc_sbu_align_is_refused_by_name(tmp_path, content):
    with pytest.raises(ValueError, match="filter_cap.json"):
        data.CCSBUAlign(tmp_path)
    (tmp_path / "filter_cap.json").write_text(content)
    with pytest.raises(ValueError, match="filter_cap.json"):
        data.CCSBUAlign(tmp_path)


def test_the_gallery_trains_on_no_held_out_pair_and_crops_what_it_painted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gallery = data.Gallery(60)
    assert not {(scene.subject, scene.style) for scene in gallery.scenes} & set(UNSEEN_PAIRS)
    assert gallery.paintings.shape == (60, 224, 224, 3)
    painted_again = data.painted(gallery.scenes)              # from the file
    assert np.array_equal(painted_again, gallery.paintings) and len(list(Path("runs/gallery").iterdir())) == 1
    pairs, whole = data.Pairs(gallery, 1, 56, 0.5, seed=0), preprocess(gallery.picture(4), 56)
    crops = [pairs[step, 4][0] for step in range(3)]
    assert crops[0].shape == whole.shape and not any(torch.equal(crop, whole) for crop in crops)
    assert not torch.equal(crops[0], crops[1]) and torch.equal(crops[0], pairs[0, 4][0])
    assert pairs[0, 4][1] is None and gallery.scenes[4].subject in pairs[0, 4][2]


def test_the_gallery_s_second_stage_asks_for_what_it_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gallery, kinds = data.Gallery(12), set()
    for step in range(60):
        i = step % 12
        prompt, text = gallery.words(i, 2, random.Random(step), random.Random(f"batch {step}"))
        assert prompt.count("<ImageHere>") == 1
        if prompt in [instruction_prompt(instruction) for instruction in INSTRUCTIONS]:
            assert words.named(text) == gallery.scenes[i].attributes
            kinds.add("description")
        else:
            assert prompt.startswith(SYSTEM) and prompt.endswith("###Assistant:")
            kinds.add("page" if text.startswith("```html") else "second" if prompt.count("###Human:") == 2 else "first")
    assert kinds == {"description", "page", "second", "first"}


@pytest.mark.parametrize("pair, says", [({"image_id": "9", "caption": "none"}, "9.jpg: no such file"),
                                        ({"image_id": "1", "caption": 5}, "the caption of 1 is 5")])
def test_a_pair_without_its_picture_or_text_is_named_before_training(cc_sbu_align, pair, says):
    (cc_sbu_align / "filter_cap.json").write_text(json.dumps({"annotations": [pair]}))
    with pytest.raises(ValueError, match=says):
        data.CCSBUAlign(cc_sbu_align)
