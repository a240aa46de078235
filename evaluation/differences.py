"""Models compared item by item: a table of paired differences between every two of them."""
import itertools

from common.paired import HEADING, cells, paired_difference
from evaluation.rubrics import BENCHMARKS, PAGES
from evaluation.tables import OVERALL, Table

NOTES = (
    "Differences are paired: the same items, first model minus second. Intervals are of a "
    "bootstrap over items, within their benchmark, and over training seeds and repeats of the "
    "judge where there are several. p is of a permutation test that flips the signs of the items' "
    "differences.",
    "Many pairs are compared here, so some small p are to be expected by chance.")


def matrix(scores, items):
    """(samples, items) of {benchmark: {number: samples}}."""
    return list(zip(*(scores[benchmark][number] for benchmark, number in items), strict=True))


def difference_table(scores):
    """The Table of {name: {benchmark: {number: samples}}}; None for fewer than two models.

    The overall difference gives each benchmark a quarter, and needs all four.
    """
    lines = []
    for first, second in itertools.combinations(scores, 2):
        there = [name for name in (*BENCHMARKS, PAGES) if name in scores[first]]
        parts = {name: [name] for name in there}
        if set(BENCHMARKS) <= set(there):
            parts = {OVERALL: list(BENCHMARKS)} | parts
        for part, benchmarks in parts.items():
            items = [(name, number) for name in benchmarks for number in scores[first][name]]
            found = paired_difference(matrix(scores[first], items), matrix(scores[second], items),
                                      [name for name, _ in items])
            lines.append([f"{first} – {second}", part, *cells(found)])
    if not lines:
        return None
    return Table("Paired differences", ["models", "benchmark", *HEADING], lines)
