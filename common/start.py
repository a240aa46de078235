"""How a command starts. It imports this before all else, so that Ctrl-C is one line from then on:
its other imports take seconds."""
import _signal as signal         # without the imports of signal itself, enum above all
import os
import sys


def end_at_once(*_):
    """What Ctrl-C does outside of main: one line, exit code 130. An exception would not do: half
    imported modules print tracebacks, and C++ libraries abort."""
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


def start_command():
    """Prepare the process of a command, before its slow imports.

    Ctrl-C ends it at once from now on, until run_command calls main. Standard streams that were
    closed (`2>&-`) become /dev/null: no file that is opened later takes their number. torch is to
    ask the kernel for large pages: weights are then read from memory up to a fourth faster.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:        # else: ignored, by &
        signal.signal(signal.SIGINT, end_at_once)
    if None in (sys.stdin, sys.stdout, sys.stderr):
        while os.open(os.devnull, os.O_RDWR) <= 2:
            pass
    if sys.stderr is None:                                    # print would take stdout instead
        sys.stderr = open(os.devnull, "w")
