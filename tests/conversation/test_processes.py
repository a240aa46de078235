"""chat.py in a process of its own: in a pseudo-terminal, and with a pipe that closes."""
import json
import os
import pty
import select
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import chat

PROMPT = "\r\n> "
ENVIRONMENT = os.environ | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def command(picture, talker_weights):
    """The command line of a talk about the picture, with long answers."""
    return [sys.executable, str(Path(chat.__file__)), str(picture), "--weights",
            str(talker_weights), "--max-new-tokens", "1700"]


class Screen:
    """A command in a pseudo-terminal."""

    def __init__(self, arguments, state):
        self.shown = ""                                       # what has not been waited for yet
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(arguments[0], arguments, ENVIRONMENT | {"XDG_STATE_HOME": str(state)})

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def read(self):
        """What it prints next; "" when it has ended."""
        ready, _, _ = select.select([self.fd], [], [], 20)
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
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_session_in_a_terminal(command, picture, talker_weights, tmp_path):
    screen = Screen([*command, "--int8"], tmp_path)
    shown = screen.wait_for(PROMPT)
    assert "picture.png, 40 x 30" in shown
    assert f"{talker_weights.name} in float32, language in int8" in shown
    screen.type("What is this?\n")
    screen.wait_for("What is this?\r\n")
    screen.shown += screen.read()                             # the first words
    screen.type("\x03")                                       # Ctrl-C
    said = screen.wait_for("^C").strip()
    assert said and "tokens/s" not in screen.wait_for(PROMPT)
    screen.type("\n/set max_new_tokens 9\n")                  # an empty line is no question
    screen.wait_for("max_new_tokens 9, ")
    screen.wait_for(PROMPT)
    screen.type("half a questi")
    screen.wait_for("half a questi")
    screen.type("\x03")
    screen.wait_for("ends.\r\n> ")
    screen.type(f"/save {tmp_path}/talk.json\n")
    screen.wait_for("talk.json written")
    kept, = json.loads((tmp_path / "talk.json").read_text())["rounds"]
    assert kept["question"] == "What is this?" and kept["answer"].startswith(said[:20])
    screen.wait_for(PROMPT)
    screen.type("\x1b[A\x1b[A\x1b[A")                         # arrows up: the question
    screen.wait_for("What is this?")
    screen.type("\n")
    assert "\n9 tokens, " in screen.wait_for(" tokens/s, the first after ")
    screen.wait_for(PROMPT)
    screen.type("\x04")                                       # Ctrl-D
    assert screen.exit_code() == 0


def test_lines_are_edited_and_kept_with_the_answers_in_a_pipe(command, tmp_path):
    answers, history = tmp_path / "answers.txt", tmp_path / "artgpt4" / "history"
    shell = ["/bin/sh", "-c", f"{shlex.join(command)} --set max_new_tokens=9 | cat > {answers}"]
    screen = Screen(shell, tmp_path)
    screen.wait_for("> ")
    screen.type("What is thx\x7fis?\n")                       # Backspace
    screen.wait_for(PROMPT)
    screen.type("/quit now\n")
    assert screen.exit_code() == 0
    assert answers.read_text().count("\n") == 1 and len(answers.read_text()) > 5
    assert history.read_text().splitlines() == ["What is this?", "/quit now"]
    assert history.stat().st_mode & 0o777 == 0o600
    screen = Screen(shell, tmp_path)
    screen.wait_for("> ")
    screen.type("\x1b[A\x1b[A")                               # arrows up
    screen.wait_for("What is this?")
    screen.type("\n")
    screen.wait_for(PROMPT)
    screen.type("\x04")
    assert screen.exit_code() == 0
    assert history.read_text().splitlines()[2:] == ["What is this?"]


def test_a_closed_pipe_ends_it_quietly(command):
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=ENVIRONMENT, text=True) as process:
        process.stdin.write("What is this?\nAnd this?\n")
        process.stdin.close()
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize("closed, code", [("<&-", 1), (">&-", 1), ("2>&-", 0)])
def test_closed_streams_and_no_home_are_no_traceback(command, closed, code):
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    run = subprocess.run(["sh", "-c", f"exec {shlex.join(command)} {closed}"], text=True,
                         capture_output=True, env=environment, stdin=subprocess.DEVNULL)
    assert run.returncode == code and "Traceback" not in run.stderr
