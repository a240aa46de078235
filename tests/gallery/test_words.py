"""gallery/words.py and its phrases: what is said of a scene, and what a text names."""
import random
import re

from gallery import words
from gallery.conversations import about_one, about_two, prompt_and_answer
from gallery.scenes import PALETTES, SEEN_PAIRS, THINGS, UNSEEN_PAIRS, Scene, random_scenes

SCENES = random_scenes(60, "test", SEEN_PAIRS + UNSEEN_PAIRS)
TREE = Scene("tree", "oil", "rose", "to the left", 3, ("birds", "fence"))
COUPLE = Scene("couple", "ink wash", "storm", "far away", 4)


def test_captions_and_descriptions_name_their_scene_and_nothing_else_of_the_kind():
    rng = random.Random(0)
    for scene in random_scenes(500, "words", SEEN_PAIRS + UNSEEN_PAIRS):
        caption, description = words.caption(scene, rng), words.description(scene, rng)
        assert words.named(caption) == words.named(description) == scene.attributes
        for text in (caption, description):
            assert words.mentioned(text, THINGS) == set(scene.things)
        more = 8 if scene.things else 0                       # words about the things
        assert 8 <= len(caption.split()) <= 16 + more
        assert 45 <= len(description.split()) <= 72 + more


def test_every_wording_is_asked_and_answered_by_the_scene():
    rng = random.Random(0)
    for scene in SCENES:
        answers = []
        for topic in words.TOPICS:
            for wording in words.WORDINGS[topic]:
                question, answer = words.question(topic, scene, rng, (wording,))
                assert "{" not in question and ("{" not in answer or topic == "page")
            answers.append(answer)
        for attribute in ("subject", "style", "palette", "mood"):
            named = [words.named(answer)[attribute] for answer in answers]
            assert named.count(scene.attributes[attribute]) >= 2


def test_yes_no_and_numbers_are_true_and_as_often_yes_as_no():
    rng = random.Random(0)
    assert words.amount("birds", TREE) == 4 and words.amount("people", COUPLE) == 2
    for topic in ("presence", "kind", "count", "spot"):
        positive = 0
        for _ in range(300):
            question, answer = words.question(topic, TREE, rng)
            asked_for = words.mentioned(question, ("tree", "birds", "bird", "fence"))
            if topic == "presence":
                assert answer.startswith("Yes, " if asked_for else "No, "), (question, answer)
            elif topic == "count" and "bird" in question:
                assert "four birds" in answer
            elif topic == "spot":
                assert bool(re.match("there (is|are) no", answer.lower())) == (not asked_for)
            positive += not re.search(r"\bno\b|^None", answer, re.IGNORECASE)
        assert 100 < positive < 220, topic


def test_questions_about_two_pictures_are_answered_from_the_right_one():
    rng = random.Random(0)
    for _ in range(100):
        question, answer = words.pair_question("one", (TREE, COUPLE), rng)
        scene = TREE if "first" in question.lower() else COUPLE
        assert words.named(answer) == scene.attributes
        question, answer = words.pair_question("which", (TREE, COUPLE), rng)
        for scene, start in ((TREE, "The first"), (COUPLE, "The second")):
            is_meant = words.mentioned(question, scene.attributes.values()) != set()
            assert answer.startswith(start) == is_meant
        _, answer = words.pair_question("both", (TREE, COUPLE), rng)
        assert re.fullmatch("The first is .*tree.*, the second .*couple.*", answer)


def test_conversations_show_each_scene_once_and_end_with_the_topic_asked_for():
    rng = random.Random(0)
    for first, second in zip(SCENES, SCENES[1:], strict=False):
        shown = [scene for new, _, _ in about_two(first, second, rng) for scene in new]
        assert shown == [first, second]
        rounds = about_one(first, rng, "thanks", most=3)
        prompt, answer = prompt_and_answer(rounds, rng, hurry=1)
        assert prompt.count("<ImageHere>") == 1 and prompt.count("###Human: ") == len(rounds) <= 3
        assert answer in ("You are welcome.", "It was a pleasure.")
        asked = prompt.split("Human: ")[-1].partition("###")[0].split("</Img> ")[-1]
        assert not re.search("[A-Z.?!]", asked)


def test_pages_are_html_in_the_paintings_own_colours():
    for scene in SCENES:
        page = words.page(scene)
        assert page.startswith("```html\n") and page.rstrip().endswith("```") and "###" not in page
        assert all(colour in page for colour in vars(PALETTES[scene.palette]).values())
        assert words.named(page)["subject"] == scene.subject
        assert words.mentioned(page, THINGS) == set(scene.things)
    assert len({words.page(scene) for scene in SCENES}) == len(SCENES)
