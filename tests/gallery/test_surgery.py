"""Surgery on image vectors: what is counted, of pairs whose truth is known."""
import numpy as np
import torch

from gallery.surgery import ATTRIBUTES, Pairs, heat_map, share_text, transplanted


def test_vectors_are_exchanged_in_copies_and_intervals_are_wilsons():
    first, other = torch.zeros(3, 2), torch.ones(3, 2)
    rows = transplanted(first, other, [[0], [1, 2]])
    assert rows[..., 0].tolist() == [[1, 0, 0], [0, 1, 1]] and not first.any()
    assert share_text(np.arange(10) < 8, np.ones(10, bool)) == "80 % (49 to 94)"


def test_all_vectors_together_tell_the_other_painting(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = Pairs(tiny, 4)
    assert pairs.moved(list(range(16)), np.arange(4))[pairs.usable].all()
    assert (pairs.told([], pairs.other, [0, 2]) == pairs.truth[[0, 2]])[pairs.usable[[0, 2]]].all()
    assert heat_map(np.eye(16)[:, :6]).size == (80 + 80 * len(ATTRIBUTES), 26 + 22 * 16)
