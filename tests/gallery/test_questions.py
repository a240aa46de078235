"""gallery/questions.py: what counts as right, as fair, as another topic, and that talks run on."""
import random
import re
from types import SimpleNamespace

import pytest

from conversation.rounds import Conversation
from gallery import questions, words
from gallery.questions import VERDICTS, verdict
from gallery.scenes import Scene, random_scenes

TREE = Scene("tree", "oil", "rose", "to the left", 3, ("birds", "fence"))
CAT = Scene("cat", "woodcut", "storm", "in the centre", 4)
RIGHT, REFUSED, OFF, FALSE = VERDICTS
BEFORE = [("style", {})], "It is an oil."
FILE = questions.Path(questions.__file__).with_name("strange.ini")
WORDINGS = [(key, wording) for key, row in words.read_phrases(FILE)["questions"].items()
            for wording in row]


def test_hardly_one_of_150_wordings_is_among_those_of_training():
    named = dict.fromkeys(("salad", "any", "x", "xs", "kind", "part", "asked"), ("something",))
    forms = [re.compile(questions.pattern(form.rstrip("?.!"), words.NAMES | named), re.IGNORECASE)
             for forms in words.WORDINGS.values() for form in forms]
    asked = [re.sub("{.*?}", "something", wording).rstrip("?.!") for _, wording in WORDINGS]
    known = [text for text in asked if any(form.fullmatch(text) for form in forms)]
    assert len(WORDINGS) == 150 and len(known) <= 25, known


def test_all_that_the_gallery_says_is_right_and_in_another_talk_it_is_not():
    scenes, others = random_scenes(5, "recognise"), set()
    for scene, other in zip(scenes, scenes[1:], strict=False):
        for topic in words.TOPICS:
            claim = words.asked_about(topic, scene, random.Random(7), words.rules_of(scene))
            for art in (False, True):
                _, answer, _ = words.question(topic, scene, random.Random(7), art)
                assert verdict(answer, scene, [claim]) == RIGHT, (topic, answer)
                assert verdict(answer, scene, []) in (OFF, REFUSED), (topic, answer)
                if topic in ("subject", "description", "objects", "page", "body"):
                    _, answer, _ = words.question(topic, other, random.Random(7), art)
                    others.add(verdict(answer, scene, [claim]))
    assert others == {FALSE}


def test_the_truth_with_the_wrong_yes_or_no_is_false():
    tree, dragon = ("also", words.slots_of("tree")), ("missing", words.slots_of("dragon"))
    found = [verdict(text, TREE, [claim]) for claim in (tree, dragon) for text in (
        "I see a tree, so yes.", "I see a tree, but no tree.", "I see a dragon, so yes.",
        "I see a tree, but no dragon.")]
    assert found == [RIGHT, FALSE, FALSE, FALSE, FALSE, FALSE, FALSE, RIGHT]
    assert verdict("I see a tree, so one.", TREE, [("number", {})]) == FALSE


def test_each_wording_has_an_answer_that_is_right_and_fallbacks_only_where_no_picture_tells():
    fallback = "I do not know that. Ask me about its mood or its technique."
    for key, wording in WORDINGS:
        question, claims = questions.ask(key, wording, TREE, random.Random(1), BEFORE)
        assert claims and not re.search("[{}|]", question), (key, question)
        is_fair = verdict(fallback, TREE, claims) == RIGHT
        assert is_fair == ("unknown" in key.split(", ")), (key, question)


@pytest.mark.parametrize("scene, wording, expected", [
    (TREE, "whats this supposed to be", {RIGHT: "A tree.", OFF: "It is an oil painting.",
                                         FALSE: "The tree of how."}),
    (TREE, "describe it in one word", {RIGHT: "Oil.", OFF: "I would call it \"The tender tree\"."}),
    (TREE, "what color is the sky", {RIGHT: "I see pale pink there.", FALSE: "The sky is navy."}),
    (TREE, "Describe the sky for me", {FALSE: "I see a tree, but no sky."}),
    (CAT, "Describe the sky for me", {RIGHT: "I see a cat, but no sky.",
                                      FALSE: "I see a cat, but no cat."}),
    (TREE, "is there a dragon in it", {
        RIGHT: "I see a tree, but no dragon.",
        OFF: "I see a tree, but no dog.", FALSE: "I see a tree, but no plant."}),
    (TREE, "how many are there", {RIGHT: "I see a tree and four birds.", FALSE: "Two."}),
    (TREE, "count the things u see pls", {RIGHT: "I see a tree, birds and a fence, so three."}),
    (TREE, "was ist auf dem Bild zu sehen?", {RIGHT: "A tree.", FALSE: "A castle."}),
    (TREE, "are you sure?", {RIGHT: "I am sure: oil.", OFF: "I am quite sure: a tree.",
                             FALSE: "I am sure: woodcut."}),
    (TREE, "what do u mean by that", {RIGHT: "It is an oil.", FALSE: "It is a woodcut."}),
    (TREE, "make a web page for this painting", {RIGHT: words.page(TREE), FALSE: words.page(CAT)}),
    (TREE, "suggest a titel for this", {OFF: words.page(TREE, art=False),
                                        FALSE: words.page(TREE).replace("<hr>", "")}),
])
def test_an_answer_gets_this_verdict(scene, wording, expected):
    [key] = [key for key, asked in WORDINGS if asked == wording]
    _, claims = questions.ask(key, wording, scene, random.Random(0), BEFORE)
    assert {found: verdict(text, scene, claims) for found, text in expected.items()} == {
        found: found for found in expected}


def test_a_talk_asks_no_follow_up_first_and_the_first_question_again_in_round_7(tiny):
    asked = [("sure, wrong", "are you sure?"), *WORDINGS[::20]]
    conversation = Conversation(tiny, temperature=0, max_new_tokens=4)
    conversation.add_image(questions.paint(TREE))
    judged = questions.talk(conversation, TREE, asked, random.Random(0))
    assert [row[0] for row in judged] == list(range(1, len(asked) + 2))
    assert judged[0][2] == judged[6][2] and "sure" not in judged[0][1]
    assert [row[2] for row in judged] == [row.question for row in conversation.rounds]
    table = questions.table(judged)
    assert all(f"| {name} | " in table for name in ("all rounds", "the same in round 7", "sure"))


def test_questions_about_two_paintings_are_judged_by_the_one_that_is_meant(monkeypatch):
    drawn, said = words.pair_question, []
    knows = SimpleNamespace(answer=lambda question: [said[-1][1]])
    errs = SimpleNamespace(answer=lambda question: [re.sub(
        r"is (.+), the second (.+)\.", r"is \2, the second \1.", said[-1][1])])

    def pair_question(topic, scenes, rng):
        said.append(drawn(topic, scenes, rng))
        return said[-1]
    monkeypatch.setattr(words, "pair_question", pair_question)
    for seed in range(20):
        judged = questions.about_two(knows, (TREE, CAT), random.Random(seed))
        assert {row[4] for row in judged} == {RIGHT}, judged
        for *_, text, found in questions.about_two(errs, (TREE, CAT), random.Random(seed)):
            assert found == (FALSE if ", the second" in text else RIGHT), text


@pytest.mark.parametrize("topic", questions.WHOLE)
def test_what_is_written_is_right_if_it_is_whole_and_about_the_subject(topic):
    found = []
    for scene, length in ((TREE, None), (TREE, -30), (CAT, None)):
        text = words.question(topic, scene, random.Random(1))[1][:length]
        says = SimpleNamespace(answer=lambda question, text=text: [text])
        found.append(questions.written(says, topic, TREE, random.Random(1))[-1])
    assert found == [RIGHT, FALSE, FALSE]
