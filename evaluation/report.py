"""Scores into tables and a report; and the tables that the paper published.

scores: {model: (S, N)}, a row for each training seed, NaN where there is none. benchmarks (N,): the
name of each item's. A table is (caption, heading, lines of texts).
"""
import itertools
from html import escape

import numpy as np

from common.command_line import markdown_table
from common.files import written_beside
from common.paired import paired_difference
from evaluation.answers import BENCHMARKS
from evaluation.judges import answer_id, card, read_scores
from explanation.figures import html_table, page, paragraph

OVERALL = "overall"                                           # the mean of the four, a quarter each
HEADING = ("difference", "95 % interval", "wins, ties, losses")

# The scores of the paper's tables 1 to 3, item by item, and the averages as it prints them.
PUBLISHED = {
    "GPT-4": ("4444434545", "3433333333", "33333", "44"),
    "ArtGPT-4": ("4434434534", "3313333333", "34233", "44"),
    "MiniGPT-4": ("2331224333", "2323222232", "12222", "32"),
}
PRINTED = {"GPT-4": (4.1, 3.1, 3, 4, 3.55), "ArtGPT-4": (3.8, 2.8, 3, 4, 3.4),
           "MiniGPT-4": (2.6, 2.3, 1.8, 2.5, 2.35)}
# ISAC in the judge's log that the authors released: items 6 and 9 are not the printed ones
LOG = {"ArtGPT-4": (3, 3, 1, 3, 3, 2, 3, 3, 2.5, 3), "MiniGPT-4": (2, 3, 2, 3, 2, 1, 2, 2, 2.5, 2)}
NOTES = (
    "Differences are paired: the same items, first model minus second. Intervals are Student's t, "
    "over items within their benchmark, and over training seeds where there are several; with one "
    "seed they speak of these very weights. There is none below 8 items. Repeats of a judge are "
    "averaged first. Where many pairs are compared, some intervals leave zero out by chance. No "
    "overall score without all four benchmarks.",
    "Weighted kappa (quadratic): 1 where two judges agree, 0 where they do no more than by chance.")


# ---- Averages and differences

def averages(scores, benchmarks):
    """{benchmark or OVERALL: (S,) means of what was judged} of (S, N); NaN where nothing was."""
    judged, names = np.ma.masked_invalid(scores), np.array(benchmarks)
    found = {name: judged[:, names == name].mean(axis=1).filled(np.nan) for name in BENCHMARKS}
    return found | {OVERALL: np.mean(list(found.values()), axis=0)}


def average_table(caption, scores, benchmarks):
    """Each model's averages; with several seeds, their standard deviation too."""
    lines = []
    for name, found in scores.items():
        lines.append([name])
        for values in averages(found, benchmarks).values():
            spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
            lines[-1].append("–" if np.isnan(values).any() else f"{values.mean():.2f}{spread}")
    return caption, ["model", *BENCHMARKS, OVERALL], lines


def cells(difference):
    """A Difference as three texts for a table: mean, interval, and wins, ties, losses."""
    if difference is None:
        return ["–"] * 3
    mean, low, high, *counts = difference
    interval = "–" if low is None else f"{low:+.2f} to {high:+.2f}"
    return [f"{mean:+.2f}", interval, ", ".join(map(str, counts))]


def difference_table(scores, benchmarks):
    """Every two models, overall and by benchmark. No overall difference without all four."""
    lines, benchmarks = [], np.array(benchmarks)
    for (name, first), (other, second) in itertools.combinations(scores.items(), 2):
        for part in (OVERALL, *dict.fromkeys(benchmarks)):
            here = (benchmarks == part) | (part == OVERALL)
            found = paired_difference(first[:, here], second[:, here], benchmarks[here])
            whole = part != OVERALL or set(BENCHMARKS) <= set(benchmarks)
            lines.append([f"{name} – {other}", part, *cells(found if whole else None)])
    return "Paired differences", ["models", "benchmark", *HEADING], lines


# ---- Judges

def agreement_table(means):
    """Every two judges, of {judge: {id: mean score}}."""
    lines = []
    for (judge, first), (other, second) in itertools.combinations(means.items(), 2):
        pairs = np.array([(first[id], second[id]) for id in first.keys() & second.keys()])
        if len(pairs):
            a, b = pairs.T
            chance = ((a[:, None] - b) ** 2).mean()
            kappa = f"{1 - ((a - b) ** 2).mean() / chance:.2f}" if chance else "–"
            lines.append([f"{judge} – {other}", len(pairs), kappa, f"{(a - b).mean():+.2f}",
                          f"{(a == b).mean():.0%}"])
    heading = ["judges", "answers", "weighted kappa", "mean difference", "the same score"]
    return "Agreement of the judges", heading, lines


def letter_table(records, names):
    """What the letter A was worth to judges of two answers at a time, in points: each pair is
    judged in both orders. records: see read_scores; names: {id: item name}."""
    lines, pairs = [], {}                          # {judge: {item name: [(score of A, of B)]}}
    for (judge, ids, repeat), verdicts in records.items():
        if len(verdicts) == 2 and (judge, ids[::-1], repeat) in records:
            scores = pairs.setdefault(judge, {}).setdefault(names[ids[0]], [])
            scores.append([score for score, _ in verdicts])
    for judge, found in pairs.items():
        first, second = np.array([np.mean(scores, axis=0) for scores in found.values()]).T
        lines.append([judge, *cells(paired_difference([first], [second]))])
    return "What the letter A was worth", ["judge", *HEADING], lines


# ---- The report

def write_report(out, folder, items, columns):
    """Write out/report.md, the tables of all judges in out/scores.jsonl, and out/report.html, the
    answers too. Returns the text of the first. folder: that of the benchmark."""
    benchmarks, verdicts, records = [item.benchmark for item in items], {}, {}
    ids = [[answer_id(item, column.answers[item.name]) for item in items] for column in columns]
    names = {id: item.name for row in ids for id, item in zip(row, items, strict=True)}
    for (judge, group, repeat), row in read_scores(out / "scores.jsonl").items():
        if row and names.keys() >= set(group):                # on answers of this report
            records[judge, group, repeat] = row
            for id, verdict in zip(group, row, strict=True):
                verdicts.setdefault(judge, {}).setdefault(id, []).append(verdict)
    means = {judge: {id: np.mean([score for score, _ in row]) for id, row in found.items()}
             for judge, found in verdicts.items()}
    tables, notes = [], [f"Benchmark: {folder}, {len(items)} items"]
    notes += [f"{column.name}: {column.source}" for column in columns]
    for judge, found in means.items():
        scores = {}
        for column, row in zip(columns, ids, strict=True):
            scores.setdefault(column.name, []).append([found.get(id, np.nan) for id in row])
        scores = {name: np.array(rows) for name, rows in scores.items()}
        tables += [average_table(f"Judged by {judge}", scores, benchmarks),
                   difference_table(scores, benchmarks)]
        notes += [f"Judged by {judge}: {np.isnan(rows).sum()} of {rows.size} answers of {name} are "
                  "unjudged; its means are of the rest."
                  for name, rows in scores.items() if np.isnan(rows).any()]
    tables += [agreement_table(means), letter_table(records, names)]
    tables = [table for table in tables if table[2]]
    notes += NOTES if means else ["Not judged; --judge says by whom."]

    body = [f"<h2>{escape(caption)}</h2>{html_table(heading, lines)}"
            for caption, heading, lines in tables] + list(map(paragraph, notes))
    for i, item in enumerate(items):
        body.append(card(item, [
            (column.name, column.answers[item.name],
             [f"{score}: {reason} ({judge})" for judge, found in verdicts.items()
              for score, reason in found.get(row[i], ())])
            for column, row in zip(columns, ids, strict=True)]))
    text = "\n\n".join([*map(in_markdown, tables), "\n".join(f"- {note}" for note in notes)])
    with written_beside(out / "report.html") as path:
        path.write_text(page("The paper's benchmarks", "\n".join(body)), encoding="utf-8")
    with written_beside(out / "report.md") as path:
        path.write_text(f"{text}\n", encoding="utf-8")
    return text


def in_markdown(table):
    caption, heading, lines = table
    return f"{caption}\n\n{markdown_table(heading, lines)}"


# ---- What the paper prints

def published_tables():
    """The paper's tables from their items, and beside its printed numbers what the items give."""
    scores = {name: np.array([list(map(float, "".join(rows)))]) for name, rows in PUBLISHED.items()}
    shape = zip(BENCHMARKS, map(len, PUBLISHED["GPT-4"]), strict=True)
    names = [f"{name} {number}" for name, count in shape for number in range(1, count + 1)]
    items = [[name, *(f"{row[0, i]:g}" for row in scores.values())] for i, name in enumerate(names)]
    benchmarks = [name.split()[0] for name in names]
    sums, overall = [], []
    for name, printed in PRINTED.items():
        found = averages(scores[name], benchmarks)
        overall.append(found[OVERALL].item())
        sums += [[f"{name}, {key}", f"{value.item():.2f}", f"{number:.2f}"]
                 for (key, value), number in zip(found.items(), printed, strict=True)]
    gpt4, art, mini = overall
    sums += [["GPT-4 – ArtGPT-4, overall", f"{gpt4 - art:.2f}", "0.15 and 0.25"],
             ["ArtGPT-4 – MiniGPT-4, overall", f"{art - mini:.2f}", "1.05"]]
    for name, logged in LOG.items():
        _, isac, *_ = PRINTED[name]
        sums.append([f"{name}, ISAC, by the judge's released log", f"{np.mean(logged):.2f}",
                     f"{isac:.2f}"])
    return [("Tables 1 to 3: the items", ["item", *scores], items),
            average_table("Tables 1 to 3: averages of the items", scores, benchmarks),
            difference_table(scores, benchmarks),
            ("The sums", ["what", "from the items", "as printed"], sums)]
