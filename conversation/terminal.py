"""The terminal of chat.py: pictures in half blocks, dim notes, typed lines, safe text."""
import contextlib
import itertools
import os
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

# Control characters except tab and newline, and those that change the direction of writing
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
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


def typed_path(text):
    """A path as it was typed or dropped onto the terminal: with quotes, escaped spaces or ~."""
    path = Path(text).expanduser()
    if not path.exists():
        with contextlib.suppress(ValueError):                 # one quotation mark alone is a letter
            path = Path(" ".join(shlex.split(text))).expanduser()
    return path


def wrapped(pieces, width):
    """Yield pieces of text as whole words. A word that does not fit on its line begins a new one:
    the space before it becomes a line break."""
    column, held = 0, ""
    for piece in itertools.chain(pieces, ["\n"]):             # the newline completes the last word
        held += piece
        while match := re.match(r"(\s*)(\S+)(?=\s)", held):
            space, word = match.groups()
            held = held[match.end():]
            if "\n" not in space and 0 < column and column + len(space + word) > width:
                space = "\n"
            line = " " * column + space + word
            column = len(line.rpartition("\n")[2])
            yield space + word


class Terminal:
    """Where lines come from and answers go. Answers go to stdout, everything else to stderr.

    typed: whether someone types the lines. read: whether stdout is a terminal.
    colours: see colours_of. plain: print no picture, no colours, no added line breaks.
    """

    def __init__(self, plain=False):
        self.typed = sys.stdin is not None and sys.stdin.isatty()
        self.read = sys.stdout.isatty()
        self.plain = plain
        self.colours = 0 if plain else colours_of(sys.stderr)

    def note(self, text):
        """Print a dim line, if someone types."""
        if self.typed:
            text = clean(text)
            print(f"\x1b[2m{text}\x1b[0m" if self.colours else text, file=sys.stderr)

    def show(self, image):
        """Print a picture, if someone types, at most half as high as the terminal."""
        if self.typed and self.colours:
            columns, lines = shutil.get_terminal_size()
            text = half_blocks(image, min(columns - 1, 48), min(lines // 2, 16), self.colours)
            print(text, file=sys.stderr)

    def print(self, pieces):
        """Print an answer as it comes, and end its line. Returns the time of its first piece, as
        time.perf_counter gives it, or None for an empty answer."""
        if self.read and not self.plain:
            pieces = wrapped(pieces, shutil.get_terminal_size().columns)
        began = None
        try:
            for piece in pieces:
                if began is None:
                    began = time.perf_counter()
                print(piece, end="", flush=True)
        finally:
            print(flush=True)
        return began

    def lines(self):
        """Yield the lines of stdin.

        Someone who types gets a prompt (on stderr if stdout is no terminal), line editing and
        history. Ctrl-C discards the line.
        """
        sys.stdin.reconfigure(errors="replace")
        if not self.typed:
            yield from sys.stdin
            return
        with contextlib.suppress(ImportError):                # some builds of Python have none
            import readline
            readline.parse_and_bind("tab: complete")          # completes file names
            readline.set_completer_delims(" ")
        while True:
            try:
                if self.read:
                    line = input("> ")
                else:
                    print("> ", end="", file=sys.stderr, flush=True)
                    line = input()
            except EOFError:
                print(file=sys.stderr)
                return
            except KeyboardInterrupt:
                print("\nCtrl-D or /quit ends.", file=sys.stderr)
            else:
                yield line
