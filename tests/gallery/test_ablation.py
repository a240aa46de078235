"""gallery/ablation.py: which runs there are, that finished ones are kept, tables of raw scores."""
import json
import shutil

import pytest

from common.command_line import run_command
from gallery import ablation
from gallery.arms import ARMS
from gallery.score import ATTRIBUTES
from tests.common.html_elements import Elements


def run_ablation(tmp_path, *flags):
    arguments = ["--out", tmp_path / "runs", "--scores", tmp_path / "scores.json", *flags]
    run_command(ablation.main, ablation.command_line(), list(map(str, arguments)))


@pytest.fixture
def trained(monkeypatch):
    """The runs that are made; none trains. An arm is right where its best rate and seed say so."""
    made = []

    def one_run(name, factor, seed, sweep, args):
        made.append((name, round(factor, 2), seed))
        right = "1" if (factor == 3) == (name == "mlp") else "0"
        if name == "artgpt4" and not sweep:
            right = "1"
        kinds = ["unseen pairs"] if sweep else ["unseen pairs", "seen pairs"]
        rightly = {kind: dict.fromkeys(ATTRIBUTES, f"{right}1{seed % 2}") for kind in kinds}
        return {"arm": name, "factor": factor, "seed": seed, "sweep": sweep, "parameters": 100608,
                "rates": [factor * 3e-3] * 2, "losses": {1: [2.0, 1.0], 2: [1.5, 0.5 + factor]},
                "rightly": rightly}

    monkeypatch.setattr(ablation, "one_run", one_run)
    monkeypatch.setattr(ablation, "FACTORS", (1 / 3, 1, 3))
    return made


def test_each_arm_is_swept_then_trained_at_its_best_rate_with_every_seed(
        tmp_path, trained, capsys):
    flags = ("--arms", "projection", "mlp", "--seeds", 1, 2)
    run_ablation(tmp_path, *flags)
    sweep = [(name, factor, ablation.SWEEP_SEED)
             for name in ("projection", "mlp") for factor in (0.33, 1, 3)]
    assert trained[:6] == sweep
    assert trained[6:] == [("projection", 0.33, 1), ("mlp", 3, 1), ("projection", 0.33, 2),
                           ("mlp", 3, 2)]
    printed = capsys.readouterr().out
    (tmp_path / "runs" / "mlp-3-2.json").unlink()
    run_ablation(tmp_path, *flags)
    assert trained[10:] == [("mlp", 3, 2)]                    # finished runs are kept
    assert capsys.readouterr().out == printed
    run_ablation(tmp_path, "--table")
    assert capsys.readouterr().out == printed and len(trained) == 11


def test_tables_and_curves_are_made_from_the_raw_scores_alone(tmp_path, trained, capsys):
    run_ablation(tmp_path, "--seeds", 1, 2, 3)
    printed = capsys.readouterr().out
    for name in ("ArtGPT-4", "MLP after it", "LoRA on q and v", "image positions alone"):
        assert name in printed
    row = [line for line in printed.splitlines() if "(MiniGPT-4)" in line][0]
    assert "| 100,608 | 1e-03 and 1e-03 |" in row
    assert "ArtGPT-4 minus the arm, unseen pairs" in printed and "(66.7" not in row
    html = (tmp_path / "scores.html").read_text()
    page = Elements(html)
    assert page.tags.count("polyline") == len(ARMS) and page.tags.count("table") == 3
    raw = json.loads((tmp_path / "scores.json").read_text())
    assert len(raw["runs"]) == len(ARMS) * (3 + 3) and "weights" in raw["identity"]


def test_the_sweep_is_in_no_result(trained, tmp_path):
    run_ablation(tmp_path, "--arms", "artgpt4", "--seeds", 1)
    runs = json.loads((tmp_path / "scores.json").read_text())["runs"]
    assert ablation.matrix(runs, "artgpt4", "unseen pairs") == [[1, 1, 1]]


def test_the_sweep_alone_has_a_table_and_later_runs_continue_from_the_kept_scores(
        tmp_path, trained, capsys):
    run_ablation(tmp_path, "--arms", "norms", "--seeds")
    printed = capsys.readouterr().out
    assert "Sweep" in printed and "each seed" not in printed
    shutil.rmtree(tmp_path / "runs")
    run_ablation(tmp_path, "--arms", "norms", "--seeds", 4)
    sweep = [("norms", factor, ablation.SWEEP_SEED) for factor in (0.33, 1, 3)]
    assert trained == [*sweep, ("norms", 0.33, 4)]


def test_the_seed_of_the_sweep_is_no_seed_of_a_result(trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_ablation(tmp_path, "--seeds", 1, ablation.SWEEP_SEED)
    assert "1000 is the seed of the sweep" in capsys.readouterr().err and not trained


def test_runs_of_other_settings_are_not_mixed(trained, tmp_path, capsys):
    run_ablation(tmp_path, "--arms", "norms", "--seeds", 1)
    with pytest.raises(SystemExit):
        run_ablation(tmp_path, "--arms", "norms", "--seeds", 1, "--pictures", 20)
    assert "a run with other weights, recipes or settings" in capsys.readouterr().err


def test_a_run_of_two_steps_has_losses_scores_and_its_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "FACTORS", (1,))
    run_ablation(tmp_path, "--arms", "shuffled", "--seeds", 1, "--pictures", 2, "--paintings", 4,
                 "--steps", 2, "--workers", 0)
    sweep, run = json.loads((tmp_path / "scores.json").read_text())["runs"]
    assert run["parameters"] == 100608 and run["seed"] == 1 and not run["sweep"]
    assert [len(losses) for losses in run["losses"].values()] == [1, 1]
    assert set(run["rightly"]) == {"seen pairs", "unseen pairs"}
    assert set(sweep["rightly"]) == {"unseen pairs"}
    assert all(len(digits) == 2 for digits in run["rightly"]["seen pairs"].values())
