"""Paired differences: their mean, interval, p and counts, against cases that can be worked out."""
import numpy as np
import pytest

from common.paired import cells, p_text, paired_difference


def test_models_that_are_equal_do_not_differ():
    found = paired_difference([[1, 2, 3]], [[1, 2, 3]])
    assert found == (0, 0, 0, 1, 0, 3, 0)


def test_a_difference_that_every_item_has_is_certain():
    scores = np.arange(12.0)
    found = paired_difference([scores + 1], [scores])
    assert found[:3] == pytest.approx((1, 1, 1)) and found.p < 0.003
    assert (found.wins, found.ties, found.losses) == (12, 0, 0)


def test_the_permutation_test_counts_the_signs_that_do_as_much():
    found = paired_difference([[1, 1, 1]], [[0, 0, 0]])       # 2 of 8 signs: all plus, all minus
    assert found.p == pytest.approx(0.25, abs=0.03)


def test_the_interval_is_that_of_the_mean_of_the_items():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.3, 1, size=400)
    found = paired_difference([differences], [np.zeros(400)])
    half = 1.96 * differences.std() / 20
    assert found.mean == pytest.approx(differences.mean())
    assert found.high - found.mean == pytest.approx(half, rel=0.1)
    assert found.mean - found.low == pytest.approx(half, rel=0.1)


def test_groups_are_equal_parts_whatever_their_size():
    found = paired_difference([[1, 1, 1, 0]], [[0, 0, 0, 2]], ["a", "a", "a", "b"])
    assert found.mean == pytest.approx((1 - 2) / 2)


def test_seeds_widen_the_interval_and_missing_scores_leave_out_their_item():
    same, other = [[1.0] * 6], [[0.0] * 6, [2.0] * 6]
    found = paired_difference(same, other)
    assert found[:3] == pytest.approx((0, -1, 1))
    found = paired_difference([[1, None, 4]], [[0, 0, float("nan")]])
    assert found.mean == 1 and found.wins == 1 and found.ties == 0
    assert paired_difference([[None]], [[1]]) is None


def test_a_difference_as_cells():
    assert p_text(0.0002) == "< 0.001"
    assert cells(None) == ["–"] * 4
    found = paired_difference([[1, 1, 0]], [[1, 0, 1]])
    assert cells(found)[0] == "+0.00" and cells(found)[3] == "1, 1, 1"
    assert cells(found, 1, 100)[0] == "+0.0"
