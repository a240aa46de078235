"""Runs that are killed, in one process and in two, and end with the bits or losses of others."""
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training import kill_and_resume
from tests.training.kill_and_resume import (
    ENVIRONMENT, ROOT, SAVING, log_of, losses, small_data, train_command,
)
from tests.training.small_files import TINY, train_py, write_files
from training.run import checkpoints


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("data") / "pairs")


def test_a_run_killed_at_a_random_moment_and_while_saving_ends_with_the_same_bits(capsys):
    with pytest.raises(SystemExit) as ended:
        kill_and_resume.main(2)
    assert ended.value.code == 0
    assert ", half-written " in capsys.readouterr().out.split("kill 2:")[1]


# ---- Two processes


@contextlib.contextmanager
def torchrun(folder, *flags):
    """train.py with flags in two processes; those still running at the end are killed."""
    program = write_files(folder, {"saving.py": f"if __name__ == '__main__': {SAVING}".encode()})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--local-addr=127.0.0.1", "--nproc-per-node=2", program / "saving.py", *flags]
    environment = {"GLOO_SOCKET_IFNAME": "lo"} if Path("/sys/class/net/lo").exists() else {}
    run = subprocess.Popen([*map(str, command)], env=ENVIRONMENT | environment, text=True, cwd=ROOT,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield run
    finally:
        ranks = children(run.pid)
        run.kill()
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def children(pid):
    """The processes that a process has started."""
    lines = subprocess.check_output(["ps", "-A", "-o", "pid=,ppid="], text=True).splitlines()
    pairs = [tuple(map(int, line.split())) for line in lines]
    return sorted(child for child, parent in pairs if parent == pid)


@pytest.mark.parametrize("more", [
    [], ["--moments", "bfloat16", "--fsdp", "--checkpointing"]], ids=["DDP", "FSDP2"])
def test_two_processes_have_the_losses_of_one_which_can_resume_their_run(tmp_path, pairs, more):
    flags = ["--stage", 2, "--data", pairs, "--init", TINY, "--recipe", "tiny", "--lr", 1e-3,
             "--batch-size", 4, "--steps", 4, "--val", 4, "--workers", 0, *more[:2]]
    one, two = tmp_path / "one", tmp_path / "two"
    assert train_py(*flags, "--out", one) == 0
    with torchrun(tmp_path, *flags, *more[2:], "--out", two) as run:
        _, error = run.communicate(timeout=200)
    assert run.returncode == 0, error
    tolerance = 1e-3 if "bfloat16" in more else 1e-5          # its rounding differs
    for resumed in (False, True):
        for entry, other in zip(log_of(one), log_of(two), strict=True):
            assert other["loss"] == pytest.approx(entry["loss"], abs=tolerance)
            assert other["val_loss"] == pytest.approx(entry["val_loss"], abs=tolerance)
        adapter = load_file(two / "adapter.safetensors")
        for name, tensor in load_file(one / "adapter.safetensors").items():
            torch.testing.assert_close(adapter[name], tensor, atol=100 * tolerance, rtol=1e-3)
        if not resumed:
            checkpoints(two)[-1].unlink()
            assert train_py(*flags, "--out", two, "--resume") == 0


def test_a_killed_process_ends_the_others_with_a_line_and_one_process_can_resume(tmp_path, pairs):
    out = tmp_path / "lost"
    flags = train_command(pairs, out, 30)[3:]
    with torchrun(tmp_path, *flags) as run:
        started = time.monotonic()
        while not checkpoints(out) and time.monotonic() - started < 90:
            time.sleep(0.05)
        os.kill(children(run.pid)[-1], signal.SIGKILL)
        _, error = run.communicate(timeout=200)
    assert run.returncode == 1 and "rank 0 lost another process of this run" in error
    assert train_py(*flags, "--resume") == 0
    steps, found = zip(*losses(out), strict=True)
    assert steps == tuple(range(1, 31)) and found[-1] < found[0]
