"""gallery/ablation.py: which runs of train.py it starts, and the table it makes of their scores."""
import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gallery import ablation


class FakeTrain:
    """Stands in for subprocess.run: records train.py's flags and writes a score.json."""

    def __init__(self):
        self.started, self.code = [], 0

    def __call__(self, command):
        assert command[:2] == [sys.executable, "train.py"]
        self.started.append(command[2:])
        out = Path(command[command.index("--out") + 1])
        out.mkdir(parents=True)
        share = {"all": 0.5 if "minigpt4" in command else 0.75}
        (out / "score.json").write_text(json.dumps({"seen pairs": share, "unseen pairs": share}))
        return subprocess.CompletedProcess(command, self.code)


@pytest.fixture
def train(monkeypatch):
    fake = FakeTrain()
    monkeypatch.setattr(ablation.subprocess, "run", fake)
    return fake


def test_every_mode_is_trained_in_both_stages_and_finished_runs_are_kept(tmp_path, capsys, train):
    args = argparse.Namespace(out=tmp_path, seeds=[1], flags=["--steps", "3"])
    ablation.main(args)
    assert len(train.started) == 2 * len(ablation.MODES)
    run = tmp_path / "minigpt4-1-steps-3"
    common = ["--mode", "minigpt4", "--seed", "1", "--out"]
    init = ["--init", f"{run}/stage1/adapter.safetensors"]
    assert train.started[:2] == [
        ["--stage", "1", *common, f"{run}/stage1", "--resume", "--steps", "3"],
        ["--stage", "2", *common, f"{run}/stage2", "--resume", *init, "--steps", "3"]]
    printed = capsys.readouterr().out
    assert "| projection alone (MiniGPT-4) | 50.0 % (50.0) | 50.0 % (50.0) |" in printed
    ablation.main(args)
    assert len(train.started) == 2 * len(ablation.MODES)
    assert capsys.readouterr().out == printed


def test_a_training_that_fails_ends_the_ablation(tmp_path, train):
    train.code = 3
    with pytest.raises(ValueError, match="ended with code 3"):
        ablation.main(argparse.Namespace(out=tmp_path, seeds=[1], flags=[]))
    assert len(train.started) == 1
