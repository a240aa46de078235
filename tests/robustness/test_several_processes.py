"""Training in two processes: the losses of one, and what happens when one of them is killed."""
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

from tests.robustness.kill_and_resume import losses, train_command
from tests.training.short_runs import ROOT, TINY, log_of, train_py
from training.checkpoints import checkpoints, unfinished


@contextlib.contextmanager
def torchrun(*flags):
    """train.py with flags in two processes; those still running at the end are killed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--local-addr=127.0.0.1", "--nproc-per-node=2", ROOT / "train.py", *flags]
    environment = {"OMP_NUM_THREADS": "1"}
    if Path("/sys/class/net/lo").exists():           # so that no host name is looked up
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    run = subprocess.Popen([*map(str, command)], env=os.environ | environment, text=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield run
    finally:
        ranks = children(run.pid)
        run.kill()
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def parents():
    """{process: its parent} of all processes, from /proc; where there is none (macOS), from ps."""
    if not Path("/proc/self/stat").exists():
        lines = subprocess.check_output(["ps", "-A", "-o", "pid=,ppid="], text=True).splitlines()
        return dict(map(int, line.split()) for line in lines)
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):                    # it has just ended
            _, _, fields = file.read_text().rpartition(")")
            found[int(file.parent.name)] = int(fields.split()[1])
    return found


def children(pid):
    """The processes that a process has started."""
    return sorted(process for process, parent in parents().items() if parent == pid)


@pytest.mark.parametrize("fsdp", [[], ["--fsdp", "--checkpointing"]],
                         ids=["DistributedDataParallel", "fully_shard"])
def test_two_processes_have_the_losses_of_one_which_can_resume_their_run(
        training_folder, pairs, monkeypatch, fsdp):
    flags = ["--stage", 2, "--data", pairs, "--init", TINY / "adapter.safetensors",
             "--batch-size", 4, "--steps", 4, "--warmup-steps", 1,
             "--eval-every", 2, "--val", 4, "--workers", 0]
    one, two = training_folder / "one", training_folder / f"two{len(fsdp)}"
    if not one.exists():
        assert train_py(monkeypatch, *flags, "--out", one) is None
    with torchrun(*flags, *fsdp, "--out", two) as run:
        _, error = run.communicate(timeout=200)
    assert run.returncode == 0, error
    expected = log_of(one)
    for resumed in (False, True):
        for entry, other in zip(expected, log_of(two), strict=True):
            assert other["loss"] == pytest.approx(entry["loss"], abs=1e-5)
            val_loss = entry.get("val_loss", 0)
            assert other.get("val_loss", 0) == pytest.approx(val_loss, abs=1e-5)
        adapter = load_file(two / "adapter.safetensors")
        for name, tensor in load_file(one / "adapter.safetensors").items():
            torch.testing.assert_close(adapter[name], tensor, atol=1e-4, rtol=1e-3)
        if not resumed:
            checkpoints(two)[-1].unlink()
            assert train_py(monkeypatch, *flags, "--out", two, "--resume") is None


def test_a_killed_process_ends_the_others_with_a_line_and_one_process_can_resume(
        training_folder, pairs, monkeypatch):
    out = training_folder / "lost"
    flags = train_command(pairs, out, 30)[2:]
    with torchrun(*flags) as run:
        started = time.monotonic()
        while not checkpoints(out) and time.monotonic() - started < 90:
            time.sleep(0.05)
        os.kill(children(run.pid)[-1], signal.SIGKILL)
        _, error = run.communicate(timeout=200)
    assert run.returncode == 1 and "rank 0 lost another process of this run" in error
    assert unfinished(out) and train_py(monkeypatch, *flags, "--resume") is None
    found = losses(out)
    assert [step for step, _ in found] == list(range(1, 31))
    (_, first_loss), *_, (_, last_loss) = found
    assert last_loss < first_loss
