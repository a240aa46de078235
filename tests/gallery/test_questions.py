"""gallery/questions.py: what it counts as right, and that talks run on."""
import random
import re

from gallery import questions, words
from gallery.questions import verdict
from gallery.scenes import Scene, random_scenes

TREE = Scene("tree", "oil", "rose", "to the left", 3, ("birds", "fence"))
HELD_OUT = words.read_phrases(questions.Path(questions.__file__).with_name("held_out.ini"))


def test_no_held_out_wording_is_one_of_those_trained_on():
    for topic, wordings in HELD_OUT["questions"].items():
        for wording in wordings:
            asked = re.sub("{.*?}", "some", wording)
            assert not questions.is_one_of(asked, words.WORDINGS[topic], words.NAMES), wording


def test_all_that_the_gallery_says_is_right_and_in_another_talk_it_is_not():
    scenes, others = random_scenes(8, "recognise"), set()
    for scene, other in zip(scenes, scenes[1:], strict=False):
        for topic in words.TOPICS:
            for art in (False, True):
                _, answer, _ = words.question(topic, scene, random.Random(7), art)
                asked = words.asked_about(topic, scene, random.Random(7), words.rules_of(scene))
                assert verdict(answer, scene, topic, *asked) == "right", (topic, answer)
                if topic in ("subject", "description", "objects", "page", "body"):
                    _, answer, _ = words.question(topic, other, random.Random(7), art)
                    others.add(verdict(answer, scene, topic, *asked))
    assert "false" in others and "right" not in others


def test_a_verdict_tells_refusals_other_topics_and_nonsense_apart():
    def found(text):
        return verdict(text, TREE, "presence", "missing", words.slots_of("dragon"))

    assert found("No, I see no dragon, only a tree, birds and a fence.") == "right"
    assert found("No.") == "right"
    assert found("I do not know that. Ask me about its mood or its technique.") == "refused"
    assert found("I see a tree to the left. It stands on open land.") == "off topic"
    assert found("Yes, I see birds.") == "off topic"
    assert found("It is a woodcut.") == "false"
    assert found("No, I see no tree, only a tree.") == found("The tree of how") == "nonsense"


def test_a_talk_goes_on_when_its_first_rounds_no_longer_fit(tiny):
    tiny.config.context, context = 400, tiny.config.context
    image = tiny.llama.embed.weight[:tiny.config.queries][None]
    judged = questions.talk(tiny, TREE, image, HELD_OUT["questions"], random.Random(0), rounds=4)
    tiny.config.context = context
    assert [row[0] for row in judged] == [1, 2, 3, 4]
    assert {row[4] for row in judged} <= set(questions.VERDICTS)
    assert "| all | " in questions.table(judged) and "| rounds 2 to 4 |" in questions.table(judged)
