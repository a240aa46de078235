"""What the commands share: errors in one line, exit codes, argparse types, progress, tables."""
import argparse
import contextlib
import os
import shutil
import signal
import sys
import time
import traceback
from html import escape

from safetensors import SafetensorError


def printable(text):
    """A text whose control characters are escaped: names of files and tensors may hold any."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def one_line(error):
    """The message of an exception, in one line. Errors of workers begin with a traceback."""
    text = str(error).strip() or repr(error)
    if text.startswith(("Traceback", "Caught ")):
        text = text.splitlines()[-1]
    text = printable(" ".join(text.split()))
    return text if len(text) <= 500 else text[:500] + " ..."


class Misuse(ValueError):
    """Flags that are wrong or do not go together; a command then ends with exit code 2."""


def command_parser(name, text, **options):
    """The parser of a command: its name, and the text that --help begins with, as it stands."""
    return argparse.ArgumentParser(
        name, description=text, formatter_class=argparse.RawDescriptionHelpFormatter, **options)


def run_command(main, parser, arguments=None):
    """Parse the arguments (default: those of the process) and run main(args) as a command. An error
    is one line on stderr, with --debug after its traceback, and the exit code is then 1, for Misuse
    2. One that nobody foresaw is called internal. After Ctrl-C the code is 130. A closed pipe ends
    quietly, with 1."""
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    if None in (sys.stdin, sys.stdout, sys.stderr):           # closed, as by 2>&-: their numbers
        while os.open(os.devnull, os.O_RDWR) <= 2:            # are no file's that is opened later
            pass
        for name in ("stdin", "stdout", "stderr"):
            setattr(sys, name, getattr(sys, name) or open(os.devnull, "r+"))
    try:
        args = parser.parse_args(arguments)
        main(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)               # below a line of progress
        sys.exit(130)
    except Exception as error:
        text = one_line(error)
        if not isinstance(error, ValueError | OSError | RuntimeError | SafetensorError):
            text = f"internal error ({type(error).__name__}: {text}); --debug shows where"
        if args.debug:
            traceback.print_exc()
        print(f"{parser.prog}: {text}", file=sys.stderr)
        sys.exit(2 if isinstance(error, Misuse) else 1)


@contextlib.contextmanager
def signals_kept(*numbers):
    """Yields a list that collects these signals, which would end the process. A KeyboardInterrupt
    is lost if Ctrl-C comes while Python runs a finalizer; this is not."""
    received = []
    before = {number: signal.signal(number, lambda number, _: received.append(number))
              for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def number(kind, low, high):
    """An argparse type: a number of a kind, int or float, from low to high."""
    def parse(text):
        with contextlib.suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        name = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"{text!r} is not a {name} from {low} to {high}")
    return parse


class Progress:
    """How much of long work is done, how fast, how much time is left: on a terminal one line that
    is rewritten, elsewhere a line every 10 seconds. total and the `done` of show() are in `unit`.
    before: what an earlier run had done."""

    def __init__(self, what, total, unit, before=0):
        self.what, self.total, self.unit, self.before = what, total, unit, before
        self.start, self.last = time.monotonic(), 0.0

    def show(self, done, note=""):
        now, terminal, finished = time.monotonic(), sys.stderr.isatty(), done >= self.total
        if now - self.last < (0.2 if terminal else 10) and not finished:
            return
        self.last, seconds = now, max(now - self.start, 1e-9)
        speed = max(done - self.before, 1e-9) / seconds
        left = int((self.total - done) / speed)
        rest = [f"{seconds:.0f} s" if finished else f"{left // 60}:{left % 60:02d} left", note]
        line = f"{self.what} {done:g}/{self.total:g} {self.unit}, {speed:.3g} {self.unit}/s"
        width = shutil.get_terminal_size().columns - 1 if terminal and not finished else None
        self.say(", ".join([line, *filter(None, rest)])[:width], "" if width else "\n")

    def say(self, text, end="\n"):
        """Print a line of its own above the progress."""
        start = "\r\033[K" if sys.stderr.isatty() else ""
        print(start + text, end=end, file=sys.stderr, flush=True)


def markdown_table(header, rows):
    """A table of texts in Markdown; nothing in a cell is HTML or a bar."""
    def line(cells):
        texts = (escape(" ".join(str(cell).split()), quote=False) for cell in cells)
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])
