"""Runs that are stopped by a signal or killed, and end with the same bits as undisturbed ones."""
import signal
import sys

import pytest

import train
from tests.robustness.kill_and_resume import kill_and_resume, losses, train_command
from tests.training.short_runs import short_run


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_a_run_and_the_resumed_one_has_the_same_bits(
        tmp_path, gallery, capsys, number, code):
    whole, out = tmp_path / "whole", tmp_path / "run"
    short_run(whole, gallery)
    handler, forwards = signal.getsignal(number), []

    def signal_in_step_4(losses):
        forwards.append(losses)
        if len(forwards) == 4:
            signal.raise_signal(number)

    with pytest.raises(SystemExit) as stopped:
        short_run(out, gallery, loss=signal_in_step_4)
    assert stopped.value.code == code and signal.getsignal(number) is handler
    said = "stopped after step 4 of 6; the same command with --resume continues after step 4"
    assert said in capsys.readouterr().out
    with open(out / "log.jsonl", "a") as log:        # as if step 5 were logged, and half of step 6
        log.write('{"step": 5, "loss": 9}\n{"step"')
    (out / ".checkpoint-0000005-of-0000006.pt.1.part").write_text("half")
    short_run(out, gallery, resume=True)
    for file in ("adapter.safetensors", "samples.png"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    assert losses(out) == losses(whole) and not list(out.glob(".*"))


def test_a_run_killed_at_a_random_moment_and_while_saving_ends_with_the_same_bits(
        training_folder, pairs, monkeypatch):
    killed, undisturbed = training_folder / "killed", training_folder / "undisturbed"
    told = kill_and_resume(train_command(pairs, killed, 24), killed, 2, longest=2.5)
    assert "half written" in told[1]
    flags = train_command(pairs, undisturbed, 24)[2:]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, flags)])
    train.command_line()
    for file in ("adapter.safetensors", "samples.png"):
        assert (killed / file).read_bytes() == (undisturbed / file).read_bytes()
    assert losses(killed) == losses(undisturbed)
