"""The terminal of chat.py: a picture in half blocks, dim notes, typed lines, no control characters from elsewhere."""
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

# Control characters but tab and newline, and those that turn the direction of writing
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
COLOURLESS = ("dumb", "unknown", "vt")                        # how the names of such terminals begin

# The colours 16 to 255 of a terminal that has 256: a cube of 6 x 6 x 6, then 24 greys
LEVELS = (0, 95, 135, 175, 215, 255)
PALETTE = np.array([(r, g, b) for r in LEVELS for g in LEVELS for b in LEVELS]
                   + [(grey, grey, grey) for grey in range(8, 248, 10)])


def clean(text):
    """Text as it may go to a terminal: without what could move its cursor, colour it or answer for the user."""
    return CONTROL.sub("", text)


def colours_of(stream):
    """How many colours a stream shows: 2 ** 24, 256, or 0 where no escape sequence may go: a pipe, NO_COLOR, a terminal
    without colours or half blocks."""
    terminal = os.environ.get("TERM", "dumb")
    if not stream.isatty() or os.environ.get("NO_COLOR") or terminal.startswith(COLOURLESS):
        return 0
    if "utf" not in (stream.encoding or "").lower():
        return 0
    return 2 ** 24 if os.environ.get("COLORTERM") in ("truecolor", "24bit") else 256


def colour_codes(pixels, colours):
    """pixels (height, width, 3) of uint8 -> the same grid as the part of an escape sequence that names the colour."""
    if colours == 256:
        distance = ((pixels[:, :, None].astype(int) - PALETTE) ** 2).sum(axis=-1)
        return [[f"5;{16 + i}" for i in row] for row in distance.argmin(axis=-1).tolist()]
    return [[f"2;{r};{g};{b}" for r, g, b in row] for row in pixels.tolist()]


def half_blocks(image, columns, rows, colours):
    """A picture, never enlarged, as text of at most columns x rows characters. A character is twice as high as wide,
    so each is two pixels: an upper half block in the colour of the upper, on the colour of the lower."""
    scale = min(columns / image.width, 2 * rows / image.height, 1)
    size = max(1, round(image.width * scale)), 2 * max(1, round(image.height * scale / 2))
    codes = colour_codes(np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS)), colours)
    return "\n".join("".join(f"\x1b[38;{upper};48;{lower}m\N{UPPER HALF BLOCK}"
                             for upper, lower in zip(*pair, strict=True)) + "\x1b[0m"
                     for pair in zip(codes[::2], codes[1::2], strict=True))


def typed_path(text):
    """The path that someone typed, or dropped onto the terminal: with or without quotes, escaped spaces, ~."""
    path = Path(text).expanduser()
    if not path.exists():
        with contextlib.suppress(ValueError):                 # a single quotation mark is part of a name
            path = Path(" ".join(shlex.split(text))).expanduser()
    return path


def wrapped(pieces, width):
    """Pieces of text as whole words, with a line break for the space before a word that its line has no room for."""
    column, held = 0, ""
    for piece in itertools.chain(pieces, ["\n"]):             # the end ends the last word
        held += piece
        while match := re.match(r"(\s*)(\S+)(?=\s)", held):
            held, (space, word) = held[match.end():], match.groups()
            if "\n" not in space and 0 < column and column + len(space + word) > width:
                space = "\n"
            column = len((" " * column + space + word).rpartition("\n")[2])
            yield space + word


class Terminal:
    """Where the lines come from. Answers go to stdout, all else to stderr, and notes only to someone who types.

    typed: whether someone types; read: whether answers go to a terminal; colours: see colours_of. plain: as they come.
    """

    def __init__(self, plain=False):
        self.typed, self.read = sys.stdin is not None and sys.stdin.isatty(), sys.stdout.isatty()
        self.colours, self.plain = 0 if plain else colours_of(sys.stderr), plain

    def note(self, text):
        """A dim line for someone who types."""
        if self.typed:
            print(f"\x1b[2m{clean(text)}\x1b[0m" if self.colours else clean(text), file=sys.stderr)

    def show(self, image):
        """The picture, if someone is there to see it: in half the height of the terminal at most."""
        if self.typed and self.colours:
            columns, lines = shutil.get_terminal_size()
            print(half_blocks(image, min(columns - 1, 48), min(lines // 2, 16), self.colours), file=sys.stderr)

    def print(self, pieces):
        """Print an answer as it comes, and end its line -> the time when it began, None if there is none."""
        began = None
        try:
            for piece in wrapped(pieces, shutil.get_terminal_size()[0]) if self.read and not self.plain else pieces:
                began = began or time.perf_counter()
                print(piece, end="", flush=True)
        finally:
            print(flush=True)
        return began

    def lines(self):
        """Yield the lines of stdin. Someone who types gets a prompt (on stderr if stdout is elsewhere), line editing
        and history; Ctrl-C drops the line."""
        sys.stdin.reconfigure(errors="replace")
        if not self.typed:
            yield from sys.stdin
            return
        with contextlib.suppress(ImportError):                # some builds of Python have none
            import readline
            readline.parse_and_bind("tab: complete")          # names of files
            readline.set_completer_delims(" ")
        while True:
            try:
                if not self.read:
                    print("> ", end="", file=sys.stderr, flush=True)
                line = input("> " if self.read else "")
            except EOFError:
                print(file=sys.stderr)
                return
            except KeyboardInterrupt:
                print("\nCtrl-D or /quit ends.", file=sys.stderr)
            else:
                yield line
