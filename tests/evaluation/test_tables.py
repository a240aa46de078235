"""Averages and their spreads, the published scores, the cells of the tables."""
import pytest

from evaluation.tables import published_notes, published_rows, summary, tables


def test_the_published_averages_are_those_of_the_items():
    rows = {row.name: [round(value, 4) for value in row.averages.values()]
            for row in published_rows()}
    assert rows == {"GPT-4": [4.1, 3.1, 3, 4, 3.55], "MiniGPT-4": [2.6, 2.3, 1.8, 2.5, 2.3],
                    "ArtGPT-4": [3.8, 2.8, 3, 4, 3.4]}


def test_differences_between_the_papers_print_and_its_items_are_told():
    notes = published_notes()
    assert len(notes) == 2
    assert "2.35 for MiniGPT-4, overall; its items give 2.30" in notes[0]
    assert "both 0.25 and 0.15; its items give 0.15" in notes[1]


def test_averages_are_of_what_was_judged_and_spread_over_repeats():
    row = summary("x", {"IDC": {1: [4, 2], 2: [3, None]}, "ISAC": {1: [1, 1]},
                        "ICRC": {1: [5, 5]}, "MDIUC": {1: [None, 2]}})
    assert row.items["IDC"] == {1: 3, 2: 3} and row.averages["IDC"] == 3
    assert row.averages["overall"] == 2.75
    assert row.spreads["IDC"] == pytest.approx(1.5 / 2 ** 0.5) and row.spreads["ISAC"] == 0
    assert row.spreads["overall"] is None                     # only one repeat has all four


def test_a_benchmark_without_scores_leaves_no_overall_average():
    three = summary("x", {"IDC": {1: [4]}, "ISAC": {1: [1]}, "ICRC": {1: [5]}})
    _, _, _, overall = tables([three])
    assert overall.lines == [["x", "4.00", "1.00", "5.00", "–", "–"]]
