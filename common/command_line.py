"""What the commands share: errors in one line, exit codes, argparse types."""
import argparse
import os
import sys
import traceback


def last_line(error):
    """The message of an exception, in one line. Errors of workers begin with a traceback."""
    text = str(error).strip() or repr(error)
    return text.splitlines()[-1]


def run_command(main, parser, arguments=None):
    """Parse the arguments (default: those of the process) and run main(args) as a command.

    An error that a user can cause is one line on stderr, and the exit code is then 1. With --debug
    its traceback is printed too. After Ctrl-C the code is 130. A closed pipe ends quietly, with 1.
    """
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    args = parser.parse_args(arguments)
    try:
        main(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        if args.debug:
            traceback.print_exc()
        print(f"{parser.prog}: {last_line(error)}", file=sys.stderr)
        sys.exit(1)


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
