"""Two models on the same items: how much they differ, and how sure that is."""
from typing import NamedTuple

import numpy as np

DRAWS = 4000                                                  # of the bootstrap, and of signs


class Difference(NamedTuple):
    """The mean of one model minus that of another.

    low, high: the interval of the bootstrap. p: of a permutation test, two-sided. wins, ties,
    losses: items on which the first is better, equal, worse.
    """
    mean: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int


def weights_of(groups):
    """What an item counts in a mean of which each group is an equal part, (N,)."""
    _, place, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    return 1.0 / (len(sizes) * sizes[place])


def paired_difference(first, second, groups=None, level=0.95, draws=DRAWS):
    """The Difference of two models; None if no item has scores of both.

    first, second: (S, N) scores of N items, a row for each training seed or repeat of the judge;
    the models may have different S. NaN or None is no score. groups: N names, each an equal part of
    the mean; None: every item counts alike. level: of the interval.

    The bootstrap draws items within their groups, and each model's seeds. The test flips the signs
    of the items' differences, so it speaks of other items and of these very seeds: two methods that
    are equal differ by it often, where seeds differ.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    known = ~(np.isnan(first).any(axis=0) | np.isnan(second).any(axis=0))
    if not known.any():
        return None
    first, second = first[:, known], second[:, known]
    groups = np.zeros(known.sum()) if groups is None else np.asarray(groups)[known]
    weights = weights_of(groups)
    differences = first.mean(axis=0) - second.mean(axis=0)
    mean = float(weights @ differences)

    rng = np.random.default_rng(0)                            # the same report each time
    seeds = [model[rng.integers(len(model), size=(draws, len(model)))].mean(axis=1)
             for model in (first, second)]                    # each (draws, N)
    items = []
    for group in np.unique(groups):
        places = np.flatnonzero(groups == group)
        items.append(places[rng.integers(len(places), size=(draws, len(places)))])
    items = np.concatenate(items, axis=1)                     # (draws, N)
    drawn = np.take_along_axis(seeds[0] - seeds[1], items, axis=1)
    drawn = (weights[items] * drawn).sum(axis=1)
    low, high = np.quantile(drawn, (0.5 - level / 2, 0.5 + level / 2))

    signs = rng.choice((-1.0, 1.0), size=(draws, len(differences)))
    flipped = np.abs(signs @ (weights * differences))
    p = (1 + np.sum(flipped >= abs(mean) - 1e-12)) / (draws + 1)
    better, worse = differences > 1e-12, differences < -1e-12
    ties = len(differences) - better.sum() - worse.sum()
    return Difference(mean, float(low), float(high), float(p), int(better.sum()), int(ties),
                      int(worse.sum()))


def p_text(p):
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def cells(difference, digits=2, scale=1):
    """A Difference as four texts for a table: mean, interval, p, and wins, ties, losses."""
    if difference is None:
        return ["–"] * 4
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in difference[:3])
    counts = f"{difference.wins}, {difference.ties}, {difference.losses}"
    return [mean, f"{low} to {high}", p_text(difference.p), counts]


HEADING = ("difference", "95 % interval", "p", "wins, ties, losses")
