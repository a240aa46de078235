"""conversation/surprise.py: a new painting, its description, and what of that is right."""
import random

from conversation import surprise
from conversation.surprise import surprise_scene, verdict, verdict_text
from gallery.scenes import Scene
from gallery.words import description

SCENE = Scene("castle", "oil", "ember", "far away", 3, ("birds", "fence"))


def test_a_seed_is_a_scene():
    assert surprise_scene(7) == surprise_scene(7)
    assert len({surprise_scene(seed) for seed in range(20)}) == 20


def test_a_true_description_is_right_and_another_is_wrong_where_it_differs():
    rows = verdict(SCENE, description(SCENE, random.Random(0)))
    assert [mark for mark, *_ in rows] == [True, True, True, True, None, None]
    marks = {attribute: (mark, said) for mark, attribute, _, said in
             verdict(SCENE, "A cat or a castle in oil, rose colours.")}
    assert marks["subject"] == (False, None)
    assert marks["style"] == (True, "oil")
    assert marks["palette"] == (False, "rose")
    assert marks["mood"] == (False, None)


def test_right_and_wrong_are_marked():
    rows = verdict(SCENE, "A castle in oil, rose colours.")
    assert verdict_text(rows, colours=0).splitlines() == [
        "right subject  castle",
        "right style    oil",
        "wrong palette  ember; it said rose",
        f"wrong mood     {SCENE.mood}; it named none, or several",
        "      place    far away",
        "      things   birds and fence",
    ]
    assert "\x1b[32mright \x1b[0msubject" in verdict_text(rows, colours=256)


def test_through_a_pipe_it_describes_and_reveals(run_chat, script, monkeypatch):
    monkeypatch.setattr(surprise, "surprise_scene", lambda seed: SCENE)
    asked = script(["A castle in oil, rose", " colours."], ["A cat."])
    code, out, err = run_chat("--surprise", "--seed", 5)
    assert code == 0 and asked[0][0].endswith("Describe this image in detail.")
    assert out.startswith("A castle in oil, rose colours.\n")
    assert "wrong palette  ember; it said rose" in out and out.endswith("2 of 4 right\n")
    assert "--surprise --seed 5" in err and "\x1b" not in out + err
    _, out, err = run_chat("--surprise")
    assert "0 of 4 right" in out and "--seed" in err
