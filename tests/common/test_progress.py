"""common/progress.py: one line on a terminal, a line every 10 seconds elsewhere."""
import io

import pytest

from common import progress
from common.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """clock[0] is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_file_gets_a_line_every_10_seconds_and_one_at_the_end(clock):
    stream = io.StringIO()
    shown = Progress("answers", 100, "items", stream)
    for now, done in ((101, 5), (110, 20), (110.5, 30), (121, 42), (150, 100)):
        clock[0] = now
        shown.show(done, "2 skipped" if done == 42 else "")
    assert stream.getvalue().splitlines() == [
        "answers 5/100 items, 5 items/s, 0:19 left",
        "answers 42/100 items, 2 items/s, 0:29 left, 2 skipped",
        "answers 100/100 items, 2 items/s, 50 s",
    ]


def test_a_terminal_gets_one_line_that_is_rewritten(clock):
    stream = Screen()
    shown = Progress("answers", 100, "items", stream)
    for now, done in ((101, 5), (101.1, 6), (102, 10), (110, 100)):
        clock[0] = now
        shown.show(done)
    assert stream.getvalue() == (
        "\r\033[Kanswers 5/100 items, 5 items/s, 0:19 left"
        "\r\033[Kanswers 10/100 items, 5 items/s, 0:18 left"
        "\r\033[Kanswers 100/100 items, 10 items/s, 10 s\n")


def test_a_message_stands_above_the_progress(clock):
    screen, file = Screen(), io.StringIO()
    for stream in (screen, file):
        shown = Progress("answers", 100, "items", stream)
        clock[0] += 1
        shown.show(5)
        shown.say("a.png: no picture")
    assert screen.getvalue().endswith(" left\r\033[Ka.png: no picture\n")
    assert file.getvalue().endswith(" left\na.png: no picture\n")


def test_the_speed_counts_only_what_this_run_did(clock):
    stream = io.StringIO()
    shown = Progress("steps", 100, "steps", stream, before=80)
    clock[0] += 10
    shown.show(90)
    assert stream.getvalue() == "steps 90/100 steps, 1 steps/s, 0:10 left\n"
