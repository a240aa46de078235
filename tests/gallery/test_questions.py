"""gallery/questions.py: what it asks, and what it counts as right."""
import random

from gallery import questions, words
from gallery.scenes import SEEN_PAIRS, random_scenes

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
                for wording in questions.HELD_OUT[topic]]
    answers = [words.question(topic, SCENES[0], random.Random(0))[1] for topic, _ in wordings]
    shares = questions.topics(Knowing(answers), random.Random(0), times=1)
    assert set(shares.values()) == {1.0}
    unknown = ["The picture does not say."] * len(wordings)
    shares = questions.topics(Knowing(unknown), random.Random(0), times=1)
    assert shares["topic: unknown"] == 1 and shares["topic: mood"] == 0


def test_yes_or_no_counts_the_first_word():
    always = [["Yes, it is."] * 10, ["No, it is not."] * 10]
    shares = questions.yes_or_no(Knowing(*always), random.Random(1))
    truths = {}
    rng = random.Random(1)
    for topic in questions.YES_OR_NO:
        pairs = [words.question(topic, scene, rng, questions.HELD_OUT[topic]) for scene in SCENES]
        truths[topic] = sum(truth.startswith("Yes") for _, truth in pairs) / 10
    assert shares["yes or no: presence"] == truths["presence"]
    assert round(shares["yes or no: kind"], 6) == round(1 - truths["kind"], 6)


def test_descriptions_and_pages_are_compared_with_the_scene_and_each_other():
    rng = random.Random(0)
    texts = [words.description(scene, rng) for scene in SCENES]
    pages = [words.page(scene) for scene in SCENES]
    alone, after = (f"web page {when}: same subject" for when in ("by itself",
                                                                  "after its description"))
    asker = Knowing(texts, pages, pages)
    assert questions.descriptions(asker, rng) == {
        "description: all four": 1, "description: subject": 1, after: 1, alone: 1,
        "web page: whole": 1, "web page: alike": 0}
    assert asker.prompts[-1][1][1] == texts[-1]               # asked after the description
    shares = questions.descriptions(Knowing(texts, [pages[0]] * 10, pages), rng)
    assert shares["web page: alike"] == 1
    assert shares[alone] < 0.5 and shares[after] == 1


def test_two_pictures_are_judged_by_the_second():
    rng, first = random.Random(0), [words.description(scene, random.Random(0)) for scene in SCENES]
    second = first[1:] + first[:1]
    which = ["Neither of them."] * 10
    asker = Knowing(first, second, which)
    shares = questions.two_pictures(asker, rng)
    assert shares["second picture"] == 1 and shares["which of them"] < 0.5
    pictures = [len(shown) for shown, _ in asker.prompts]
    assert pictures == [1] * 10 + [2] * 20
    assert questions.two_pictures(Knowing(first, first, which), rng)["second picture"] < 0.6


def test_fresh_paintings_are_of_seen_pairs_and_in_no_training_set():
    scenes = random_scenes(60, "questions")
    assert {(scene.subject, scene.style) for scene in scenes} <= set(SEEN_PAIRS)
    assert not set(scenes) & set(random_scenes(5000, "training"))
