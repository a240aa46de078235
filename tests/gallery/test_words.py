"""gallery/words.py, its grammar and phrases: what is said of a scene, and what a text names."""
import random
import re
from html.parser import HTMLParser

import pytest

from gallery import words
from gallery.scenes import PALETTES, SEEN_PAIRS, THINGS, UNSEEN_PAIRS, Scene, random_scenes
from gallery.held_out_wordings import HELD_OUT
from gallery.wordings import WORDINGS

SCENES = random_scenes(60, "test", SEEN_PAIRS + UNSEEN_PAIRS)


class Tags(HTMLParser):
    """The names of all opening tags that it is fed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)


def test_captions_and_descriptions_name_their_scene_and_nothing_else_of_the_kind():
    rng = random.Random(0)
    for scene in random_scenes(500, "words", SEEN_PAIRS + UNSEEN_PAIRS):
        caption, description = words.caption(scene, rng), words.description(scene, rng)
        assert words.named(caption) == words.named(description) == scene.attributes
        things = set(scene.things)
        assert words.mentioned(caption, THINGS) == words.mentioned(description, THINGS) == things
        more = 8 if scene.things else 0                       # words about the things
        assert 8 <= len(caption.split()) <= 16 + more
        assert 45 <= len(description.split()) <= 72 + more


def test_questions_are_answered_by_the_scene():
    rng = random.Random(0)
    for scene in SCENES:
        asked = words.questions(scene, rng)
        answers = [answer for _, answer in asked]
        assert len(asked) == len(words.TOPICS) and answers.count(words.page(scene)) == 1
        assert any("does not say" in answer for answer in answers)
        for attribute in ("subject", "style", "palette", "mood"):
            named = [words.named(answer)[attribute] for answer in answers]
            assert named.count(scene.attributes[attribute]) >= 2
        assert any(scene.composition in answer for answer in answers)
        assert len({question for question, _ in words.dialogue(scene, rng)}) == 5


def opened(wording):
    """All forms of a wording, its slots but "pic" left open, as typed in a hurry."""
    forms = [wording.replace("{pic}", pic) for pic in WORDINGS["pic"]]
    return {words.in_a_hurry(re.sub(r"{.*?}", "...", form)) for form in forms}


def test_no_held_out_wording_is_one_of_those_trained_on():
    trained = {form for rule, wordings in WORDINGS.items() if rule.startswith("ask ")
               for wording in wordings for form in opened(wording)}
    assert len(trained) > 300
    for topic, wordings in HELD_OUT.items():
        assert f"ask {topic}" in WORDINGS and len(wordings) >= 2
        for wording in wordings:
            assert not opened(wording) & trained, wording


TREE = Scene("tree", "oil", "rose", "to the left", 3, ("birds", "fence"))
COUPLE = Scene("couple", "ink wash", "storm", "far away", 4)


@pytest.mark.parametrize("scene, name, amount", [
    (TREE, "tree", 1), (TREE, "birds", 4), (TREE, "fence", 1), (TREE, "firs", 0),
    (TREE, "people", 0), (COUPLE, "people", 2), (COUPLE, "person", 2), (COUPLE, "birds", 0)])
def test_an_amount_is_what_the_painter_paints(scene, name, amount):
    assert words.amount(name, scene) == amount


def test_yes_no_and_numbers_are_true_and_as_often_yes_as_no():
    rng = random.Random(0)
    for topic in ("presence", "kind", "count", "spot"):
        positive = 0
        for _ in range(300):
            question, answer = words.question(topic, TREE, rng)
            asked_for = words.mentioned(question, ("tree", "birds", "bird", "fence"))
            if topic == "presence":
                assert answer.startswith("Yes, " if asked_for else "No, "), (question, answer)
            elif topic == "count" and "bird" in question:
                assert "four birds" in answer
            elif topic == "count" and ("things" in question or "objects" in question):
                assert answer == "There are three " + answer[16:]
            elif topic == "spot":
                assert ("there are no" in answer.lower() or "there is no" in answer.lower()) == (
                    not asked_for)
            positive += not re.search(r"\bno\b|^None", answer, re.IGNORECASE)
        assert 100 < positive < 220, topic


def test_questions_about_two_pictures_are_answered_from_the_right_one():
    rng = random.Random(0)
    for _ in range(100):
        question, answer = words.pair_question("one", (TREE, COUPLE), rng)
        scene = TREE if "first" in question.lower() else COUPLE
        assert words.named(answer) == scene.attributes
        question, answer = words.pair_question("which", (TREE, COUPLE), rng)
        of_tree, of_couple = (
            any(re.search(rf"\b{value}\b", question) for value in scene.attributes.values())
            for scene in (TREE, COUPLE))
        assert answer.startswith("The first") == of_tree
        assert answer.startswith("The second") == of_couple
        _, answer = words.pair_question("both", (TREE, COUPLE), rng)
        first, _, second = answer.partition(", the second ")
        assert "tree" in first and "couple" in second


def test_an_answer_that_names_two_of_a_kind_or_none_names_nothing():
    nothing_else = {"subject": None, "palette": None, "mood": None}
    assert words.named("A cat and a castle in oil.") == nothing_else | {"style": "oil"}
    assert words.named("Catalogue of oily things")["subject"] is None


def test_pages_are_whole_html_in_the_paintings_own_colours():
    for scene in SCENES:
        page, tags = words.page(scene), Tags()
        assert page.startswith("```html\n") and page.rstrip().endswith("```") and "###" not in page
        tags.feed(page)
        assert {"title", "style", "h1", "h2", "p"} <= tags.seen
        for colour in vars(PALETTES[scene.palette]).values():
            assert colour in page
        assert words.named(page)["subject"] == scene.subject
        assert words.mentioned(page, THINGS) == set(scene.things)
    assert len({words.page(scene) for scene in SCENES}) == len(SCENES)
