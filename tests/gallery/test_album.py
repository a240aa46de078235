"""gallery/album.py: paintings are kept in one file, as long as it fits."""
import os
import signal
import subprocess
import sys
import time

import numpy as np
import torch

from gallery import album
from gallery.painting import paint
from gallery.scenes import random_scenes

SCENES = random_scenes(3, "album")


def test_paintings_are_painted_once_and_then_read_from_their_file(tmp_path, monkeypatch):
    state = torch.get_rng_state()
    first = album.painted(SCENES, tmp_path, size=56)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (3, 56, 56, 3)
    assert np.array_equal(first[1], np.asarray(paint(SCENES[1], 56)))
    monkeypatch.setattr(album, "written_beside", None)
    again = album.painted(SCENES, tmp_path, size=56)
    assert np.array_equal(again, first) and again.filename == first.filename
    assert len(list(tmp_path.iterdir())) == 1


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


def children(pid):
    """The ids of the processes that `pid` has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(child) for child in found.stdout.split()]


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_do_not_outlive_a_killed_painter(tmp_path):
    program = ("from gallery import album, scenes\n"
               "if __name__ == '__main__':\n"
               f"    album.painted(scenes.random_scenes(5000, 'long'), {str(tmp_path)!r})\n")
    painter = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while not (workers := children(painter.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    painter.send_signal(signal.SIGKILL)
    painter.wait()
    assert workers
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(running, workers))
