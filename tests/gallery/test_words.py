"""gallery/words.py and its phrases: what is said of a scene, and what a text names."""
import random
import re

from artgpt4 import INSTRUCTIONS
from gallery import benchmark, words
from gallery.questions import is_one_of
from gallery.scenes import PALETTES, SEEN_PAIRS, THINGS, UNSEEN_PAIRS, Scene, random_scenes

SCENES = random_scenes(30, "test", SEEN_PAIRS + UNSEEN_PAIRS)
TREE = Scene("tree", "oil", "rose", "to the left", 3, ("birds", "fence"))
COUPLE = Scene("couple", "ink wash", "storm", "far away", 4)


def test_phrases_are_read_as_their_file_says(tmp_path):
    file = tmp_path / "phrases.ini"
    file.write_text("# says\n[rose]\ntone: warm | so:\n  very\nverse:\n  one / two\n  | three\n")
    assert words.read_phrases(file) == {
        "rose": {"tone": ("warm", "so: very"), "verse": ("one\ntwo", "three")}}


def test_one_of_several_words_is_chosen_and_slots_are_filled():
    texts = {words.fill("a (red|old|) {x}", {"x": ("(owl|cat)",)}, random.Random(seed))
             for seed in range(60)}
    assert texts == {f"{article}{name}" for article in ("a red ", "an old ") for name in
                     ("owl", "cat")} | {"a  owl", "a  cat"}


def test_the_frozen_side_never_sees_the_language_of_appreciation():
    rng = random.Random(0)
    plain = " ".join(words.question(topic, scene, rng, art=False)[1]
                     for scene in SCENES for topic in words.TOPICS if topic != "page")
    for value, row in words.PHRASES.items():
        for rule in ("technique", "tone", "feeling"):
            assert not any(text.lower() in plain.lower() for text in row.get(rule, ())), value


def test_captions_and_descriptions_name_their_scene_and_nothing_else_of_the_kind():
    rng = random.Random(0)
    for scene in random_scenes(300, "words", SEEN_PAIRS + UNSEEN_PAIRS):
        plain = scene.attributes | {"mood": None}
        for text, named in ((words.caption(scene, rng), plain),
                            (words.description(scene, rng, art=False), plain),
                            (words.description(scene, rng), scene.attributes)):
            assert words.named(text) == named, text
            assert words.mentioned(text, THINGS) == set(scene.things)


def test_every_wording_is_asked_and_answered_without_an_open_slot():
    rng = random.Random(0)
    for scene in SCENES:
        for topic in words.TOPICS:
            rules = words.rules_of(scene)
            told, slots = words.asked_about(topic, scene, rng, rules)
            for wording in words.WORDINGS[topic]:
                assert not re.search("[{}|]", words.ask((wording,), rules | slots, rng))
            question, answer, short = words.question(topic, scene, rng)
            assert not re.search("[{}|]", short) and ("{" not in answer or topic == "page")


def test_the_questions_of_the_benchmarks_are_taught():
    taught = words.NAMES | {"asked": sum(words.WORDINGS.values(), ())}
    for asked in benchmark.QUESTIONS.values():
        for question in [asked] if isinstance(asked, str) else asked:
            assert question in INSTRUCTIONS or is_one_of(question, ["{asked}"], taught), question


def test_answers_about_names_are_true():
    rng = random.Random(0)
    assert words.amount("birds", TREE) == 4 and words.amount("people", COUPLE) == 2
    for _ in range(300):
        question, answer, short = words.question("presence", TREE, rng)
        asked_for = re.search(r"(?i)\b(tree|birds|fence|plant|trunk)\b", question)
        assert (", so yes." if asked_for else ", but no ") in answer, (question, answer)
        question, answer, short = words.question("count", TREE, rng)
        if re.search(r"(?i)\bbirds\b", question):
            assert "four birds" in answer and short == "four"
        question, answer, _ = words.question("part", TREE, rng)
        about_the_sky = re.search(r"(?i)\b(sky|background|upper|top)\b", question)
        assert bool(about_the_sky) == ("pale pink" in answer)


def test_questions_about_two_pictures_are_answered_from_the_right_one():
    rng = random.Random(0)
    for _ in range(100):
        question, answer = words.pair_question("one", (TREE, COUPLE), rng)
        assert words.named(answer)["subject"] == ("tree" if "first" in question else "couple")
        question, answer = words.pair_question("which", (TREE, COUPLE), rng)
        of_first, of_second = answer.split(", the second ")
        [name] = [name for name, value in words.named(question).items() if value]
        assert words.named(of_first)[name] == TREE.attributes[name]
        assert words.named(of_second)[name] == COUPLE.attributes[name]


def test_pages_are_html_in_the_paintings_own_colours():
    for scene in SCENES:
        page = words.page(scene)
        assert page.startswith("```html\n") and page.rstrip().endswith("```") and "###" not in page
        assert all(colour in page for colour in PALETTES[scene.palette].values())
        assert words.named(page) == scene.attributes
        assert words.mentioned(page, THINGS) == set(scene.things)
    assert len({words.page(scene) for scene in SCENES}) == len(SCENES)
