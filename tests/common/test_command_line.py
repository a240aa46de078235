"""common/command_line.py: exit codes, errors in one line, numbers from flags."""
import argparse

import pytest

from common.command_line import number, run_command


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


def test_an_error_is_one_line_and_code_1(run):
    assert run(None) == (0, "")
    assert run(ValueError("a.png: no such file")) == (1, "tool.py: a.png: no such file\n")
    assert run(RuntimeError("Traceback ...\n  in a worker\nno room")) == (1, "tool.py: no room\n")
    assert run(ValueError()) == (1, "tool.py: ValueError()\n")


def test_what_nobody_foresaw_is_one_line_too(run):
    said = "tool.py: internal error (KeyError: 'x'); --debug shows where\n"
    assert run(KeyError("x")) == (1, said)


def test_a_message_of_several_lines_keeps_its_beginning(run):
    code, err = run(RuntimeError("a.pth: damaged\n\n  frame 1"))
    assert err == "tool.py: a.pth: damaged frame 1\n"
    code, err = run(RuntimeError("a.pth: damaged\n" + "frame " * 1000))
    assert err.startswith("tool.py: a.pth: damaged frame") and len(err) < 600


def test_control_characters_do_not_reach_the_terminal(run):
    assert run(ValueError("a\x1b[2Jb\u202e: cut")) == (1, "tool.py: a\\x1b[2Jb\\u202e: cut\n")


def test_debug_shows_where_an_error_came_from(run):
    code, err = run(ValueError("no room"), "--debug")
    assert code == 1
    assert err.startswith("Traceback") and err.endswith("tool.py: no room\n")


def test_ctrl_c_is_code_130_and_misuse_code_2(run):
    assert run(KeyboardInterrupt()) == (130, "\ninterrupted\n")
    code, err = run(None, "--unknown")
    assert code == 2 and "--unknown" in err


def test_a_number_is_one_within_its_bounds():
    assert number(int, 1, 16)("16") == 16
    assert number(float, 0, 10)("0.5") == 0.5
    for text in ("0", "17", "2.5", "two", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number from 1 to 16"):
            number(int, 1, 16)(text)
    for text in ("nan", "inf", "-0.1"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a number from 0"):
            number(float, 0, 10)(text)
