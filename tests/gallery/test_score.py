"""gallery/score.py and familiarity.py: what texts have right, what queries see, which pictures are
foreign."""
import argparse
import random

import numpy as np
import pytest
import torch
from PIL import Image

from common.models import TINY, model_flags
from gallery import familiarity, score, words
from gallery.scenes import SAMPLES, SEEN_PAIRS, UNSEEN_PAIRS, random_scenes

SCENES = random_scenes(40, "score")
TEXTS = [words.description(scene, random.Random(0)) for scene in SCENES]


def means(scenes, texts):
    return {what: np.nanmean(values) for what, values in score.rightly(scenes, texts).items()
            if not np.isnan(values).all()}


def test_texts_are_right_where_they_name_what_is_there_and_nothing_else():
    assert set(means(SCENES, TEXTS).values()) == {1}
    texts = ["nothing", *TEXTS[1:]]
    found = means(SCENES, texts)
    assert all(found[name] == 39 / 40 for name in (*score.ATTRIBUTES, score.MEAN, "all four"))
    others = [f"{TEXTS[0]} To the left is a balloon, in the centre a candle.", *TEXTS[1:]]
    found, shown = means(SCENES, others), [bool(scene.things) for scene in SCENES]
    assert found["place"] == 39 / 40 and found["subject"] == 1
    what, count = "no things, where none are", shown.count(False)
    if shown[0]:
        what, count = "things, where some are shown", shown.count(True)
    assert found[what] == 1 - 1 / count


def test_all_four_at_once_is_less_than_their_mean():
    scene = SCENES[0]
    three = ", ".join([scene.subject, scene.style, scene.palette])
    found = means([scene], [three])
    assert found[score.MEAN] == 3 / 4 and found["all four"] == 0


def test_held_out_paintings_are_in_no_training_set():
    training = set(random_scenes(5000, "training"))
    assert not training & set(score.held_out(SEEN_PAIRS))
    assert len(score.held_out(UNSEEN_PAIRS)) == 200


def test_an_interval_is_over_pairs_not_over_paintings():
    scenes = random_scenes(560, "interval", UNSEEN_PAIRS)
    of_pair = {pair: i % 2 for i, pair in enumerate(UNSEEN_PAIRS)}
    values = np.array([float(of_pair[scene.subject, scene.style]) for scene in scenes])
    mean, _, interval = score.over_pairs(scenes, values).partition(" % ")
    low, high = map(float, interval.strip("()").split(" to "))
    assert mean == "50.0" and 15 < low < 25 and 75 < high < 85          # t over 14 pairs
    assert score.over_pairs(scenes, np.ones(len(scenes))) == "100.0 %"


def test_chance_is_what_random_other_paintings_share():
    scene = SCENES[0]
    assert score.chance([scene, scene]) == 1
    scenes = random_scenes(1400, "chance", UNSEEN_PAIRS)
    assert score.chance(scenes) == pytest.approx(0.13, abs=0.01)


def test_the_mean_cosine_is_that_of_different_queries():
    assert score.mean_cosine(torch.ones(2, 3, 4)) == pytest.approx(1)
    assert score.mean_cosine(torch.eye(4)[None]) == pytest.approx(0)
    two_alike = torch.tensor([[[1.0, 0], [2, 0], [0, 1]]])
    assert score.mean_cosine(two_alike) == pytest.approx(1 / 3)


def test_pointing_compares_the_strongest_patch_with_the_best_fixed_one():
    attention = torch.zeros(2, 3, 5)                          # the class token and 4 patches
    attention[:, 0, 0] = 0.6
    attention[0, 0, 2], attention[1, 0, 4] = 0.4, 0.4
    cells = torch.tensor([[False, True, False, False], [False, True, True, False]])
    assert score.pointing(attention, cells) == (0.5, 1)


def test_the_cells_of_a_subject_to_the_left_are_on_the_left():
    scenes = [scene for scene in SCENES if scene.composition == "to the left"]
    cells = score.subject_cells(scenes, 8).view(-1, 8, 8).float().sum(dim=1)
    assert (cells[:, :4].sum(dim=1) > cells[:, 4:].sum(dim=1)).all()


def test_the_included_model_describes_the_samples_rightly_and_its_queries_differ(tiny):
    pictures = [np.asarray(Image.open(TINY.parent.parent / "samples" / f"{name}.png"))
                for name in ("couple", "lighthouse", "sailing-boat")]
    queries, attention = score.seen(tiny, pictures)
    assert attention.shape == (3, 16, 65) and score.mean_cosine(queries) < 0.8
    texts = score.describe(tiny, pictures, 2)
    assert set(means(SAMPLES, texts).values()) == {1}
    assert texts == score.tell(tiny, queries, 2)


def test_the_command_prints_three_tables_of_seen_and_unseen_pairs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    drawn = random_scenes
    monkeypatch.setattr(score, "random_scenes", lambda count, *of: drawn(count // 200, *of))
    parser = argparse.ArgumentParser()
    model_flags(parser)
    args = parser.parse_args([])
    args.stage = 1
    score.main(args)
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert [len(table.splitlines()) for table in tables] == [2 + 9, 2 + 3, 2 + 3]
    assert all(table.splitlines()[0].endswith("| seen pairs | unseen pairs |") for table in tables)


# ---- Foreign pictures


def test_what_lies_off_the_training_pictures_is_unfamiliar(tiny):
    generator = torch.Generator().manual_seed(1)
    spread = torch.linspace(0.01, 2, 128)
    trained, held_out = (torch.randn(800, 128, generator=generator) * spread for _ in range(2))
    measure = familiarity.fit(trained, held_out)
    far = familiarity.distance(measure, held_out) > measure["threshold"]
    assert 0.01 < far.float().mean() < 0.03
    with torch.inference_mode():
        queries = held_out[:1, None] + torch.randn(16, 128, generator=generator)
        queries += held_out[:1, None] - queries.mean(dim=1, keepdim=True)
        image_vectors = tiny.proj(queries)                    # their mean is held_out[0]
        assert familiarity.unfamiliar(tiny, measure, image_vectors[0]) is bool(far[0])
        assert familiarity.unfamiliar(tiny, measure, tiny.proj(torch.ones(16, 128))) is True
    assert familiarity.unfamiliar(tiny, None, image_vectors) is None


def test_the_included_measure_tells_noise_from_paintings(tiny, pictures):
    measure = familiarity.read_measure(TINY)
    noise = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    for images, expected in ((pictures, False), (map(Image.fromarray, noise), True)):
        for query in familiarity.mean_queries(tiny, images):
            assert (familiarity.distance(measure, query) > measure["threshold"]) == expected


def test_a_folder_may_lack_a_measure_but_not_have_a_damaged_one(tmp_path):
    assert familiarity.read_measure(tmp_path) is None
    (tmp_path / familiarity.FILE).write_bytes(b"cut")
    with pytest.raises(ValueError, match=familiarity.FILE):
        familiarity.read_measure(tmp_path)
