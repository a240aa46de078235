"""Two models on the same items: how much they differ, and how sure that is."""
from collections import namedtuple

import numpy as np

FEWEST_ITEMS = 8                                              # with fewer there is no interval
LEAN = 0.2          # items: how much a group's scatter leans on that of all; most where it has two
HEADING = ("difference", "95 % interval", "wins, ties, losses")
Difference = namedtuple("Difference", "mean low high wins ties losses")    # of the first model


def paired_difference(first, second, groups=None):
    """The Difference of two models: the mean of first minus second, its interval of 95 % (None for
    fewer than FEWEST_ITEMS items, or if all differ alike), by Student's t over items and, where
    there are several, over seeds, and how many items each won. None if a group has no item with
    scores of both.

    first, second: (S, N) scores of N items, a row for each training seed; the models may have
    different S. Repeats of a judge are no seeds: average them first. NaN or None is no score.
    groups: N names, each an equal part of the mean; None: every item counts alike.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    groups = np.zeros(first.shape[1]) if groups is None else np.asarray(groups)
    known = ~np.isnan(first.sum(axis=0) + second.sum(axis=0))
    names, place, sizes = np.unique(groups[known], return_inverse=True, return_counts=True)
    if len(names) < max(len(np.unique(groups)), 1):
        return None
    first, second = first[:, known], second[:, known]
    weights = 1 / (len(sizes) * sizes[place])                 # (N,), their sum is 1
    differences = first.mean(axis=0) - second.mean(axis=0)    # (N,)
    mean, low, high = float(weights @ differences), None, None
    variance, freedom = uncertainty(first, second, weights, place)
    if len(differences) >= FEWEST_ITEMS and variance > 1e-12:
        reach = student(0.95, freedom) * variance ** 0.5
        low, high = mean - reach, mean + reach
    signs = np.sign(differences.round(12)).tolist()
    return Difference(mean, low, high, *(signs.count(sign) for sign in (1, 0, -1)))


def uncertainty(first, second, weights, place):
    """(variance of the mean difference, its degrees of freedom by Welch and Satterthwaite).

    weights (N,); place (N,): the number of each item's group. Items scatter within their group;
    seeds around their model's mean. What both count is taken out once.
    """
    differences, sizes = first.mean(axis=0) - second.mean(axis=0), np.bincount(place)
    deviations = differences - (np.bincount(place, differences) / sizes)[place]
    squares, freedoms = np.bincount(place, deviations ** 2), np.maximum(sizes - 1, 1)
    pooled = squares.sum() / max(len(place) - len(sizes), 1)
    scatter = (squares + LEAN * pooled) / (sizes - 1 + LEAN)
    parts = scatter / sizes / len(sizes) ** 2
    variance = items = parts.sum()
    seeds = len(first) + len(second) - 2
    if seeds:
        squares = shared = 0.0
        for model in (first, second):
            means = model @ weights                           # (S,)
            squares += ((means - means.mean()) ** 2).sum()
            rest = model - model.mean(axis=0) - (means - means.mean())[:, None]
            shared += (rest ** 2 @ weights ** 2).sum() / max(len(model) - 1, 1) / len(model)
        part = squares / seeds * (1 / len(first) + 1 / len(second))
        variance = max(items + part - shared, items)
        parts, freedoms = np.append(parts, part), np.append(freedoms, seeds)
    return variance, parts.sum() ** 2 / max((parts ** 2 / freedoms).sum(), 1e-30)


def student(level, freedom):
    """The t that Student's distribution does not exceed in size with probability `level`."""
    angles = np.linspace(0, np.pi / 2, 4_001)                 # t = sqrt(freedom) tan(angle)
    density = np.cos(angles) ** (freedom - 1)
    share = np.concatenate(([0], np.cumsum(density[1:] + density[:-1])))
    return freedom ** 0.5 * np.tan(np.interp(level, share / share[-1], angles))


def cells(difference, digits=2, scale=1):
    """A Difference as three texts for a table: mean, interval, and wins, ties, losses."""
    if difference is None:
        return ["–"] * 3
    mean, low, high, *counts = difference
    ends = [] if low is None else [f"{scale * value:+.{digits}f}" for value in (low, high)]
    return [f"{scale * mean:+.{digits}f}", " to ".join(ends) or "–", ", ".join(map(str, counts))]
