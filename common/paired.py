"""Two models on the same items: how much they differ, and how sure that is."""
from collections import namedtuple

import numpy as np

FEWEST_ITEMS = 8                                              # with fewer there is no interval
LEAN = 0.2          # items: how much a group's scatter leans on that of all; most where it has two
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
    weights = 1 / (len(sizes) * sizes[place])                 # (N,), their sum is 1
    models = first[:, known], second[:, known]
    differences = models[0].mean(axis=0) - models[1].mean(axis=0)        # (N,)
    mean, low, high = float(weights @ differences), None, None
    deviations = differences - (np.bincount(place, differences) / sizes)[place]
    squares, freedoms = np.bincount(place, deviations ** 2), np.maximum(sizes - 1, 1)
    pooled = squares.sum() / max(len(place) - len(sizes), 1)
    scatter = (squares + LEAN * pooled) / (sizes - 1 + LEAN)  # of a group's items
    parts = list(zip(scatter / sizes / len(sizes) ** 2, freedoms, strict=True))
    seeds = [scores @ weights for scores in models]           # (S,) each, which scatter alike
    squares = sum(((means - means.mean()) ** 2).sum() for means in seeds)
    freedom = max(sum(map(len, seeds)) - 2, 1)
    parts.append((squares / freedom * sum(1 / len(means) for means in seeds), freedom))
    variance = sum(part for part, _ in parts)
    if len(differences) >= FEWEST_ITEMS and variance > 1e-12:            # Welch, Satterthwaite
        both = variance ** 2 / sum(part ** 2 / freedom for part, freedom in parts)
        reach = student(0.95, both) * variance ** 0.5
        low, high = mean - reach, mean + reach
    signs = np.sign(differences.round(12)).tolist()
    return Difference(mean, low, high, *(signs.count(sign) for sign in (1, 0, -1)))


def student(level, freedom):
    """The t that Student's distribution does not exceed in size with probability `level`."""
    angles = np.linspace(0, np.pi / 2, 4_001)                 # t = sqrt(freedom) tan(angle)
    density = np.cos(angles) ** (freedom - 1)
    share = np.concatenate(([0], np.cumsum(density[1:] + density[:-1])))
    return freedom ** 0.5 * np.tan(np.interp(level, share / share[-1], angles))
