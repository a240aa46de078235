"""common/command_line.py: exit codes, errors in one line, numbers from flags, progress."""
import argparse
import os
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from common import command_line
from common.command_line import Misuse, Progress, markdown_table, number
from tests.conftest import run


@pytest.mark.parametrize("error, flag, code, said", [
    (None, None, 0, ""), (ValueError("a.png: no file"), None, 1, "tool.py: a.png: no file\n"),
    (RuntimeError("Traceback ...\n  in a worker\nno room"), None, 1, "tool.py: no room\n"),
    (Misuse("--a and --b"), None, 2, "tool.py: --a and --b\n"),
    (OSError(28, "No space left"), None, 1, "tool.py: [[]Errno 28] No space left\n"),
    (RuntimeError("a.pth: damaged\n\n  frame 1"), None, 1, "tool.py: a.pth: damaged frame 1\n"),
    (ValueError("a\x1b[2Jb\u202e: cut"), None, 1, "tool.py: a\\x1b*2Jb\\u202e: cut\n"),
    (RuntimeError("frame " * 1000), None, 1, f"tool.py: {'frame ' * 83}fr ...\n"),
    (KeyError("x"), None, 1, "tool.py: internal error (KeyError: 'x'); --debug shows where\n"),
    (ValueError("no room"), "--debug", 1, "Traceback*test_command_line.py*\ntool.py: no room\n"),
    (None, "--unknown", 2, "usage: *--unknown\n"),
    (KeyboardInterrupt(), None, 130, "\ninterrupted\n")])
def test_an_error_is_one_line_and_an_exit_code(capsys, error, flag, code, said):
    def main(args):
        if error is not None:
            raise error

    found = run(main, argparse.ArgumentParser(prog="tool.py"), *filter(None, [flag]))
    assert found == code and fnmatchcase(capsys.readouterr().err, said)


@pytest.mark.parametrize("closed, out", [(">&-", ""), ("<&- 2>&-", "answer\n")])
def test_with_closed_streams_no_file_takes_their_numbers(closed, out, tmp_path):
    (tmp_path / "tool.py").write_text("""
import argparse, os, sys
from common.command_line import run_command
def main(args):
    print("message", file=sys.stderr)
    assert os.open(__file__, os.O_RDONLY) > 2 and sys.stdin
    print("answer")
run_command(main, argparse.ArgumentParser(prog="tool"))
""")
    environment = os.environ | {"PYTHONPATH": str(Path(command_line.__file__).parents[1])}
    run = subprocess.run(f"exec {sys.executable} {tmp_path}/tool.py {closed}", shell=True,
                         capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout) == (0, out)


def test_a_number_is_one_within_its_bounds():
    assert number(int, 1, 16)("16") == 16 and number(float, 0, 10)("0.5") == 0.5
    for kind, text in ((int, "0"), (int, "17"), (int, "2.5"), (int, ""), (float, "nan"),
                       (float, "inf"), (float, "-0.1")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}'"):
            number(kind, kind is int, 16)(text)


@pytest.mark.parametrize("terminal, times, said", [
    (False, (100, 101, 105, 111, 200), (
        "steps 81/100 steps, 1 steps/s, 0:19 left\nsteps 90/100 steps, 0.909 steps/s, 0:11 left, "
        "2 cut\nsteps 100/100 steps, 0.2 steps/s, 100 s\na.png\n")),
    (True, (100, 101, 101.1, 102, 110), (
        "\r\033[Ksteps 81/100 steps, 1 steps/s, 0:19 left\r\033[Ksteps 90/100 steps, 5 steps/s, "
        "0:02 left, 2 cu\r\033[Ksteps 100/100 steps, 2 steps/s, 10 s\n\r\033[Ka.png\n"))])
def test_progress_is_a_line_every_10_seconds_or_on_a_terminal_one_that_is_rewritten(
        monkeypatch, capsys, terminal, times, said):
    monkeypatch.setenv("COLUMNS", "47")                       # what is rewritten is no longer
    times = iter(times)
    monkeypatch.setattr(command_line.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    shown = Progress("steps", 100, "steps", before=80)
    for done in (81, 85, 90, 100):
        shown.show(done, "2 cut" if done == 90 else "")
    shown.say("a.png")
    assert capsys.readouterr().err == said


def test_a_cell_of_a_markdown_table_is_one_line_without_markup():
    table = markdown_table(["a"], [["x|<b>\ny"]])
    assert table == "| a |\n| --- |\n| x\\|&lt;b&gt; y |"
