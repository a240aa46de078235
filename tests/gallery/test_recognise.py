"""gallery/recognise.py: which topics an answer may belong to."""
import itertools
import random

import pytest

from gallery import words
from gallery.recognise import belongs, is_broken
from gallery.scenes import SEEN_PAIRS, UNSEEN_PAIRS, random_scenes

TOPICS = ("description", *words.TOPICS)
SCENES = random_scenes(90, "recognise", SEEN_PAIRS + UNSEEN_PAIRS)


def test_all_that_the_gallery_says_belongs_to_its_topic_alone():
    rng = random.Random(0)
    for scene in SCENES:
        for topic in TOPICS:
            _, answer = words.question(topic, scene, rng)
            assert [other for other in TOPICS if belongs(answer, other)] == [topic], answer
    for pair in itertools.pairwise(SCENES):
        for topic in words.PAIR_TOPICS:
            assert belongs(words.pair_question(topic, pair, rng)[1], topic)


@pytest.mark.parametrize("text", [
    "", "cat", "I think that the couple how was this image in the shade.",
    "The picture does not say", "It is a cat: two pointed ears frame the", "Yes, there is."])
def test_what_the_grammar_cannot_produce_is_broken(text):
    assert is_broken(text, (*TOPICS, *words.PAIR_TOPICS))
