"""evaluate.py after a kill, and on a full disk: the same command continues, and nothing is lost."""
import errno
import os

import pytest

from evaluation import answers
from tests.evaluation.runs import TINY, run_evaluate


def test_a_killed_run_continues_and_ends_as_one_that_was_not(
        benchmark_folder, tmp_path, monkeypatch):
    flags = ("--weights", f"Art={TINY}", "--max-new-tokens", 6, "--temperature", 1, "--seed", 7)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_evaluate(benchmark_folder, *flags, "--out", whole)
    killed.mkdir()
    lines = (whole / "answers.jsonl").read_bytes().split(b"\n")
    cut_within_the_fourth = b"\n".join([*lines[:3], lines[3][:40]])
    (killed / "answers.jsonl").write_bytes(cut_within_the_fourth)

    asked, dialogue = [], answers.dialogue

    def recorded(model, item, settings):
        asked.append(item.name)
        return dialogue(model, item, settings)

    monkeypatch.setattr(answers, "dialogue", recorded)
    run_evaluate(benchmark_folder, *flags, "--out", killed)
    assert asked == ["ISAC 1", "ICRC 1", "MDIUC 1"]
    for name in ("answers.jsonl", "report.html", "report.md"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


class FullDisk:
    """In place of os.fsync: the write that `room` more writes precede does not fit."""

    def __init__(self, room):
        self.room, self.fsync = room, os.fsync

    def __call__(self, descriptor):
        self.room -= 1
        if self.room == -1:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.fsync(descriptor)


def test_a_full_disk_is_one_line_and_the_same_command_continues(quick, monkeypatch, capsys):
    monkeypatch.setattr(os, "fsync", FullDisk(3))
    with pytest.raises(SystemExit) as stopped:
        quick()
    error = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1
    assert "answers.jsonl: could not be written (No space left on device)" in error[-1]
    quick()
    assert 12 <= len(quick.asked) <= 13
    monkeypatch.setattr(os, "fsync", FullDisk(0))             # now the report does not fit
    with pytest.raises(SystemExit):
        quick()
    error = capsys.readouterr().err
    assert "report.md: could not be written (No space left on device)" in error
