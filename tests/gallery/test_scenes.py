"""gallery/scenes.py: the attributes, the pairs held out, and random scenes."""
from gallery.scenes import (MOODS, PALETTES, SEEN_PAIRS, SETTINGS_OF, STYLES, SUBJECTS, THINGS,
                            UNSEEN_PAIRS, random_scenes)


def test_the_gallery_has_the_variety_it_claims():
    assert len(SUBJECTS) >= 8 and len(STYLES) >= 6 and len(PALETTES) >= 6 and len(MOODS) >= 6


def test_one_style_of_every_subject_is_held_out():
    assert {subject for subject, _ in UNSEEN_PAIRS} == set(SUBJECTS)
    assert {style for _, style in UNSEEN_PAIRS} == set(STYLES)
    assert not set(UNSEEN_PAIRS) & set(SEEN_PAIRS)
    assert len(UNSEEN_PAIRS) + len(SEEN_PAIRS) == len(SUBJECTS) * len(STYLES)


def test_random_scenes_cover_all_pairs_and_depend_on_the_seed_alone():
    assert random_scenes(50, 7) == random_scenes(50, 7) != random_scenes(50, 8)
    scenes = random_scenes(len(SEEN_PAIRS), 7)
    assert {(scene.subject, scene.style) for scene in scenes} == set(SEEN_PAIRS)


def test_things_stand_only_in_settings_that_suit_them():
    for scene in random_scenes(300, "things", alone=0):
        assert len(scene.things) in (1, 2, 3)
        assert all(scene.setting in THINGS[thing] for thing in scene.things)
        assert scene.setting in SETTINGS_OF[scene.subject]
