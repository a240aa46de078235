"""gallery/benchmark.py: the folder that it writes, and the rules that judge answers."""
import argparse
import json
import random
from dataclasses import asdict

import pytest
from PIL import Image

from gallery import benchmark, words
from gallery.scenes import (FIGURES, MOODS, PALETTES, SEEN_PAIRS, STYLES, SUBJECTS, THINGS,
                            UNSEEN_PAIRS, Scene, random_scenes)

# Its mood is mysterious.
LIGHTHOUSE = Scene("lighthouse", "oil", "storm", "in the centre", 1, ("birds", "rowboat"))
# The figure feels grief, the viewer passion.
MOURNER = Scene("mourner", "woodcut", "ember", "in the centre", 1)
# Names everything, of all kinds.
PARROT = " ".join((*SUBJECTS, *STYLES, *PALETTES, *MOODS, *THINGS, "joy grief longing love"))


def score_of(name, scene, *answers):
    """The score that the rule of the benchmark `name` gives to the answers."""
    score, reason = benchmark.RULES[name](scene, None, answers)
    assert reason
    return score


def test_the_benchmark_is_the_same_bytes_each_time_and_knows_its_truth(tmp_path):
    for name in ("first", "again"):
        benchmark.make(tmp_path / name)
    first, again = tmp_path / "first", tmp_path / "again"
    files = [file.relative_to(first) for file in sorted(first.rglob("*")) if file.is_file()]
    assert len(files) == 10 + 10 + 5 + 2 + 2
    assert not (first / "PAGES").exists()
    for file in files:
        assert (first / file).read_bytes() == (again / file).read_bytes(), file
    truth = benchmark.truth(first)
    assert truth == benchmark.scenes() and len(truth) == 27
    assert all(scene.subject in FIGURES for (name, _), scene in truth.items() if name == "ISAC")
    assert all(len(scene.things) >= 2 for (name, _), scene in truth.items() if name == "ICRC")
    assert not set(truth.values()) & set(random_scenes(5000, "training"))
    for name in ("IDC/1.png", "MDIUC/2.png"):
        assert Image.open(first / name).size == (224, 224)


@pytest.mark.parametrize("content", [
    None, "[]", "{", '{"IDC": {"1": {"subject": "cat"}}}', '{"IDC": 5}',
    json.dumps({"ISAC": {"1": asdict(LIGHTHOUSE)}})])
def test_truth_refuses_a_folder_that_is_not_a_gallery_benchmark(tmp_path, content):
    if content:
        (tmp_path / "truth.json").write_text(content)
    with pytest.raises(ValueError, match="truth.json"):
        benchmark.truth(tmp_path)


def test_what_the_gallery_itself_says_gets_four_or_five():
    rng = random.Random(0)
    for scene in random_scenes(200, "judged", SEEN_PAIRS + UNSEEN_PAIRS):
        assert score_of("IDC", scene, words.description(scene, rng)) >= 4
        assert score_of("IDC", scene, words.description(scene, rng, art=False)) == 3
        assert score_of("ICRC", scene, words.question("objects", scene, rng)[1]) == 5
        rounds = [words.question(topic, scene, rng)[1]
                  for topic in ("description", "situation", "doing", "look", "poem")]
        assert score_of("MDIUC", scene, *rounds) == 5
        if scene.subject in FIGURES:
            assert score_of("ISAC", scene, words.question("emotions", scene, rng)[1]) >= 4


@pytest.mark.parametrize("text, score", [
    ("", 0),
    ("I do not know what this is.", 0),
    (PARROT, 0),
    ("This is no lighthouse, it is not in oil, without storm or mystery.", 0),
    ("A castle in oil, in storm colours, mysterious.", 1),
    ("A lighthouse by the sea.", 2),
    ("A lighthouse in oil, in rose colours, mysterious.", 2),
    ("A mysterious oil of a lighthouse in storm colours, with a balloon.", 2),
    ("A lighthouse in oil, in storm colours.", 3),
    ("A joyful oil of a lighthouse in storm colours.", 3),
    ("A mysterious oil of a lighthouse in storm colours.", 4),
    ("A mysterious oil of a lighthouse in storm colours: thick strokes follow the forms, and "
     "ridges of paint catch the light. One wonders what waits in the shade. Birds circle, and a "
     "rowboat passes.", 5)])
def test_idc_scores(text, score):
    assert score_of("IDC", LIGHTHOUSE, text) == score


@pytest.mark.parametrize("text, score", [
    ("", 0),
    ("There is a stone.", 0),
    ("This is not grief. Nobody could call it passionate or serene.", 0),
    (PARROT, 0),
    ("The figure feels joy; the viewer feels serene.", 0),
    ("The dancer feels grief.", 0),
    ("The man feels grief.", 1),
    ("This makes me feel passionate.", 1),
    ("It is grief, and the viewer is joyful.", 1),
    ("His head is bowed, his back is bent: this is grief. The viewer feels serene.", 2),
    ("His head is bowed, his back is bent: this is grief.", 3),
    ("His head is bowed, his back is bent: this is grief. It leaves me passionate.", 3),
    ("His head is bowed, his back is bent: this is grief. The colours are warm and glowing, so I "
     "feel passionate.", 4),
    ("His head is bowed, his back is bent: this is grief. The colours are warm and glowing, so I "
     "feel passionate, and firm carved lines sharpen the pain.", 5)])
def test_isac_scores(text, score):
    assert score_of("ISAC", MOURNER, text) == score


@pytest.mark.parametrize("text, score", [
    ("", 0),
    ("A castle with a fence.", 0),
    (PARROT, 0),
    ("No lighthouse, no birds and no rowboat.", 0),
    ("There isn't a lighthouse here.", 0),
    ("This is not a castle but a lighthouse, with birds and a rowboat.", 4),
    ("A lighthouse.", 1),
    ("A lighthouse, a cat and firs.", 1),
    ("A lighthouse and birds.", 2),
    ("A lighthouse, birds, a rowboat and a balloon.", 3),
    ("A lighthouse, birds and a rowboat.", 4),
    ("At the waterside: a lighthouse, birds and a rowboat.", 5)])
def test_icrc_scores(text, score):
    assert score_of("ICRC", LIGHTHOUSE, text) == score


ROUNDS = ["A lighthouse in oil, in storm colours.", "It is a mysterious moment.",
          "The lighthouse waits for ships and sends its beam out.", "An oil in the storm palette.",
          "The lighthouse lifts its patient light\nand counts the ships that pass by night."]


@pytest.mark.parametrize("changes, score", [
    ({}, 5),
    ({4: "It is a poem."}, 4),
    ({0: "A castle."}, 3),
    ({0: "A castle.", 1: "It is joyful."}, 2),
    ({0: "A castle.", 1: "It is joyful.", 3: "A woodcut."}, 1),
    ({2: ""}, 1),
    ({1: ROUNDS[0]}, 1),
    ({0: "No lighthouse in oil, in storm colours.", 1: "It is never mysterious."}, 2),
    (dict.fromkeys(range(5), ""), 0),
    (dict.fromkeys(range(5), PARROT), 0),
    ({i: f"{PARROT} {i}" for i in range(5)}, 0)])
def test_mdiuc_scores(changes, score):
    answers = [changes.get(i, text) for i, text in enumerate(ROUNDS)]
    assert score_of("MDIUC", LIGHTHOUSE, *answers) == score


def test_larger_benchmarks_have_the_papers_shape_and_begin_with_it(tmp_path):
    assert benchmark.items_of(27) == benchmark.SHAPE
    assert benchmark.items_of(100) == {"IDC": 37, "ISAC": 37, "ICRC": 19, "MDIUC": 7}
    assert benchmark.items_of(4) == dict.fromkeys(benchmark.SHAPE, 1)
    for count in range(4, 300):
        assert sum(benchmark.items_of(count).values()) == count
    small, large = benchmark.scenes(), benchmark.scenes(200)
    assert len(set(large.values())) == 200
    for name in ("IDC", "ISAC", "ICRC"):
        assert small[name, "1"] == large[name, "1"]
    assert not set(large.values()) & set(random_scenes(5000, "training"))


def test_a_smaller_benchmark_in_the_same_folder_leaves_no_picture_of_the_larger_one(tmp_path):
    benchmark.make(tmp_path, 8, pages=1)
    benchmark.make(tmp_path, 4)
    assert len(list(tmp_path.rglob("*.png"))) == len(benchmark.truth(tmp_path)) == 4


PAGE = words.page(LIGHTHOUSE)


@pytest.mark.parametrize("text, score", [
    ("", 0),
    ("A lighthouse in oil.", 0),
    ("<h1>A castle</h1>", 1),
    ("<h1>No lighthouse</h1>", 1),
    ("<h1>A lighthouse</h1>", 2),
    ("<h1>A mysterious oil of a lighthouse in storm colours</h1>", 3),
    (PAGE.replace("<h1>", "<h2>"), 4),
    (PAGE, 5)])
def test_web_page_scores(text, score):
    assert score_of("PAGES", LIGHTHOUSE, text) == score


def test_the_command_makes_the_folder_that_it_is_asked_for(tmp_path, capsys):
    benchmark.main(argparse.Namespace(folder=tmp_path / "b", items=5, pages=1))
    assert len(benchmark.truth(tmp_path / "b")) == 6
    assert "wrote" in capsys.readouterr().out
