"""gallery/scenes.py, painting.py and album.py: paintings depend on their scene alone, show what it
says, and are kept in a file as long as it fits."""
import argparse
import os
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from common.models import TINY
from gallery import album, painting
from gallery.scenes import (PALETTES, SAMPLES, SEEN_PAIRS, SETTINGS_OF, STYLES, SUBJECTS, THINGS,
                            UNSEEN_PAIRS, random_scenes)

SCENE = random_scenes(1, "test", SEEN_PAIRS + UNSEEN_PAIRS)[0]
SCENES = random_scenes(3, "album")

# ---- Scenes


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


# ---- Paintings


def test_paintings_are_the_same_to_the_bit_on_this_kind_of_machine():
    """The checksum is that of the shipped samples, which were painted by the first painter."""
    for scene in SAMPLES:
        file = TINY.parent.parent / "samples" / f"{scene.subject.replace(' ', '-')}.png"
        assert (scene.subject, scene.style) in SEEN_PAIRS
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(painting.paint(scene))), file


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


# ---- Albums


def test_paintings_are_painted_once_and_then_read_from_their_file(tmp_path, monkeypatch):
    state = torch.get_rng_state()
    first = album.painted(SCENES, tmp_path, size=56)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (3, 56, 56, 3)
    assert np.array_equal(first[1], np.asarray(painting.paint(SCENES[1], 56)))
    monkeypatch.setattr(album, "written_beside", None)
    again = album.painted(SCENES, tmp_path, size=56)
    assert np.array_equal(again, first) and again.filename == first.filename
    [file] = tmp_path.iterdir()
    assert file.stem.endswith(f"{zlib.crc32(np.ascontiguousarray(first)):08x}")


def test_a_damaged_file_and_one_of_another_painter_are_painted_again(tmp_path, monkeypatch):
    first = np.array(album.painted(SCENES, tmp_path, size=56))
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"\x80\x04N."):
        file.write_bytes(damaged)
        assert np.array_equal(album.painted(SCENES, tmp_path, size=56), first)
        assert file.read_bytes() == whole
    monkeypatch.setattr(album, "paint", lambda scene, size: np.zeros((size, size, 3), np.uint8))
    assert not album.painted(SCENES, tmp_path, size=56).any()
    assert len(list(tmp_path.iterdir())) == 1


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_do_not_outlive_a_killed_painter(tmp_path):
    program = ("from gallery import album, scenes\n"
               f"album.painted(scenes.random_scenes(5000, 'long'), {str(tmp_path)!r})\n")
    painter = subprocess.Popen([sys.executable, "-c", program])
    deadline, workers = time.monotonic() + 60, []
    while not workers and time.monotonic() < deadline:
        time.sleep(0.1)
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True)
        rows = [map(int, line.split()) for line in listed.stdout.splitlines()]
        workers = [pid for pid, parent in rows if parent == painter.pid]
    painter.send_signal(signal.SIGKILL)
    painter.wait()
    assert workers
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(running, workers))


def test_the_command_paints_the_samples_and_sheets_take_captions_of_any_length(tmp_path, capsys):
    album.main(argparse.Namespace(samples=tmp_path, file=None))
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["couple.png", "lighthouse.png", "sailing-boat.png"]
    assert "couple.png" in capsys.readouterr().out
    pictures = [Image.new("RGB", (64, 64), "red")] * 3
    bare = album.contact_sheet(pictures, 2)
    captioned = album.contact_sheet(pictures, 2, captions=["", "word " * 60, "short"])
    assert bare.width == captioned.width and captioned.height > bare.height + 100
