"""gallery/painting.py: paintings depend on their scene alone and show what it says."""
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from gallery import painting
from gallery.scenes import PALETTES, SEEN_PAIRS, STYLES, THINGS, UNSEEN_PAIRS, random_scenes

SCENE = random_scenes(1, "test", SEEN_PAIRS + UNSEEN_PAIRS)[0]


@pytest.mark.parametrize("style", STYLES)
def test_a_scene_is_painted_the_same_every_time_and_another_seed_differently(style):
    scene = replace(SCENE, style=style)
    first = np.asarray(painting.paint(scene))
    again = np.asarray(painting.paint(scene))
    other = np.asarray(painting.paint(replace(scene, seed=scene.seed + 1)))
    assert first.shape == (224, 224, 3) and np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 3


@pytest.mark.parametrize("style", STYLES)
def test_palettes_differ_in_every_style(style):
    scenes = [replace(SCENE, style=style, palette=palette) for palette in PALETTES]
    pictures = [painting.paint(scene) for scene in scenes]
    means = [np.asarray(picture).mean(axis=(0, 1)) for picture in pictures]
    apart = min(np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i])
    assert apart > 4


def test_the_plain_scene_does_not_depend_on_the_style():
    drawings = [np.asarray(painting.draw(replace(SCENE, style=style), 56)) for style in STYLES]
    assert drawings[0].shape == (56, 56, 3)
    assert all(np.array_equal(drawings[0], other) for other in drawings)


def test_the_subject_and_every_thing_can_be_seen():
    for scene in random_scenes(40, "seen", alone=0):
        plate = painting.render(scene, 112)
        for name in (scene.subject, *scene.things):
            share = plate.per_shape(lambda shape, name=name: shape.name == name).mean()
            assert share > (0.004 if name in THINGS else 0.02), (scene, name)


def test_contact_sheets_take_captions_of_any_length():
    pictures = [Image.new("RGB", (64, 64), "red")] * 3
    bare = painting.contact_sheet(pictures, 2)
    captioned = painting.contact_sheet(pictures, 2, captions=["", "word " * 60, "short"])
    assert bare.width == captioned.width and captioned.height > bare.height + 100
