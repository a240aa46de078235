"""chat.py in a process of its own, in a pseudo-terminal."""
import json
import os
import pty
import select
import sys
import time
from pathlib import Path

import chat

PROMPT = "\r\n> "
ENVIRONMENT = {"PATH": os.environ["PATH"], "TERM": "xterm", "LC_ALL": "C.UTF-8",
               "OMP_NUM_THREADS": "1"}


class Screen:
    """A command in a pseudo-terminal."""

    def __init__(self, arguments, home):
        self.shown = ""                                       # what has not been waited for yet
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(arguments[0], arguments, ENVIRONMENT | {"HOME": str(home)})

    def type(self, keys, awaited=PROMPT):
        """Type keys, and read until a text has come. Returns what came before it."""
        os.write(self.fd, keys.encode())
        while awaited not in self.shown:
            ready, _, _ = select.select([self.fd], [], [], 60)
            assert ready, f"nothing came after {self.shown!r}"
            self.shown += os.read(self.fd, 4096).decode(errors="replace")
        before, _, self.shown = self.shown.partition(awaited)
        return before

    def end(self, keys):
        """Type keys -> the exit code."""
        os.write(self.fd, keys.encode())
        try:
            while os.read(self.fd, 4096):
                pass
        except OSError:                                       # the end of a terminal on Linux
            os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_session_in_a_terminal(picture, tmp_path):
    command = [sys.executable, str(Path(chat.__file__)), str(picture), "--temperature", "10",
               "--top-p", "1", "--max-new-tokens", "700", "--seed", "1"]   # a long answer
    screen = Screen([*command, "--int8"], tmp_path)
    shown = screen.type("")
    for words in ("picture.png, 40 x 30", "(picture.png looks like no painting", "painted gallery",
                  "tiny in float32, language in int8", "Where does it stand?"):
        assert words in shown
    screen.type("What is this?\n", "What is this?\r\n")
    screen.shown += os.read(screen.fd, 4096).decode(errors="replace")   # the first words
    said = screen.type("\x03", "^C").strip()
    assert said and "tokens/s" not in screen.type("")
    screen.type("half a questi", "half a questi")
    time.sleep(0.3)                                           # until readline waits again
    screen.type("\x03", "ends.\r\n> ")
    os.write(screen.fd, b"/no\xe9\n")                         # nor are bytes that are no UTF-8
    screen.type("", "lists them\r\n> ")
    screen.type("/set max_new_tokens 9\n")
    screen.type(f"/savx\x7fe {tmp_path}/talk.json\n")         # Backspace
    kept, = json.loads((tmp_path / "talk.json").read_text())["rounds"]
    assert kept["question"] == "What is this?"
    assert "".join(kept["answer"].split()).startswith("".join(said.split())[:10])
    screen.type("\x1b[A" * 4, "What is this?")        # arrows up: the question
    assert " tokens/s, " in screen.type("\n")
    assert screen.end("\x04") == 0                            # Ctrl-D
    history = tmp_path / ".artgpt4_history"
    assert history.read_text().startswith("What is this?\n/no")
    assert history.stat().st_mode & 0o777 == 0o600
    screen = Screen(command, tmp_path)
    screen.type("")
    screen.type("\x1b[A", "What is this?")                    # of the session before
    assert screen.end("\x15/bye\n") == 0                      # Ctrl-U
