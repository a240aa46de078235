"""gallery/score.py, benchmark.py, familiarity.py: what texts have right and which score they get,
what queries see, which pictures are foreign."""
import argparse
import json
import random
import re
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from artgpt4 import preprocess
from common.files import save_tensors
from common.models import TINY, model_flags
from gallery import benchmark, familiarity, score, words
from gallery.scenes import (FIGURES, MOODS, PALETTES, SEEN_PAIRS, STYLES, SUBJECTS, THINGS,
                            UNSEEN_PAIRS, Scene, random_scenes)
from tests.gallery.test_painting import SAMPLES

SCENES = random_scenes(40, "score")
TEXTS = [words.description(scene, random.Random(0)) for scene in SCENES]
LIGHTHOUSE = Scene("lighthouse", "oil", "storm", "in the centre", 1, ("birds", "rowboat"))
MOURNER = Scene("mourner", "woodcut", "ember", "in the centre", 1)   # grief; the viewer: passionate
PARROT = " ".join((*SUBJECTS, *STYLES, *PALETTES, *MOODS, *THINGS, "joy grief longing love"))
PROOF = "His head is bowed, his back is bent: this is grief."
COLOURS = f"{PROOF} The colours are warm and glowing, so I feel passionate"
ROUNDS = ["A lighthouse in oil, in storm colours.", "It is a mysterious moment.",
          "The lighthouse waits for ships and sends its beam out.", "An oil in the storm palette.",
          "The lighthouse lifts its patient light\nand counts the ships that pass by night."]


def means(scenes, texts):
    return {what: np.nanmean(values) for what, values in score.rightly(scenes, texts).items()
            if not np.isnan(values).all()}


def test_texts_are_right_where_they_name_what_is_there_and_nothing_else():
    assert set(means(SCENES, TEXTS).values()) == {1}
    found = means(SCENES, ["nothing", *TEXTS[1:]])
    assert all(found[name] == 39 / 40 for name in (*score.ATTRIBUTES, score.MEAN, "all four"))
    plain = [words.description(scene, random.Random(0), art=False) for scene in SCENES]
    wrong = {what for what, share in means(SCENES, plain).items() if share < 1}
    assert wrong == {"mood", score.MEAN, "all four"}
    others = [f"{TEXTS[0]} To the left is a balloon, in the centre a candle.", *TEXTS[1:]]
    found, shown = means(SCENES, others), [bool(scene.things) for scene in SCENES]
    assert found["place"] == 39 / 40 and found["subject"] == 1
    what = "things, where some are shown" if shown[0] else "no things, where none are"
    assert found[what] == 1 - 1 / shown.count(shown[0])


def test_held_out_paintings_are_in_no_training_set():
    training = set(random_scenes(5000, "training"))
    assert not training & set(score.held_out(SEEN_PAIRS))
    assert not training & set(benchmark.scenes(200).values())


def test_an_interval_is_over_pairs_and_chance_that_of_a_random_other_painting():
    scenes = random_scenes(560, "interval", UNSEEN_PAIRS)
    of_pair = {pair: i % 2 for i, pair in enumerate(UNSEEN_PAIRS)}
    values = np.array([float(of_pair[scene.subject, scene.style]) for scene in scenes])
    mean, _, interval = score.over_pairs(scenes, values).partition(" % ")
    low, high = map(float, interval.strip("()").split(" to "))
    assert mean == "50.0" and 15 < low < 25 and 75 < high < 85          # t over 14 pairs
    assert score.over_pairs(scenes, np.ones(len(scenes))) == "100.0 %"
    assert score.chance(scenes) == pytest.approx(0.13, abs=0.01)
    assert score.chance(scenes[:1] * 2) == 1


def test_cosine_and_pointing_are_of_different_queries_and_beside_the_best_fixed_patch():
    two_alike = torch.tensor([[[1.0, 0], [2, 0], [0, 1]]])
    assert score.mean_cosine(two_alike) == pytest.approx(1 / 3)
    attention = torch.zeros(2, 3, 5)                          # the class token and 4 patches
    attention[:, 0, 0] = 0.6
    attention[0, 0, 2], attention[1, 0, 4] = 0.4, 0.4
    cells = torch.tensor([[False, True, False, False], [False, True, True, False]])
    assert score.pointing(attention, cells) == (0.5, 1)
    scenes = [scene for scene in SCENES if scene.composition == "to the left"]
    cells = score.subject_cells(scenes, 8).view(-1, 8, 8).float().sum(dim=1)
    assert (cells[:, :4].sum(dim=1) > cells[:, 4:].sum(dim=1)).all()
    assert not score.subject_cells([LIGHTHOUSE], 8)[0, :16].any()         # where birds alone are


def test_the_included_model_describes_the_samples_rightly_and_its_queries_differ(tiny):
    samples = TINY.parent.parent / "samples"
    pictures = [np.asarray(Image.open(samples / f"{name}.png")) for name in SAMPLES]
    queries, attention = score.seen(tiny, pictures)
    assert attention.shape == (3, 16, 65) and score.mean_cosine(queries) < 0.8
    texts = score.describe(tiny, pictures, 2)
    assert set(means(SAMPLES.values(), texts).values()) == {1}


def test_the_command_prints_three_tables_or_paints_a_sheet_of_both_models(
        tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    drawn = random_scenes
    monkeypatch.setattr(score, "random_scenes", lambda count, *of: drawn(-(-count // 200), *of))
    parser = argparse.ArgumentParser()
    model_flags(parser)
    score.main(parser.parse_args([], argparse.Namespace(stage=1, sheet=None)))
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert [len(table.splitlines()) for table in tables] == [2 + 10, 2 + 3, 2 + 3]
    assert all(table.splitlines()[0].endswith("| seen pairs | unseen pairs |") for table in tables)
    monkeypatch.setattr(score, "contact_sheet", lambda images, _, captions: said.extend(captions)
                        or Image.new("RGB", (8, 8)))
    said, file = [], tmp_path / "sheet.jpg"
    score.main(parser.parse_args([], argparse.Namespace(stage=1, sheet=file)))
    assert Image.open(file).format == "JPEG" and len(said) == 2
    assert all(re.fullmatch("ArtGPT-4: .+\n\nMiniGPT-4: .+\n\n", text) for text in said)


# ---- The benchmark

def test_the_benchmark_is_the_same_bytes_each_time_and_a_smaller_one_replaces_it(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    benchmark.make(first, 8)
    for folder in (first, again):
        benchmark.main(argparse.Namespace(folder=folder, items=4))
    files = [file.relative_to(first) for file in sorted(first.rglob("*")) if file.is_file()]
    assert len(files) == 4 + 2
    for file in files:
        assert (first / file).read_bytes() == (again / file).read_bytes(), file
    assert benchmark.truth(first) == benchmark.scenes(4)
    for content in ("[]", "{", '{"IDC": {"1": {"subject": "cat"}}}', '{"IDC": 5}',
                    json.dumps({"ISAC": {"1": asdict(LIGHTHOUSE)}})):
        (first / "truth.json").write_text(content)
        with pytest.raises(ValueError, match="truth.json"):
            benchmark.truth(first)


def test_benchmarks_of_any_size_have_the_papers_shape():
    assert Counter(name for name, _ in benchmark.scenes()) == benchmark.SHAPE
    assert all(abs(len(benchmark.scenes(count)) - count) < 3 for count in range(4, 300, 5))
    scenes = benchmark.scenes(200)
    assert Counter(name for name, _ in scenes) == {"IDC": 74, "ISAC": 74, "ICRC": 37, "MDIUC": 15}
    assert len(set(scenes.values())) == 200
    assert all(scene.subject in FIGURES for (name, _), scene in scenes.items() if name == "ISAC")
    assert all(len(scene.things) >= 2 for (name, _), scene in scenes.items() if name == "ICRC")


@pytest.mark.parametrize("name, scene, score, answers", [(name, scene, score, [text])
                                                         for name, scene, score, text in (
    ("IDC", LIGHTHOUSE, 0, "I do not know what this is."), ("IDC", LIGHTHOUSE, 0, PARROT),
    ("IDC", LIGHTHOUSE, 0, "This is no lighthouse, it is not in oil, without storm or mystery."),
    ("IDC", LIGHTHOUSE, 1, "A castle in oil, in storm colours, mysterious."),
    ("IDC", LIGHTHOUSE, 2, "A mysterious oil of a lighthouse in storm colours, with a balloon."),
    ("IDC", LIGHTHOUSE, 3, "A joyful oil of a lighthouse in storm colours."),
    ("IDC", LIGHTHOUSE, 4, "A mysterious oil of a lighthouse in storm colours."),
    ("IDC", LIGHTHOUSE, 5,
     "A mysterious oil of a lighthouse in storm colours, birds and a rowboat: thick strokes follow "
     "the forms, and ridges of paint catch the light. It hides more than it tells."),
    ("ISAC", MOURNER, 0, "This is not grief. Nobody could call it passionate or serene."),
    ("ISAC", MOURNER, 0, PARROT),
    ("ISAC", MOURNER, 1, "It is grief, and the viewer is joyful."),
    ("ISAC", MOURNER, 2, f"{PROOF} The viewer feels serene."), ("ISAC", MOURNER, 3, PROOF),
    ("ISAC", MOURNER, 3, f"{PROOF} It leaves me passionate."), ("ISAC", MOURNER, 4, COLOURS),
    ("ISAC", MOURNER, 5, f"{COLOURS}: carved lines swell and narrow over flat colour."),
    ("ICRC", LIGHTHOUSE, 0, PARROT), ("ICRC", LIGHTHOUSE, 0, "There isn't a lighthouse here."),
    ("ICRC", LIGHTHOUSE, 1, "A lighthouse, a cat and firs."),
    ("ICRC", LIGHTHOUSE, 3, "A lighthouse, birds, a rowboat and a balloon."),
    ("ICRC", LIGHTHOUSE, 4, "This is not a castle but a lighthouse, with birds and a rowboat."),
    ("ICRC", LIGHTHOUSE, 5, "At the waterside: a lighthouse, birds and a rowboat."))] + [
    ("MDIUC", LIGHTHOUSE, score, [changes.get(i, text) for i, text in enumerate(ROUNDS)])
    for score, changes in (
        (5, {}), (4, {4: "A poem."}), (3, {0: "A castle."}), (1, {2: ""}), (1, {1: ROUNDS[0]}),
        (2, {0: "No lighthouse in oil, in storm colours.", 1: "It is never mysterious."}),
        (0, {i: f"{PARROT} {i}" for i in range(5)}))])
def test_the_rules_give_these_scores(name, scene, score, answers):
    found, reason = benchmark.RULES[name](scene, answers)
    assert (found, bool(reason)) == (score, True)


def test_plain_talk_gets_three_and_appreciation_four_or_five():
    rng, rounds = random.Random(0), ("description", "situation", "doing", "look", "poem")
    for scene in random_scenes(60, "judged", SEEN_PAIRS + UNSEEN_PAIRS):
        plain = words.description(scene, rng, art=False)
        assert benchmark.RULES["IDC"](scene, [plain])[0] == 3
        said = {"IDC": [words.description(scene, rng)],
                "ICRC": [words.question("objects", scene, rng)[1]],
                "MDIUC": [words.question(topic, scene, rng)[1] for topic in rounds]}
        if scene.subject in FIGURES:
            said["ISAC"] = [words.question("emotions", scene, rng)[1]]
        for name, answers in said.items():
            assert benchmark.RULES[name](scene, answers)[0] >= 4, answers


# ---- Foreign pictures

def test_the_included_measure_tells_noise_from_paintings(tiny, tmp_path):
    measure = familiarity.read_measure(TINY)
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    sample = Image.open(TINY.parent.parent / "samples" / "couple.png")
    pixels = torch.stack([preprocess(image, 112) for image in (sample, Image.fromarray(noise))])
    with torch.inference_mode():
        painting, vectors = tiny.encode_image(pixels)
    assert [familiarity.unfamiliar(tiny, measure, one) for one in (painting, vectors)] == [0, 1]
    known = familiarity.knowing(tiny, measure, [noise])
    assert familiarity.unfamiliar(tiny, known, vectors) is False
    save_tensors(known, tmp_path / familiarity.FILE)
    for folder, foreign in ((tmp_path, True), (tmp_path / "elsewhere", False)):
        found = familiarity.read_measure(TINY, folder / "adapter.safetensors")
        assert familiarity.unfamiliar(tiny, found, painting) is foreign
    assert familiarity.read_measure(tmp_path / "elsewhere") is None
    assert familiarity.unfamiliar(tiny, None, vectors) is None
    (tmp_path / familiarity.FILE).write_bytes(b"cut")
    with pytest.raises(ValueError, match=familiarity.FILE):
        familiarity.read_measure(tmp_path)
