"""Averages, differences, judges side by side, what a letter is worth, and the paper's sums."""
import numpy as np

from evaluation.report import (
    agreement_table, average_table, difference_table, letter_table, published_tables,
)
from tests.evaluation.conftest import gives


def test_averages_are_of_what_was_judged_and_none_is_overall_without_all_four():
    scores, benchmarks = np.array([[4, 2, 3, 5, 1, np.nan], [4, 2, 5, 5, 1, np.nan]]), [
        "IDC", "IDC", "ISAC", "ICRC", "MDIUC", "MDIUC"]
    _, heading, [line] = average_table("", {"Art": scores}, benchmarks)
    assert heading == ["model", "IDC", "ISAC", "ICRC", "MDIUC", "overall"]
    assert line == ["Art", "3.00 ± 0.00", "4.00 ± 1.41", "5.00 ± 0.00", "1.00 ± 0.00",
                    "3.25 ± 0.35"]
    scores[:, 4] = np.nan
    _, _, [line] = average_table("", {"Art": scores}, benchmarks)
    assert line[-2:] == ["–", "–"]
    _, _, lines = difference_table({"Art": scores, "Mini": scores}, benchmarks)
    assert lines[0] == ["Art – Mini", "overall", "–", "–", "–"]


def test_weighted_kappa_is_that_of_a_worked_case():
    first, second = {"a": 1, "b": 2, "c": 4, "x": 0}, {"a": 1, "b": 3, "c": 4, "y": 5}
    _, _, [line] = agreement_table({"J": first, "K": second})
    assert line == ["J – K", 3, f"{1 - (1 / 3) / (29 / 9):.2f}", "-0.33", "67%"]


def test_a_judge_that_prefers_the_letter_a_is_found_out():
    records, rng = {}, np.random.default_rng(0)
    for item in range(12):
        for pair in (("x", "y"), ("y", "x")):
            worth = {"x": 3, "y": 2}
            first, second = (worth[model] + rng.integers(0, 2) for model in pair)
            ids = tuple(f"{model}{item}" for model in pair)
            records["J", ids, 0] = [[first + 1, ""], [second, ""]]
    records["J", ("x0", "z0"), 0] = [[5, ""], [0, ""]]         # in one order alone: not counted
    names = {f"{model}{item}": item for model in "xyz" for item in range(12)}
    _, _, [line] = letter_table(records, names)
    low, high = map(float, line[2].split(" to "))
    assert abs(float(line[1]) - 1) < 0.35 and 0 < low < 1 < high


def test_judges_stand_side_by_side_with_their_agreement_and_repeats_are_no_seeds(quick, server):
    quick.answer = lambda model, item: [f"{model} {item.name}"] * len(item.questions)
    _, once, _ = quick(*server.flags)
    _, often, _ = quick(*server.flags, "--repeats", 3)
    assert once.split("\n- ")[0] == often.split("\n- ")[0] and "±" not in often
    server.script += [gives(4, A=4, B=2)] * 12
    _, report, _ = quick(*server.flags, "--judge-together")
    url = server.flags[1]
    assert f"Judged by judge at {url}, who saw no picture\n" in report
    assert f"Judged by judge at {url}, two answers at a time, who saw no picture\n" in report
    assert "Agreement of the judges" in report and "weighted kappa" in report
    [line] = report.partition("What the letter A was worth")[2].splitlines()[4:5]
    assert "| +2.00 | – | 6, 0, 0 |" in line
    assert "temperature 0.0" in report                        # where the answers come from


def test_the_papers_sums_are_those_of_its_items():
    sums = {what: (found, printed) for what, found, printed in published_tables()[-1][2]}
    differ = {what: pair for what, pair in sums.items() if pair[0] != pair[1]}
    assert len(sums) == 19 and differ == {
        "MiniGPT-4, overall": ("2.30", "2.35"),
        "GPT-4 – ArtGPT-4, overall": ("0.15", "0.15 and 0.25"),
        "ArtGPT-4 – MiniGPT-4, overall": ("1.10", "1.05"),
        "MiniGPT-4, ISAC, by the judge's released log": ("2.15", "2.30"),
        "ArtGPT-4, ISAC, by the judge's released log": ("2.65", "2.80")}
