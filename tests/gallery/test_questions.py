"""gallery/questions.py: what it asks, and what it counts as right."""
import itertools
import random
import re

import pytest

from gallery import questions, words
from gallery.questions import HELD_OUT, belongs
from gallery.scenes import SEEN_PAIRS, UNSEEN_PAIRS, random_scenes

SCENES = random_scenes(10, "questions")


class Knowing:
    """An asker whose model gives the answers that it is handed, in this order."""

    def __init__(self, *answers):
        self.scenes, self.prompts, self.given = SCENES, [], list(answers)

    def ask(self, prompts, max_new_tokens=100):
        self.prompts += prompts
        return self.given.pop(0)

    def ask_each(self, asked, max_new_tokens=100):
        return self.ask([([i], [question]) for i, question in enumerate(asked)])


def test_topics_are_right_where_the_grammar_has_the_answer_for_the_topic():
    wordings = [(topic, wording) for topic in questions.SINGLE
                for wording in HELD_OUT[topic]]
    answers = [words.question(topic, SCENES[0], random.Random(0))[1] for topic, _ in wordings]
    shares = questions.topics(Knowing(answers), random.Random(0), times=1)
    assert set(shares.values()) == {1.0}
    unknown = ["The picture does not say."] * len(wordings)
    shares = questions.topics(Knowing(unknown), random.Random(0), times=1)
    assert shares["topic: unknown"] == 1 and shares["topic: mood"] == 0


def test_yes_or_no_counts_the_first_word():
    rights = [questions.yes_or_no(Knowing(always, always), random.Random(1))["yes or no"]
              for always in (["Yes, it is."] * 10, ["No, it is not."] * 10)]
    assert 0.2 < rights[0] < 0.8 and sum(rights) == pytest.approx(1)


def test_descriptions_and_pages_are_compared_with_the_scene_and_each_other():
    rng = random.Random(0)
    texts = [words.description(scene, rng) for scene in SCENES]
    pages = [words.page(scene) for scene in SCENES]
    asker = Knowing(texts, pages, pages)
    assert list(questions.descriptions(asker, rng).values()) == [1, 1, 1, 1, 1, 0]
    assert asker.prompts[-1][1][1] == texts[-1]               # asked after the description
    shares = questions.descriptions(Knowing(texts, [pages[0]] * 10, pages), rng)
    assert shares["web page: alike"] == 1
    assert shares["web page by itself: same subject"] < 0.5


def test_two_pictures_are_judged_by_the_second():
    rng, first = random.Random(0), [words.description(scene, random.Random(0)) for scene in SCENES]
    second = first[1:] + first[:1]
    which = ["Neither of them."] * 10
    shares = questions.two_pictures(Knowing(first, second, which), rng)
    assert shares["second picture"] == 1 and shares["which of them"] < 0.5
    assert questions.two_pictures(Knowing(first, first, which), rng)["second picture"] < 0.6


def test_no_held_out_wording_is_one_of_those_trained_on():
    def opened(wording):
        """All forms of a wording, its slots but "pic" left open, as typed in a hurry."""
        forms = [wording.replace("{pic}", pic) for pic in words.RULES["pic"]]
        return {re.sub(r"{.*?}", "...", form).lower().rstrip(".?!") for form in forms}

    trained = {form for texts in words.WORDINGS.values() for text in texts for form in opened(text)}
    assert len(trained) > 300
    for topic, wordings in HELD_OUT.items():
        assert topic in words.WORDINGS and len(wordings) >= 2
        assert not any(opened(wording) & trained for wording in wordings), topic


def test_all_that_the_gallery_says_belongs_to_its_topic_alone():
    rng, topics = random.Random(0), ("description", *words.TOPICS)
    scenes = random_scenes(90, "recognise", SEEN_PAIRS + UNSEEN_PAIRS)
    for first, second in itertools.pairwise(scenes):
        for topic in topics:
            _, answer = words.question(topic, first, rng)
            assert [other for other in topics if belongs(answer, other)] == [topic], answer
        for topic in words.PAIR_TOPICS:
            assert belongs(words.pair_question(topic, (first, second), rng)[1], topic)
