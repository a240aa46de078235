"""common/command_line.py: exit codes, errors in one line, numbers from flags, progress."""
import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import command_line
from common.command_line import Misuse, Progress, number, run_command


@pytest.fixture
def run(capsys):
    """run(error, *flags): a command that raises an error -> exit code, stderr."""
    def run(error, *flags):
        def main(args):
            if error is not None:
                raise error
        code = 0
        try:
            run_command(main, argparse.ArgumentParser(prog="tool.py"), list(flags))
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().err
    return run


@pytest.mark.parametrize("error, code, said", [
    (None, 0, ""), (ValueError("a.png: no such file"), 1, "tool.py: a.png: no such file\n"),
    (RuntimeError("Traceback ...\n  in a worker\nno room"), 1, "tool.py: no room\n"),
    (ValueError(), 1, "tool.py: ValueError()\n"),
    (Misuse("--a and --b"), 2, "tool.py: --a and --b\n"),
    (RuntimeError("a.pth: damaged\n\n  frame 1"), 1, "tool.py: a.pth: damaged frame 1\n"),
    (ValueError("a\x1b[2Jb\u202e: cut"), 1, "tool.py: a\\x1b[2Jb\\u202e: cut\n"),
    (KeyboardInterrupt(), 130, "interrupted\n")])
def test_an_error_is_one_line_and_an_exit_code(run, error, code, said):
    assert run(error) == (code, said)


def test_what_nobody_foresaw_is_one_line_too_and_none_is_long(run):
    code, err = run(KeyError("x"))
    assert code == 1 and "internal error" in err and err.count("\n") == 1
    assert len(run(RuntimeError("frame " * 1000))[1]) < 600


def test_debug_shows_where_an_error_came_from(run):
    code, err = run(ValueError("no room"), "--debug")
    assert code == 1
    assert err.startswith("Traceback") and err.endswith("tool.py: no room\n")
    code, err = run(None, "--unknown")
    assert code == 2 and "--unknown" in err


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
    run = subprocess.run(["sh", "-c", f"exec {sys.executable} {tmp_path}/tool.py {closed}"],
                         capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout) == (code, out) and run.stderr.count("\n") == code


def test_a_number_is_one_within_its_bounds():
    assert number(int, 1, 16)("16") == 16 and number(float, 0, 10)("0.5") == 0.5
    for kind, text in ((int, "0"), (int, "17"), (int, "2.5"), (int, ""), (float, "nan"),
                       (float, "inf"), (float, "-0.1")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}'"):
            number(kind, kind is int, 16)(text)


@pytest.fixture
def clock(monkeypatch):
    """clock[0] is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(command_line.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_line_every_10_seconds_and_one_at_the_end(clock, capsys):
    shown = Progress("answers", 100, "items")
    for now, done in ((101, 5), (110, 20), (110.5, 30), (121, 42), (150, 100)):
        clock[0] = now
        shown.show(done, "2 skipped" if done == 42 else "")
    assert capsys.readouterr().err.splitlines() == [
        "answers 5/100 items",                                # too early to say more
        "answers 42/100 items, 1.85 items/s, 0:31 left, 2 skipped",
        "answers 100/100 items, 2 items/s, 50 s"]


def test_a_terminal_gets_one_line_that_is_rewritten_below_what_is_said(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = Progress("steps", 100, "steps", before=80)
    for now, done in ((101, 81), (101.1, 82), (105, 85), (120, 100)):
        clock[0] = now
        shown.show(done)
    shown.say("a.png: no picture")
    assert capsys.readouterr().err == (
        "\r\033[Ksteps 81/100 steps\r\033[Ksteps 85/100 steps, 1 steps/s, 0:15 left"
        "\r\033[Ksteps 100/100 steps, 1 steps/s, 20 s\n\r\033[Ka.png: no picture\n")
