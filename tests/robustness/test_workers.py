"""The loader's workers end with the run that started them."""
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from tests.robustness.kill_and_resume import small_data
from training import data


def hear_ctrl_c():
    """In a new process: a shell's background job would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_workers_die_quietly_with_the_run(tmp_path):
    pairs = small_data(tmp_path / "pairs")
    program = """if True:
        import contextlib, multiprocessing, sys
        from training import data
        steps = data.batches(data.open_source(sys.argv[1]), 1, 28, 4, 10**6, 1, workers=2)
        next(steps)
        with contextlib.suppress(KeyboardInterrupt):
            print(*[child.pid for child in multiprocessing.active_children()], flush=True)
            for step in steps:
                pass
    """
    ends = (signal.SIGKILL, signal.SIGINT)
    runs = [subprocess.Popen(
        [sys.executable, "-c", program, pairs], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True, preexec_fn=hear_ctrl_c) for _ in ends]
    for end, run in zip(ends, runs, strict=True):
        assert len(run.stdout.readline().split()) == 2
        os.killpg(run.pid, end)
        _, errors = run.communicate(timeout=60)      # waits for the workers: they hold the pipe
        assert errors == "", end


def test_a_killed_worker_is_an_error_of_one_line(tmp_path):
    source = data.open_source(small_data(tmp_path / "pairs"))
    before = set(multiprocessing.active_children())
    steps = data.batches(source, 1, 28, 4, 10**6, 1, workers=1)
    next(steps)
    [worker] = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(ValueError, match="^a process that reads pictures was killed[^\n]*$"):
        for _ in steps:
            pass
