"""gallery/score.py: what texts name rightly, and what the queries of a picture see."""
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from common.loading import load_folder
from gallery import score, words
from gallery.painting import paint
from gallery.scenes import SEEN_PAIRS, UNSEEN_PAIRS, random_scenes


def test_scores_count_what_texts_name_rightly():
    scenes = random_scenes(4, "score")
    texts = [words.caption(scene, random.Random(0)) for scene in scenes]
    columns = (*score.ATTRIBUTES, "all")
    assert score.named_rightly(scenes, texts) == dict.fromkeys(columns, 1.0)
    texts[0] = "nothing"
    assert score.named_rightly(scenes, texts) == dict.fromkeys(columns, 0.75)


def test_held_out_paintings_are_in_no_training_set():
    training = set(random_scenes(5000, "training"))
    assert not training & set(score.held_out(SEEN_PAIRS))
    assert len(score.held_out(UNSEEN_PAIRS)) == 200


def test_the_table_has_a_row_of_percentages_for_each_set():
    shares = dict(zip((*score.ATTRIBUTES, "all"), (1, 0.5, 0.25, 0.125, 0.46875), strict=True))
    assert score.table({"seen pairs": shares}).splitlines() == [
        "| named rightly | subject | style | palette | mood | all |",
        "|---|---|---|---|---|---|",
        "| seen pairs | 100.0 % | 50.0 % | 25.0 % | 12.5 % | 46.9 % |"]


def test_the_place_and_the_things_count_only_if_all_are_right():
    scenes = random_scenes(40, "extras")
    texts = [words.description(scene, random.Random(0)) for scene in scenes]
    assert score.extras_rightly(scenes, texts) == {"composition": 1, "things": 1}
    texts[0] += " To the left there is also a candle, an apple and a balloon. In the centre too."
    assert score.extras_rightly(scenes, texts) == {"composition": 39 / 40, "things": 39 / 40}


def test_the_mean_cosine_is_that_of_different_queries():
    assert score.mean_cosine(torch.ones(2, 3, 4)) == pytest.approx(1)
    assert score.mean_cosine(torch.eye(4)[None]) == pytest.approx(0)
    two_alike = torch.tensor([[[1.0, 0], [2, 0], [0, 1]]])
    assert score.mean_cosine(two_alike) == pytest.approx(1 / 3)


def test_pointing_compares_the_strongest_patch_with_a_random_one():
    attention = torch.zeros(2, 3, 5)                # the class token and 4 patches
    attention[:, 0, 0] = 0.6
    attention[0, 0, 2], attention[1, 0, 4] = 0.4, 0.4
    cells = torch.tensor([[False, True, False, False], [True, True, True, False]])
    assert score.pointing(attention, cells) == (0.5, 0.5)


def test_the_cells_of_a_subject_to_the_left_are_on_the_left():
    scenes = [scene for scene in random_scenes(60, "cells")
              if scene.composition == "to the left"][:5]
    cells = score.subject_cells(scenes, 8).view(5, 8, 8).float().sum(dim=1)
    left, right = cells[:, :4].sum(dim=1), cells[:, 4:].sum(dim=1)
    assert (left > right).all()


def test_replaced_vectors_are_the_mean_over_queries_or_those_of_the_next_picture():
    image_embeds = torch.arange(12.0).view(3, 2, 2)
    mean, other = score.replaced(image_embeds).values()
    assert mean[0].tolist() == [[1, 2], [1, 2]]
    assert torch.equal(other[0], image_embeds[1]) and torch.equal(other[2], image_embeds[0])


def test_chance_is_what_the_next_scene_shares():
    scene, *others = random_scenes(2, "chance")
    assert score.shared([scene, scene]) == dict.fromkeys((*score.ATTRIBUTES, "all"), 1.0)
    subject = float(scene.subject == others[0].subject)
    assert score.shared([scene, *others])["subject"] == subject


@pytest.fixture(scope="module")
def tiny():
    folder = Path(__file__).parents[2] / "weights" / "tiny"
    return load_folder(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def pictures():
    return [np.asarray(paint(scene, 224)) for scene in score.held_out(SEEN_PAIRS, 4)]


def test_describing_vectors_is_describing_their_pictures(tiny, pictures):
    queries, attention = score.seen_by(tiny, pictures)
    assert attention.shape == (4, 16, 65)
    with torch.inference_mode():
        image_embeds = tiny.proj(queries)
    assert score.describe_vectors(tiny, image_embeds, 1) == score.describe(tiny, pictures, 1)


def test_the_tables_show_each_set(monkeypatch, tiny, pictures):
    scenes = score.held_out(SEEN_PAIRS, 4)
    monkeypatch.setattr(score, "PAIRS", {"four": SEEN_PAIRS})
    monkeypatch.setattr(score, "held_out", lambda pairs: scenes)
    monkeypatch.setattr(score, "painted", lambda scenes: pictures)
    shares, without, looks = score.whole_score(tiny, 1)
    assert list(shares["four"]) == [*score.ATTRIBUTES, "all", *score.EXTRAS]
    assert list(without) == ["four, their mean", "four, another painting's", "four, chance"]
    [line] = score.looks_table(looks).splitlines()[2:]
    assert line.startswith("| four | ") and line.count("%") == 2


def test_the_queries_of_the_included_model_differ(tiny, pictures):
    queries, _ = score.seen_by(tiny, pictures)
    assert score.mean_cosine(queries) <= 0.8
