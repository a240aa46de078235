"""gallery/album.py: paintings are kept in one file."""
import numpy as np

from gallery import album, painting
from gallery.scenes import random_scenes


def test_paintings_are_painted_once_and_then_read_from_their_file(tmp_path, monkeypatch):
    scenes = random_scenes(3, "album")
    first = album.painted(scenes, tmp_path, size=56)
    assert first.shape == (3, 56, 56, 3)
    assert np.array_equal(first[1], np.asarray(painting.paint(scenes[1], 56)))
    monkeypatch.delattr(painting, "paint")
    assert np.array_equal(album.painted(scenes, tmp_path, size=56), first)
    assert len(list(tmp_path.iterdir())) == 1
