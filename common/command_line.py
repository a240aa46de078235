"""What the commands share: errors in one line, exit codes, argparse types."""
import argparse
import os
import signal
import sys
import traceback

from common.start import end_at_once

LONGEST_MESSAGE = 500                                         # characters


def printable(text):
    """A text whose control characters are escaped: names of files and tensors may hold any."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def one_line(error):
    """The message of an exception, in one line. Errors of workers begin with a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    if lines[0].startswith(("Traceback", "Caught ")):
        lines = lines[-1:]
    text = printable(" ".join(lines))
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + " ..."


class Misuse(ValueError):
    """Flags that are wrong or do not go together; a command then ends with exit code 2."""


def run_command(main, parser, arguments=None):
    """Parse the arguments (default: those of the process) and run main(args) as a command.

    An error is one line on stderr, and the exit code is then 1, for Misuse 2. One that nobody
    foresaw is called an internal error. With --debug the traceback is printed too. After Ctrl-C the
    code is 130. A closed pipe ends quietly, with 1.
    """
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    args = parser.parse_args(arguments)
    started = signal.getsignal(signal.SIGINT) is end_at_once
    try:
        if sys.stdout is None:
            raise ValueError("standard output is closed; send it to a file or to /dev/null")
        if started:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        text = one_line(error)
        if not isinstance(error, ValueError | OSError | RuntimeError):
            text = f"internal error ({type(error).__name__}: {text}); --debug shows where"
        if args.debug:
            traceback.print_exc()
        print(f"{parser.prog}: {text}", file=sys.stderr)
        sys.exit(2 if isinstance(error, Misuse) else 1)
    finally:
        if started:
            signal.signal(signal.SIGINT, end_at_once)


def number(kind, low, high):
    """An argparse type: a number of a kind, int or float, from low to high."""
    name = "whole number" if kind is int else "number"

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {name} from {low} to {high}")
        return value
    return parse
