"""Ctrl-C while a command imports torch, and closed standard streams, in processes of their own."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("bench", "chat", "convert_weights", "evaluate", "explain", "train")
COMMANDS = [[f"{name}.py"] for name in NAMES]
COMMANDS += [["-m", f"gallery{part}"] for part in ("", ".pretrain", ".score")]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_ctrl_c_while_torch_is_imported_is_one_line_and_code_130(command, tmp_path):
    """A stand-in for torch that is interrupted while it is imported."""
    (tmp_path / "torch.py").write_text("import signal, time\n"
                                       "signal.raise_signal(signal.SIGINT)\ntime.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    run = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment,
                         capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "\ninterrupted\n")


@pytest.mark.parametrize("closed, code, out, err", [
    (">&-", 1, "", "tool: standard output is closed; send it to a file or to /dev/null\n"),
    ("2>&-", 0, "answer\n", ""),
    ("<&- 2>&-", 0, "answer\n", ""),
])
def test_closed_streams(closed, code, out, err, tmp_path):
    tool = tmp_path / "tool.py"
    tool.write_text("""
from common.start import start_command
start_command()
import argparse, os, sys
from common.command_line import run_command
def main(args):
    print("message", file=sys.stderr)
    assert os.open(__file__, os.O_RDONLY) > 2
    print("answer")
run_command(main, argparse.ArgumentParser(prog="tool"))
""")
    run = subprocess.run(["sh", "-c", f"exec {sys.executable} {tool} {closed}"], text=True,
                         capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (run.returncode, run.stdout, run.stderr) == (code, out, err)


def test_a_command_in_the_background_ignores_ctrl_c(tmp_path):
    tool = tmp_path / "tool.py"
    tool.write_text("""
from common.start import start_command
start_command()
import signal
signal.raise_signal(signal.SIGINT)
print("still here")
""")
    run = subprocess.run([sys.executable, tool], capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": str(ROOT)},
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert (run.returncode, run.stdout) == (0, "still here\n")
