"""gallery/scenes.py, painting.py, album.py: paintings depend on their scene alone, show what it
says, and are kept in a file as long as it fits."""
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from common.models import TINY
from gallery import album, painting
from gallery.scenes import (PALETTES, SEEN_PAIRS, SETTINGS_OF, STYLES, SUBJECTS, THINGS,
                            UNSEEN_PAIRS, Scene, random_scenes)

SCENE = random_scenes(1, "test", SEEN_PAIRS + UNSEEN_PAIRS)[0]
SCENES = random_scenes(3, "album")
SAMPLES = {  # of samples/: held out; weights/tiny describes them rightly, in 20 of 20 answers
    "couple": Scene("couple", "oil", "rose", "in the centre", 12),
    "lighthouse": Scene("lighthouse", "woodcut", "storm", "to the right", 8),
    "sailing-boat": Scene("sailing boat", "oil", "ember", "in the centre", 3)}


def test_one_style_of_every_subject_is_held_out_and_random_scenes_cover_the_others():
    assert dict(UNSEEN_PAIRS).keys() == set(SUBJECTS) and not set(UNSEEN_PAIRS) & set(SEEN_PAIRS)
    assert len(UNSEEN_PAIRS) + len(SEEN_PAIRS) == len(SUBJECTS) * len(STYLES)
    assert random_scenes(50, 7) == random_scenes(50, 7) != random_scenes(50, 8)
    scenes = random_scenes(len(SEEN_PAIRS), 7, alone=0)
    assert {(scene.subject, scene.style) for scene in scenes} == set(SEEN_PAIRS)
    for scene in scenes:
        assert len(scene.things) in (1, 2, 3) and scene.setting in SETTINGS_OF[scene.subject]
        assert all(scene.setting in THINGS[thing] for thing in scene.things)


@pytest.mark.parametrize("style", STYLES)
def test_another_seed_and_another_palette_are_other_paintings(style):
    scene = replace(SCENE, style=style)
    first, again = (np.asarray(painting.paint(scene)) for _ in range(2))
    other = np.asarray(painting.paint(replace(scene, seed=scene.seed + 1)))
    assert first.shape == (224, 224, 3) and np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 3
    pictures = [painting.paint(replace(scene, palette=palette)) for palette in PALETTES]
    means = [np.asarray(picture).mean(axis=(0, 1)) for picture in pictures]
    assert min(np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i]) > 4
    plain = [np.asarray(painting.draw(row, 56)) for row in (scene, SCENE)]
    assert np.array_equal(*plain)                             # does not depend on the style


def test_the_subject_and_every_thing_can_be_seen():
    for scene in random_scenes(40, "seen", alone=0):
        plate = painting.render(scene, 112)
        for name in (scene.subject, *scene.things):
            share = plate.per_shape(lambda shape, name=name: shape.name == name).mean()
            assert share > (0.004 if name in THINGS else 0.02), (scene, name)


def test_the_shipped_samples_are_what_is_painted():
    files = {file.stem: file for file in (TINY.parent.parent / "samples").glob("*.png")}
    assert files.keys() == SAMPLES.keys()
    for name, scene in SAMPLES.items():
        assert np.array_equal(painting.paint(scene), Image.open(files[name])), name


def test_an_album_is_painted_once_and_again_if_it_does_not_fit(tmp_path, monkeypatch):
    state = torch.get_rng_state()
    first = album.painted(SCENES, tmp_path)
    name, first = first.filename, np.array(first)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(first[1], np.asarray(painting.paint(SCENES[1])))
    with monkeypatch.context() as patch:
        patch.setattr(album, "written_beside", None)
        assert album.painted(SCENES, tmp_path).filename == name
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"\x80\x04N."):
        file.write_bytes(damaged)
        assert np.array_equal(album.painted(SCENES, tmp_path), first)
        assert file.read_bytes() == whole
    monkeypatch.setattr(album, "paint", lambda scene: np.zeros((224, 224, 3), np.uint8))
    other = album.painted(SCENES, tmp_path)          # another painter
    assert not other.any() and other.filename != name and len(list(tmp_path.iterdir())) == 1


def test_workers_do_not_outlive_a_killed_painter(tmp_path):
    program = ("from gallery import album, scenes\n"
               f"album.painted(scenes.random_scenes(5000, 'long'), {str(tmp_path)!r})\n")
    painter = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
    painter.stderr.readline()                                 # the first is painted
    listed = subprocess.check_output(["ps", "-A", "-o", "ppid="], text=True).split()
    assert str(painter.pid) in listed
    painter.kill()
    painter.communicate(timeout=30)                           # the workers hold the pipe
