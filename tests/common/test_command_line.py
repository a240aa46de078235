"""common/command_line.py: exit codes, errors in one line, numbers from flags, progress."""
import argparse
import os
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from common import command_line
from common.command_line import Misuse, Progress, number, run_command


@pytest.mark.parametrize("error, flag, code, said", [
    (None, None, 0, ""), (ValueError("a.png: no file"), None, 1, "tool.py: a.png: no file\n"),
    (RuntimeError("Traceback ...\n  in a worker\nno room"), None, 1, "tool.py: no room\n"),
    (ValueError(), None, 1, "tool.py: ValueError()\n"),
    (Misuse("--a and --b"), None, 2, "tool.py: --a and --b\n"),
    (RuntimeError("a.pth: damaged\n\n  frame 1"), None, 1, "tool.py: a.pth: damaged frame 1\n"),
    (ValueError("a\x1b[2Jb\u202e: cut"), None, 1, "tool.py: a\\x1b[2Jb\\u202e: cut\n"),
    (RuntimeError("frame " * 1000), None, 1, f"tool.py: {'frame ' * 83}fr ...\n"),
    (KeyError("x"), None, 1, "tool.py: internal error (KeyError: 'x'); --debug shows where\n"),
    (ValueError("no room"), "--debug", 1, "Traceback*test_command_line.py*\ntool.py: no room\n"),
    (None, "--unknown", 2, "usage: *--unknown\n"),
    (KeyboardInterrupt(), None, 130, "interrupted\n")])
def test_an_error_is_one_line_and_an_exit_code(capsys, error, flag, code, said):
    def main(args):
        if error is not None:
            raise error

    found = 0
    try:
        run_command(main, argparse.ArgumentParser(prog="tool.py"), [flag] if flag else [])
    except SystemExit as end:
        found = end.code
    err = capsys.readouterr().err
    assert found == code and (fnmatchcase(err, said) if flag else err == said)


@pytest.mark.parametrize("closed, code, out", [(">&-", 1, ""), ("2>&-", 0, "answer\n"),
                                               ("<&- 2>&-", 0, "answer\n")])
def test_closed_streams(closed, code, out, tmp_path):
    (tmp_path / "tool.py").write_text("""
import argparse, os, sys
from common.command_line import run_command
def main(args):
    print("message", file=sys.stderr)
    assert os.open(__file__, os.O_RDONLY) > 2
    print("answer")
run_command(main, argparse.ArgumentParser(prog="tool"))
""")
    environment = os.environ | {"PYTHONPATH": str(Path(command_line.__file__).parents[1])}
    run = subprocess.run(f"exec {sys.executable} {tmp_path}/tool.py {closed}", shell=True,
                         capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout) == (code, out) and run.stderr.count("\n") == code


def test_a_number_is_one_within_its_bounds():
    assert number(int, 1, 16)("16") == 16 and number(float, 0, 10)("0.5") == 0.5
    for kind, text in ((int, "0"), (int, "17"), (int, "2.5"), (int, ""), (float, "nan"),
                       (float, "inf"), (float, "-0.1")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}'"):
            number(kind, kind is int, 16)(text)


def test_a_file_gets_a_line_every_10_seconds_and_one_at_the_end(monkeypatch, capsys):
    times = iter((100, 101, 110, 110.5, 121, 150))
    monkeypatch.setattr(command_line.time, "monotonic", lambda: next(times))
    shown = Progress("answers", 100, "items")
    for done in (5, 20, 30, 42, 100):
        shown.show(done, "2 skipped" if done == 42 else "")
    assert capsys.readouterr().err.splitlines() == [
        "answers 5/100 items",                                # too early to say more
        "answers 42/100 items, 1.85 items/s, 0:31 left, 2 skipped",
        "answers 100/100 items, 2 items/s, 50 s"]


def test_a_terminal_gets_one_line_that_is_rewritten_below_what_is_said(monkeypatch, capsys):
    times = iter((100, 101, 101.1, 105, 120))
    monkeypatch.setattr(command_line.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = Progress("steps", 100, "steps", before=80)
    for done in (81, 82, 85, 100):
        shown.show(done)
    shown.say("a.png: no picture")
    assert capsys.readouterr().err == (
        "\r\033[Ksteps 81/100 steps\r\033[Ksteps 85/100 steps, 1 steps/s, 0:15 left"
        "\r\033[Ksteps 100/100 steps, 1 steps/s, 20 s\n\r\033[Ka.png: no picture\n")
