"""conversation/terminal.py: what is printed on which terminal, tested without one."""
import contextlib
import io
import os
import re
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from conversation.terminal import (
    PALETTE, Terminal, cells, clean, colours_of, half_blocks, wait_for_reader, whole_line, wrapped)


class Stream(io.TextIOWrapper):
    def __init__(self, terminal=True, encoding="utf-8"):
        super().__init__(io.BytesIO(), encoding=encoding)
        self.isatty = lambda: terminal


@pytest.mark.parametrize("environment, stream, colours", [
    ({"COLORTERM": "truecolor"}, Stream(), 2 ** 24),
    ({"COLORTERM": "24bit", "NO_COLOR": ""}, Stream(), 2 ** 24),
    ({}, Stream(), 256),
    ({"COLORTERM": "yes"}, Stream(), 256),
    ({"COLORTERM": "truecolor", "NO_COLOR": "1"}, Stream(), 0),
    ({"COLORTERM": "truecolor", "TERM": "dumb"}, Stream(), 0),
    ({"TERM": "vt220"}, Stream(), 0),
    ({"TERM": None}, Stream(), 0),
    ({"COLORTERM": "truecolor"}, Stream(terminal=False), 0),
    ({"COLORTERM": "truecolor"}, Stream(encoding="latin-1"), 0),
])
def test_colours_go_where_they_are_seen(environment, stream, colours, monkeypatch):
    usual = {"TERM": "xterm-256color", "COLORTERM": None, "NO_COLOR": None}
    for name, value in (usual | environment).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert colours_of(stream) == colours


def test_two_pixels_are_one_character():
    pixels = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 8, 7]]], dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert half_blocks(image, 80, 24, 2 ** 24) == (
        "\x1b[38;2;255;0;0;48;2;0;0;255m\u2580\x1b[38;2;0;255;0;48;2;9;8;7m\u2580\x1b[0m")
    assert half_blocks(image, 80, 24, 256) == (
        "\x1b[38;5;196;48;5;21m\u2580\x1b[38;5;46;48;5;232m\u2580\x1b[0m")


@pytest.mark.parametrize("size, columns, rows", [
    ((200, 100), 40, 10),
    ((100, 200), 12, 12),
    ((3000, 3), 40, 1),
    ((3, 3000), 1, 12),
    ((8, 6), 8, 3),
    ((1, 1), 1, 1),
])
def test_a_picture_keeps_its_proportions_in_the_room_there_is(size, columns, rows):
    lines = half_blocks(Image.new("RGB", size), 40, 12, 256).split("\n")
    assert len(lines) == rows
    assert {line.count("\u2580") for line in lines} == {columns}


def test_256_colours_are_the_nearest_ones():
    pixels = np.random.RandomState(0).randint(0, 256, (2, 50, 3)).astype(np.uint8)
    text = half_blocks(Image.fromarray(pixels), 80, 24, 256)
    codes = re.findall(r"38;5;(\d+);48;5;(\d+)m", text)
    assert len(codes) == 50

    def distance(a, b):
        return sum((int(x) - int(y)) ** 2 for x, y in zip(a, b, strict=True))
    for column, pair in zip(pixels.transpose(1, 0, 2), codes, strict=True):
        for pixel, code in zip(column, pair, strict=True):
            nearest = min(distance(pixel, colour) for colour in PALETTE)
            assert distance(pixel, PALETTE[int(code) - 16]) == nearest


def test_words_that_do_not_fit_begin_a_line():
    text = "a boat\n\n  on the\twide, wide\nsea immeasurable x"
    lines = "a boat\n\n  on the\nwide,\nwide\nsea\nimmeasurable\nx"
    for pieces in ([text], list(text), re.findall("(?s).{1,3}", text)):
        assert "".join(wrapped(pieces, lambda: 8)) == lines
    assert "".join(wrapped([text, " "], lambda: 80)) == text
    words = wrapped(iter(["a bo", "at ", KeyError]), lambda: 80)
    assert [next(words), next(words)] == ["a", " boat"]


def test_wide_characters_take_two_columns_and_combining_ones_none():
    assert cells("boat") == 4
    assert cells("\u8239\U0001f6a4") == 4                      # a ship in Chinese, a speedboat
    assert cells("e\u0301") == 1
    assert "".join(wrapped(["\u8239\u8239 \u8239\u8239 x"], lambda: 8)) == (
        "\u8239\u8239\n\u8239\u8239 x")


def test_the_width_is_asked_for_at_each_word():
    widths = iter([20, 20, 8, 8])
    assert "".join(wrapped(["a boat on the sea"], lambda: next(widths))) == "a boat on\nthe sea"


@pytest.mark.parametrize("lines, whole", [
    (["What?", "Why?"], ["What?", "Why?"]),
    (["What\\", "and \\", "why?", "Who?"], ["What\nand \nwhy?", "Who?"]),
    (['"""What', "is", 'it?""" x', "Why?"], ["What\nis\nit?", "Why?"]),
    (['  """one line"""'], ["one line"]),
    (['"""open', "end"], ["open\nend"]),
    (["open\\"], ["open\n"]),
    (["/image C:\\", "Why?"], ["/image C:\\", "Why?"]),
    (['a """ b'], ['a """ b']),
])
def test_a_question_may_have_several_lines(lines, whole):
    left, prompts, found = list(lines), [], []

    def read(prompt):
        prompts.append(prompt)
        if not left:
            raise EOFError
        return left.pop(0)

    with pytest.raises(EOFError):
        while True:
            found.append(whole_line(read))
    assert [line.rstrip("\n") for line in found] == [line.rstrip("\n") for line in whole]
    assert prompts.count("> ") == len(whole) + 1 and set(prompts) <= {"> ", "... "}


def test_control_characters_are_removed():
    text = "a\x00\x1b[31m\x9b\x7f\r\u202e\u2066b\u061f\n\tc \N{SAILBOAT}"
    assert clean(text) == "a[31mb\u061f\n\tc \N{SAILBOAT}"


def test_what_was_written_to_a_pipe_is_waited_for_until_it_is_read():
    read, write = os.pipe()
    os.write(write, b"answer")
    start = time.monotonic()
    wait_for_reader(write, 0.05)                              # nobody reads
    assert time.monotonic() - start >= 0.05
    reader = threading.Timer(0.2, os.read, (read, 100))
    reader.start()
    wait_for_reader(write, 60)
    assert 0.2 <= time.monotonic() - start < 60
    reader.join()
    wait_for_reader(io.BytesIO())                             # no pipe


def test_what_is_to_be_done_meanwhile_is_done_while_a_line_is_typed_and_not_while_it_is_answered(
        monkeypatch):
    happened = []

    @contextlib.contextmanager
    def meanwhile():
        happened.append("began")
        yield
        happened.append("ended")

    def type_line(prompt):
        happened.append("typed")
        if len(happened) > 4:
            raise EOFError
        return "What is this?"

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    terminal = Terminal()
    terminal.typed, terminal.read, terminal.type_line = True, True, type_line
    for line in terminal.lines(meanwhile=meanwhile):
        happened.append(line)
    assert happened == ["began", "typed", "ended", "What is this?", "began", "typed"]
