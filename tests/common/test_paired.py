"""Paired differences: cases that can be worked out, and how often the intervals hold."""
import numpy as np
import pytest

from common.paired import paired_difference, student
from evaluation.report import cells

PAPER = np.repeat(("IDC", "ISAC", "ICRC", "MDIUC"), (10, 10, 5, 2))


def test_students_t_is_that_of_the_tables():
    found = [student(level, freedom) for level, freedom in ((0.95, 1), (0.95, 23), (0.99, 8))]
    assert found == pytest.approx([12.706, 2.0687, 3.3554], rel=1e-4)


def test_the_interval_of_one_group_is_the_paired_t_interval():
    differences = np.random.default_rng(1).normal(0.3, 1, size=40)
    found = paired_difference([differences], [np.zeros(40)])
    reach = 2.0227 * differences.std(ddof=1) / 40 ** 0.5
    expected = [differences.mean(), differences.mean() - reach, differences.mean() + reach]
    assert found[:3] == pytest.approx(expected, abs=1e-4)


def test_groups_are_equal_parts_whatever_their_size_and_none_may_be_empty():
    found = paired_difference([[1, 1, 1, 0]], [[0, 0, 0, 2]], ["a", "a", "a", "b"])
    assert found.mean == (1 - 2) / 2 and found[3:] == (3, 0, 1)
    assert paired_difference([[1, 1, 1, None]], [[0, 0, 0, 2]], ["a", "a", "a", "b"]) is None
    found = paired_difference([[1, None, 4]], [[0, 0, float("nan")]])
    assert found.mean == 1 and found[3:] == (1, 0, 0)


@pytest.mark.parametrize("items, scatter, given", [(7, 1, False), (8, 0, False), (8, 1, True)])
def test_there_is_no_interval_for_too_few_items_or_without_scatter(items, scatter, given):
    found = paired_difference([np.ones(items)], [scatter * np.arange(float(items))])
    assert (found.low is not None) == (cells(found)[1] != "–") == given


def test_a_difference_as_cells():
    assert cells(None) == ["–"] * 3
    assert cells(paired_difference([[1, 1, 0]], [[1, 0, 1]])) == ["+0.00", "–", "1, 1, 1"]


@pytest.mark.parametrize("groups, seeds, spread, whole", [
    (PAPER, 1, 0, True), (PAPER, 3, 0.3, True), (np.zeros(14), 3, 1, False)])
def test_95_percent_intervals_hold_in_93_to_97_percent(groups, seeds, spread, whole):
    """Of 1,000 comparisons of two equal models. spread: of training seeds, beside 1 of items;
    whole: scores are whole numbers from 0 to 5."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(1000):
        scores = rng.normal(3, 1, len(groups)) + rng.normal(0, 0.7, (2, 1, len(groups)))
        scores = scores + rng.normal(0, 0.3, (2, seeds, len(groups)))
        scores += rng.normal(0, spread, (2, seeds, 1))
        found = paired_difference(*(scores.round().clip(0, 5) if whole else scores), groups)
        held += found.low is None or found.low <= 0 <= found.high
    assert 930 <= held <= 970
