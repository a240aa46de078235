"""chat.py in a process of its own: in a pseudo-terminal, and with a pipe that closes."""
import json
import os
import pty
import resource
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

import chat

PROMPT = "\r\n> "
COLOURS = ("NO_COLOR", "COLORTERM")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in COLOURS} | {
    "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def command(picture, talker_weights):
    """command(*flags): the command line of a talk about the picture, with long answers."""
    def command(*flags):
        return [sys.executable, str(Path(chat.__file__)), str(picture),
                "--weights", str(talker_weights), "--max-new-tokens", "1700", "--no-history",
                *flags]
    return command


class Screen:
    """A command in a pseudo-terminal."""

    def __init__(self, arguments, **environment):
        self.shown = ""                                       # what has not been waited for yet
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(arguments[0], arguments, ENVIRONMENT | environment)

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def read(self):
        """What it prints next; "" when it has ended."""
        ready, _, _ = select.select([self.fd], [], [], 120)
        assert ready, f"nothing came after {self.shown!r}"
        try:
            return os.read(self.fd, 4096).decode(errors="replace")
        except OSError:                                       # the end of a terminal on Linux
            return ""

    def wait_for(self, text):
        """Read until `text` has come. Returns what came before it."""
        while text not in self.shown:
            piece = self.read()
            assert piece, f"it ended without {text!r}: {self.shown!r}"
            self.shown += piece
        before, _, self.shown = self.shown.partition(text)
        return before

    def exit_code(self):
        while self.read():
            pass
        os.close(self.fd)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def test_a_session_in_a_terminal(command, picture, talker_weights, tmp_path):
    screen = Screen(command("--int8"), COLORTERM="truecolor")
    shown = screen.wait_for(PROMPT)
    assert "\x1b[38;2;200;30;30;48;2;200;30;30m\N{UPPER HALF BLOCK}" in shown
    assert f"{picture}, 40 x 30" in shown
    assert f"model {talker_weights.name} in float32, language in int8" in shown

    screen.type("What is this?\n")
    screen.wait_for("What is this?\r\n")
    screen.shown += screen.read()                             # the first words
    screen.type("\x03")                                       # Ctrl-C
    said = screen.wait_for("^C").strip()
    assert said
    assert "tokens/s" not in screen.wait_for(PROMPT)

    screen.type("\n/set max_new_tokens 9\n")                  # an empty line is no question
    screen.wait_for("\x1b[2mmax_new_tokens 9\x1b[0m")
    screen.wait_for(PROMPT)
    screen.type(f"/save {tmp_path}/talk.json\n")
    screen.wait_for("talk.json written")
    kept, = json.loads((tmp_path / "talk.json").read_text())["rounds"]
    assert kept["question"] == "What is this?"
    assert kept["answer"].split()[:len(said.split())] == said.split()

    screen.wait_for(PROMPT)
    screen.type("\x1b[A\x1b[A\x1b[A")                         # arrows up: the question
    screen.wait_for("What is this?")
    screen.type("\n")
    assert "\x1b[2m9 tokens, " in screen.wait_for(" tokens/s, the first after ")
    screen.wait_for(PROMPT)
    screen.type("/quit\n")
    assert screen.exit_code() == 0


def test_a_plain_session_and_one_without_colours(command, picture):
    screens = [Screen(command("--plain"), COLORTERM="truecolor"),
               Screen(command(), COLORTERM="truecolor", NO_COLOR="1")]
    for screen in screens:
        shown = screen.wait_for("/help")
        assert f"{picture}, 40 x 30" in shown
        assert "\x1b" not in shown and "\N{UPPER HALF BLOCK}" not in shown
    for screen in screens:
        screen.wait_for("> ")
        time.sleep(0.1)                                       # until input() is reading
        screen.type("half a questi\x03")
        screen.wait_for("ends.")
        screen.wait_for("> ")
        screen.type("\x04")                                   # Ctrl-D
    assert [screen.exit_code() for screen in screens] == [0, 0]


def test_lines_are_edited_and_kept_with_the_answers_in_a_pipe(command, tmp_path):
    answers, history = tmp_path / "answers.txt", tmp_path / "artgpt4" / "history"
    line = shlex.join(argument for argument in command() if argument != "--no-history")
    shell = ["/bin/sh", "-c", f"{line} | cat > {answers}"]

    screen = Screen(shell, XDG_STATE_HOME=str(tmp_path))
    screen.wait_for("> ")
    screen.type("/se\tmax\t9\n")                             # Tab
    screen.wait_for("max_new_tokens 9")
    screen.wait_for(PROMPT)
    screen.type("What is thx\x7fis?\n")                       # Backspace
    screen.wait_for(PROMPT)
    screen.type("\x04")                                       # Ctrl-D
    assert screen.exit_code() == 0
    assert answers.read_text().count("\n") == 1 and len(answers.read_text()) > 5
    assert history.read_text().splitlines() == ["/set max_new_tokens 9", "What is this?"]
    assert history.stat().st_mode & 0o777 == 0o600

    screen = Screen(shell, XDG_STATE_HOME=str(tmp_path))
    screen.wait_for("> ")
    screen.type("\x1b[A\x1b[A")                               # arrows up
    screen.wait_for("/set max_new_tokens 9")
    screen.type("\n")
    screen.wait_for(PROMPT)
    screen.type("/quit now\n")
    assert screen.exit_code() == 0
    assert history.read_text().splitlines()[2:] == ["/set max_new_tokens 9", "/quit now"]


def cpu_seconds():
    """The CPU time of all child processes that have ended, whatever else the machine did."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_closed_pipe_ends_it_quietly_and_the_first_words_cost_less_than_5_seconds(command):
    before = cpu_seconds()
    with subprocess.Popen(command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=ENVIRONMENT, text=True) as process:
        process.stdin.write("What is this?\nAnd this?\n")
        process.stdin.close()
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
    assert cpu_seconds() - before < 5
