"""The terminal of chat.py: pictures in half blocks, dim notes, typed lines, safe text."""
import contextlib
import itertools
import os
import re
import shutil
import sys
import time
import unicodedata

import numpy as np
from PIL import Image

from conversation.line_editing import line_editing

# Control characters except tab and newline, and those that change the direction of writing
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
QUOTES = '"""'                                                # around a text of several lines
COLOURLESS = ("dumb", "unknown", "vt")        # how TERM begins on terminals without colours

# The colours 16 to 255 of a terminal with 256 colours: a cube of 6 x 6 x 6, then 24 greys
LEVELS = (0, 95, 135, 175, 215, 255)
CUBE = [(r, g, b) for r in LEVELS for g in LEVELS for b in LEVELS]
GREYS = [(level, level, level) for level in range(8, 248, 10)]
PALETTE = np.array(CUBE + GREYS)                              # (240, 3)


def clean(text):
    """Text that is safe to print: nothing in it moves the cursor, sets colours or sends replies."""
    return CONTROL.sub("", text)


def colours_of(stream):
    """How many colours a stream shows: 2 ** 24, 256 or 0.

    0 means that no escape sequence may be printed: the stream is a pipe, NO_COLOR is set, or the
    terminal has no colours or no half blocks.
    """
    terminal = os.environ.get("TERM", "dumb")
    if not stream.isatty() or os.environ.get("NO_COLOR") or terminal.startswith(COLOURLESS):
        return 0
    if "utf" not in (stream.encoding or "").lower():
        return 0
    return 2 ** 24 if os.environ.get("COLORTERM") in ("truecolor", "24bit") else 256


def colour_codes(pixels, colours):
    """pixels (height, width, 3), uint8 -> for each the part of an escape sequence that names its
    colour, as a list of rows."""
    if colours == 256:
        distances = ((pixels[:, :, None].astype(int) - PALETTE) ** 2).sum(axis=-1)
        nearest = distances.argmin(axis=-1)
        return [[f"5;{16 + i}" for i in row] for row in nearest.tolist()]
    return [[f"2;{r};{g};{b}" for r, g, b in row] for row in pixels.tolist()]


def half_blocks(image, columns, rows, colours):
    """A picture as text of at most columns x rows characters; it is never enlarged.

    A character is twice as high as wide, so each holds two pixels: an upper half block in the
    colour of the upper one, on a background in the colour of the lower one.
    """
    scale = min(columns / image.width, 2 * rows / image.height, 1)
    width = max(1, round(image.width * scale))
    height = max(1, round(image.height * scale / 2))          # in characters
    small = image.convert("RGB").resize((width, 2 * height), Image.Resampling.LANCZOS)
    codes = colour_codes(np.asarray(small), colours)
    lines = []
    for upper_row, lower_row in zip(codes[::2], codes[1::2], strict=True):
        blocks = [f"\x1b[38;{upper};48;{lower}m\N{UPPER HALF BLOCK}"
                  for upper, lower in zip(upper_row, lower_row, strict=True)]
        lines.append("".join(blocks) + "\x1b[0m")
    return "\n".join(lines)


def cells(text):
    """How many columns a text takes: wide characters take two, combining ones none."""
    count = 0
    for character in text:
        wide = unicodedata.east_asian_width(character) in "WF"
        count += 0 if unicodedata.combining(character) else 1 + wide
    return count


def wrapped(pieces, width):
    """Yield pieces of text as whole words. A word that does not fit on its line begins a new one:
    the space before it becomes a line break. width: a function, asked for each word, as a window
    may be resized."""
    column, held = 0, ""
    for piece in itertools.chain(pieces, ["\n"]):             # the newline completes the last word
        held += piece
        while match := re.match(r"(\s*)(\S+)(?=\s)", held):
            space, word = match.groups()
            held = held[match.end():]
            if "\n" not in space and 0 < column and column + cells(space + word) > width():
                space = "\n"
            line = " " * column + space + word
            column = cells(line.rpartition("\n")[2])
            yield space + word


def columns():
    """The width of the terminal, in characters."""
    return shutil.get_terminal_size().columns


def wait_for_reader(stream, longest=1.0):
    """Wait until what was written to a pipe was read, at most some seconds, and a moment more.

    In `chat.py | tee FILE` tee prints the answer. Without waiting, the next prompt may come first.
    """
    unread, end = bytearray(4), time.monotonic() + longest
    with contextlib.suppress(ImportError, OSError):           # Windows; not a pipe
        import fcntl
        import termios
        while time.monotonic() < end:
            fcntl.ioctl(stream, termios.FIONREAD, unread)
            time.sleep(0.02)
            if not any(unread):
                return


class Terminal:
    """Where lines come from and answers go. Answers go to stdout, everything else to stderr.

    typed: whether someone types the lines. read: whether stdout is a terminal.
    colours: see colours_of. plain: print no picture, no colours, no added line breaks.
    history: the file of the lines typed in earlier sessions; None keeps none. someone_types: False
    if no lines are asked for, whatever stdin is.
    """

    def __init__(self, plain=False, history=None, someone_types=True):
        self.typed = someone_types and sys.stdin is not None and sys.stdin.isatty()
        self.answers = sys.stdout
        self.read = sys.stdout.isatty()
        self.plain, self.history = plain, history
        self.colours = 0 if plain else colours_of(sys.stderr)

    def say(self, text, dim=False):
        """Print a text that is no answer, in lines that fit."""
        text = clean(text)
        if sys.stderr.isatty() and not self.plain:
            text = "".join(wrapped([text], columns))
        print(f"\x1b[2m{text}\x1b[0m" if dim and self.colours else text, file=sys.stderr)

    def note(self, text):
        """Print a dim text, if someone types."""
        if self.typed:
            self.say(text, dim=True)

    def show(self, image):
        """Print a picture, if there are colours, at most half as high as the terminal."""
        if self.colours:
            width, height = shutil.get_terminal_size()
            text = half_blocks(image, min(width - 1, 48), min(height // 2, 16), self.colours)
            print(text, file=sys.stderr)

    def print(self, pieces):
        """Print an answer as it comes, and end its line. Returns the time of its first piece, as
        time.perf_counter gives it, or None for an empty answer."""
        if self.read and not self.plain:
            pieces = wrapped(pieces, columns)
        began = None
        try:
            for piece in pieces:
                if began is None:
                    began = time.perf_counter()
                print(piece, end="", file=self.answers, flush=True)
        finally:
            print(file=self.answers, flush=True)
            if self.typed and not self.read:
                wait_for_reader(self.answers)
        return began

    def split_stdout(self):
        """Keep stdout for answers, and let input() talk to the terminal of stderr: it edits lines
        only where its own stdout is a terminal."""
        sys.stdout.flush()
        self.answers = open(os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding,
                            errors="replace")
        os.dup2(2, 1)

    def lines(self, complete=lambda line: [], meanwhile=contextlib.nullcontext):
        """Yield what is typed or piped: questions, of several lines too, and commands.

        A line that ends with a backslash continues on the next one, and so does a text between
        two of triple quotation marks. Someone who types gets a prompt and line editing; complete:
        see line_editing; meanwhile: makes a context, entered while they type. Ctrl-C discards the
        line.
        """
        sys.stdin.reconfigure(errors="replace")
        if not self.typed:
            while True:
                try:
                    yield whole_line(lambda prompt: next_line(sys.stdin))
                except EOFError:
                    return
        if not self.read and sys.stderr.isatty():
            self.split_stdout()
        with line_editing(complete, self.history):
            while True:
                try:
                    with meanwhile():
                        line = whole_line(self.type_line)
                except EOFError:
                    print(file=sys.stderr)
                    return
                except KeyboardInterrupt:
                    print("\nCtrl-D or /quit ends.", file=sys.stderr)
                else:
                    yield line

    def type_line(self, prompt):
        """The line that is typed after a prompt."""
        if sys.stdout.isatty():
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)
        return input()


def next_line(stream):
    """The next line of a stream. Raises EOFError at its end, as input() does."""
    line = stream.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def whole_line(read):
    """The next question or command, of as many lines as it has. read: a function from a prompt to
    a line, which raises EOFError at the end."""
    line = read("> ")
    with contextlib.suppress(EOFError):                       # the end ends an open question too
        if line.lstrip().startswith(QUOTES):
            line = line.lstrip().removeprefix(QUOTES)
            while QUOTES not in line:
                line += "\n" + read("... ")
            line, _, _ = line.partition(QUOTES)
        elif not line.startswith("/"):
            while line.endswith("\\"):
                line = line.removesuffix("\\") + "\n"
                line += read("... ")
    return line
