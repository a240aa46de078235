"""Scores into averages and the paper's tables, and the scores that the paper published."""
import statistics
from typing import NamedTuple

from evaluation.rubrics import BENCHMARKS, PAGES, RUBRICS

OVERALL = "overall"                                           # the mean of the four, 25 % each

# The scores of the paper's tables 1 to 3, item by item, and the averages as it prints them.
PUBLISHED = {
    "GPT-4": {
        "IDC": (4, 4, 4, 4, 4, 3, 4, 5, 4, 5),
        "ISAC": (3, 4, 3, 3, 3, 3, 3, 3, 3, 3),
        "ICRC": (3, 3, 3, 3, 3),
        "MDIUC": (4, 4),
    },
    "MiniGPT-4": {
        "IDC": (2, 3, 3, 1, 2, 2, 4, 3, 3, 3),
        "ISAC": (2, 3, 2, 3, 2, 2, 2, 2, 3, 2),
        "ICRC": (1, 2, 2, 2, 2),
        "MDIUC": (3, 2),
    },
    "ArtGPT-4": {
        "IDC": (4, 4, 3, 4, 4, 3, 4, 5, 3, 4),
        "ISAC": (3, 3, 1, 3, 3, 3, 3, 3, 3, 3),
        "ICRC": (3, 4, 2, 3, 3),
        "MDIUC": (4, 4),
    },
}
PRINTED = {                                                   # IDC, ISAC, ICRC, MDIUC, overall
    "GPT-4": (4.1, 3.1, 3, 4, 3.55),
    "MiniGPT-4": (2.6, 2.3, 1.8, 2.5, 2.35),
    "ArtGPT-4": (3.8, 2.8, 3, 4, 3.4),
}
PRINTED_DISTANCES = (0.25, 0.15)              # of ArtGPT-4 to GPT-4, each in one place of the paper
TABLES = (("IDC",), ("ISAC",), ("ICRC", "MDIUC"))             # the benchmarks of tables 1, 2 and 3

# ---- Sums


class Row(NamedTuple):
    """A model in the tables.

    items: {benchmark: {number: mean score or None}}. averages, spreads (the standard deviation
    over training seeds and repeats): {benchmark or OVERALL: value or None}.
    """
    name: str
    items: dict
    averages: dict
    spreads: dict


def mean(values):
    """The mean of the values that are not None; None if there are none."""
    values = [value for value in values if value is not None]
    return statistics.fmean(values) if values else None


def averages_of(items):
    """{benchmark or OVERALL: mean}; there is no overall mean if a benchmark has none."""
    averages = {name: mean(items.get(name, {}).values()) for name in BENCHMARKS}
    averages[OVERALL] = None if None in averages.values() else mean(averages.values())
    if PAGES in items:
        averages[PAGES] = mean(items[PAGES].values())
    return averages


def summary(name, scores):
    """The Row of scores {benchmark: {number: samples}}.

    samples: a score or None for each training seed and repeat, the same number for every item.
    """
    def reduced(function):
        return {benchmark: {number: function(samples) for number, samples in items.items()}
                for benchmark, items in scores.items()}

    items = reduced(mean)
    first_items = next(iter(scores.values()))
    count = len(next(iter(first_items.values())))
    each = [averages_of(reduced(lambda samples, i=i: samples[i])) for i in range(count)]
    spreads = {}
    for key in each[0]:
        values = [averages[key] for averages in each if averages[key] is not None]
        spreads[key] = statistics.stdev(values) if len(values) > 1 else None
    return Row(name, items, averages_of(items), spreads)


# ---- Published scores


def published_rows():
    """The paper's models, as Rows with one sample an item."""
    rows = []
    for name, benchmarks in PUBLISHED.items():
        scores = {benchmark: {number: [score] for number, score in enumerate(row, start=1)}
                  for benchmark, row in benchmarks.items()}
        rows.append(summary(name, scores))
    return rows


def published_notes():
    """Where the averages in the paper differ from those of its own items."""
    rows, notes = {row.name: row for row in published_rows()}, []
    for name, row in rows.items():
        for key, printed in zip((*BENCHMARKS, OVERALL), PRINTED[name], strict=True):
            if abs(printed - row.averages[key]) > 0.005:
                notes.append(f"The paper prints {printed:.2f} for {name}, {key}; its items give "
                             f"{row.averages[key]:.2f}.")
    distance = rows["GPT-4"].averages[OVERALL] - rows["ArtGPT-4"].averages[OVERALL]
    printed = " and ".join(f"{value:.2f}" for value in PRINTED_DISTANCES)
    notes.append(f"As ArtGPT-4's distance to GPT-4 the paper prints both {printed}; its items "
                 f"give {distance:.2f}.")
    return notes


# ---- Tables


class Table(NamedTuple):
    caption: str
    heading: list
    lines: list                                               # of cells, the model first


def item_text(score):
    return "–" if score is None else f"{round(score, 2):g}"


def average_text(row, key):
    average, spread = row.averages[key], row.spreads[key]
    if average is None:
        return "–"
    if spread is None:
        return f"{average:.2f}"
    return f"{average:.2f} ± {spread:.2f}"


def item_columns(rows, benchmark, prefix=""):
    """(heading, lines) of one benchmark: its items by number, and the average."""
    numbers = sorted({number for row in rows for number in row.items.get(benchmark, ())})
    heading = [f"{prefix}{number}" for number in numbers] + [f"{prefix}average"]
    lines = []
    for row in rows:
        items = row.items.get(benchmark, {})
        cells = [item_text(items[number]) if number in items else "" for number in numbers]
        lines.append([*cells, average_text(row, benchmark)])
    return heading, lines


def item_table(rows, place, benchmarks):
    """The Table of what the paper has at `place`, with one benchmark or two side by side."""
    heading, lines = ["model"], [[row.name] for row in rows]
    for benchmark in benchmarks:
        prefix = f"{benchmark} " if len(benchmarks) > 1 else ""
        names, columns = item_columns(rows, benchmark, prefix)
        heading += names
        for line, cells in zip(lines, columns, strict=True):
            line += cells
    names = " and ".join(f"{RUBRICS[benchmark][0]} ({benchmark})" for benchmark in benchmarks)
    return Table(f"{place}: {names}", heading, lines)


def overall_table(rows):
    keys = (*BENCHMARKS, OVERALL)
    lines = [[row.name, *(average_text(row, key) for key in keys)] for row in rows]
    return Table("Overall: the mean of the four, 25 % each", ["model", *keys], lines)


def tables(rows):
    """The paper's tables 1 to 3, one for web pages if there are any, the overall scores last."""
    found = [item_table(rows, f"Table {i}", names) for i, names in enumerate(TABLES, start=1)]
    with_pages = [row for row in rows if PAGES in row.items]
    if with_pages:
        found.append(item_table(with_pages, "Figure 5", (PAGES,)))
    return [*found, overall_table(rows)]
