"""gallery/words.py, its grammar and phrases: what is said of a scene, and what a text names."""
import random
from html.parser import HTMLParser

from gallery import words
from gallery.scenes import PALETTES, SEEN_PAIRS, THINGS, UNSEEN_PAIRS, random_scenes

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
        for attribute in ("subject", "style", "palette", "mood"):
            named = [words.named(answer)[attribute] for answer in answers]
            assert named.count(scene.attributes[attribute]) >= 2
        assert any(scene.composition in answer for answer in answers)
        assert len({question for question, _ in words.dialogue(scene, rng)}) == 5


def test_an_answer_that_names_two_of_a_kind_or_none_names_nothing():
    nothing_else = {"subject": None, "palette": None, "mood": None}
    assert words.named("A cat and a castle in oil.") == nothing_else | {"style": "oil"}
    assert words.named("Catalogue of oily things")["subject"] is None


def test_pages_are_whole_html_in_the_paintings_own_colours():
    for scene in SCENES:
        page, tags = words.page(scene), Tags()
        assert page.startswith("```html\n") and page.rstrip().endswith("```") and "###" not in page
        tags.feed(page)
        assert {"title", "style", "h1", "p"} <= tags.seen
        for colour in vars(PALETTES[scene.palette]).values():
            assert colour in page
        assert words.named(page)["subject"] == scene.subject
