"""gallery/: scenes, paintings, words, scores."""
import random
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from gallery import painting, score, words
from gallery.scenes import MOODS, PALETTES, SEEN_PAIRS, STYLES, SUBJECTS, UNSEEN_PAIRS, random_scenes

SCENES = random_scenes(60, "test", SEEN_PAIRS + UNSEEN_PAIRS)


def test_the_gallery_has_the_variety_it_claims_and_holds_a_pair_of_every_subject_out():
    assert len(SUBJECTS) >= 8 and len(STYLES) >= 6 and len(PALETTES) >= 6 and len(MOODS) >= 6
    assert {subject for subject, _ in UNSEEN_PAIRS} == set(SUBJECTS)
    assert {style for _, style in UNSEEN_PAIRS} == set(STYLES)
    assert not set(UNSEEN_PAIRS) & set(SEEN_PAIRS)
    assert len(UNSEEN_PAIRS) + len(SEEN_PAIRS) == len(SUBJECTS) * len(STYLES)


def test_random_scenes_cover_all_pairs_and_are_a_pure_function_of_the_seed():
    assert random_scenes(50, 7) == random_scenes(50, 7) != random_scenes(50, 8)
    assert {(scene.subject, scene.style) for scene in random_scenes(len(SEEN_PAIRS), 7)} == set(SEEN_PAIRS)


@pytest.mark.parametrize("style", STYLES)
def test_a_scene_is_painted_the_same_every_time_and_another_seed_differently(style):
    scene = replace(SCENES[0], style=style)
    first, again, other = (np.asarray(painting.paint(s)) for s in (scene, scene, replace(scene, seed=scene.seed + 1)))
    assert first.shape == (224, 224, 3) and np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 3


def test_palettes_differ_in_every_style():
    for style in STYLES:
        means = [np.asarray(painting.paint(replace(SCENES[0], style=style, palette=palette))).mean(axis=(0, 1))
                 for palette in PALETTES]
        apart = min(np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i])
        assert apart > 4, style


def test_the_plain_scene_does_not_depend_on_the_style():
    drawings = [np.asarray(painting.draw(replace(SCENES[0], style=style), 56)) for style in STYLES]
    assert drawings[0].shape == (56, 56, 3) and all(np.array_equal(drawings[0], other) for other in drawings)


def test_captions_and_descriptions_name_their_scene_and_nothing_else_of_the_kind():
    rng = random.Random(0)
    for scene in random_scenes(500, "words", SEEN_PAIRS + UNSEEN_PAIRS):
        caption, description = words.caption(scene, rng), words.description(scene, rng)
        assert words.named(caption) == words.named(description) == scene.attributes
        assert 8 <= len(caption.split()) <= 16 and 45 <= len(description.split()) <= 70


def test_questions_are_answered_by_the_scene():
    rng = random.Random(0)
    for scene in SCENES:
        asked = words.questions(scene, rng)
        answers = [answer for _, answer in asked]
        assert len(asked) == 6 and answers.count(words.page(scene)) == 1
        for attribute in ("subject", "style", "palette", "mood"):
            assert sum(words.named(answer)[attribute] == scene.attributes[attribute] for answer in answers) >= 2
        assert any(scene.composition in answer for answer in answers)


def test_an_answer_that_names_two_of_a_kind_or_none_names_nothing():
    assert words.named("A cat and a castle in oil.") == {"subject": None, "style": "oil", "palette": None, "mood": None}
    assert words.named("Catalogue of oily things")["subject"] is None


def test_pages_are_whole_html_in_the_paintings_own_colours():
    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append(tag)
    for scene in SCENES:
        page, seen = words.page(scene), []
        assert page.startswith("```html\n") and page.rstrip().endswith("```") and "###" not in page
        Tags().feed(page)
        assert {"title", "style", "h1", "p"} <= set(seen)
        for colour in vars(PALETTES[scene.palette]).values():
            assert colour in page
        assert words.named(page)["subject"] == scene.subject


def test_scores_count_what_texts_name_rightly():
    scenes = random_scenes(4, "score")
    texts = [words.caption(scene, random.Random(0)) for scene in scenes]
    assert score.named_rightly(scenes, texts) == dict.fromkeys((*score.ATTRIBUTES, "all"), 1.0)
    texts[0] = "nothing"
    assert score.named_rightly(scenes, texts) == dict.fromkeys((*score.ATTRIBUTES, "all"), 0.75)


def test_held_out_paintings_are_in_no_training_set():
    training = set(random_scenes(5000, "training"))
    assert not training & set(score.held_out(SEEN_PAIRS)) and len(score.held_out(UNSEEN_PAIRS)) == 200


def test_contact_sheets_take_captions_of_any_length():
    pictures = [Image.new("RGB", (64, 64), "red")] * 3
    bare = painting.contact_sheet(pictures, 2)
    captioned = painting.contact_sheet(pictures, 2, captions=["", "word " * 60, "short"])
    assert bare.width == captioned.width and captioned.height > bare.height + 100
