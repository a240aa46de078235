"""Runs that are killed, in one process and in two, and end with the bits or losses of others."""
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import train
from tests.training import kill_and_resume
from tests.training.kill_and_resume import ENVIRONMENT, SAVING, flags_of
from tests.training.small_files import TINY, log_of, train_py
from training.run import checkpoints


def test_a_run_killed_while_saving_and_at_any_moment_ends_with_the_same_bits(capsys, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    assert kill_and_resume.main(lambda flags: train_py(*flags), kills=2)
    assert "half-written" in capsys.readouterr().out.split("kill 1:")[1]


@contextlib.contextmanager
def two_processes(*flags):
    """train.py with flags in two processes, as torchrun starts them; killed at the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        _, port = free.getsockname()
    environment = ENVIRONMENT | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                                 "MASTER_PORT": str(port)}
    if os.path.exists("/sys/class/net/lo"):
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    runs = [subprocess.Popen(
        [sys.executable, "-c", SAVING, *map(str, flags)], env=environment | {"RANK": str(rank)},
        text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for rank in (0, 1)]
    try:
        yield runs
    finally:
        for run in runs:
            run.kill()


@pytest.fixture(scope="module")
def one(tmp_path_factory, pairs):
    """The flags of a run, and its folder when one process has trained it."""
    out = tmp_path_factory.mktemp("run") / "one"
    flags = ["--stage", 1, "--data", pairs, "--init", TINY, "--lr", 1e-3, "--batch-size", 4,
             "--steps", 4, "--val", 4, "--workers", 0]
    assert train_py(*flags, "--out", out) == 0
    return flags, out


@pytest.mark.parametrize("more", [[], ["--fsdp", "--checkpointing"]], ids=["DDP", "FSDP2"])
def test_two_processes_have_the_losses_of_one_which_can_resume_their_run(tmp_path, one, more):
    flags, expected = one
    out = tmp_path / "two"
    with two_processes(*flags, *more, "--out", out) as runs:
        for run in runs:
            _, error = run.communicate(timeout=200)
            assert run.returncode == 0, error
    for resumed in (False, True):
        for entry, other in zip(log_of(expected), log_of(out), strict=True):
            assert other["loss"] == pytest.approx(entry["loss"], abs=1e-5)
            assert other["grad_norm"] == pytest.approx(entry["grad_norm"], rel=1e-4)
        assert other["val_loss"] == pytest.approx(entry["val_loss"], abs=1e-5)
        adapter = load_file(out / "adapter.safetensors")
        for name, tensor in load_file(expected / "adapter.safetensors").items():
            torch.testing.assert_close(adapter[name], tensor, atol=1e-3, rtol=1e-3)
        if not resumed:
            checkpoints(out)[-1].unlink()
            assert train_py(*flags, "--out", out, "--resume") == 0


def test_a_killed_process_ends_the_other_with_a_line_and_one_process_can_resume(tmp_path, pairs):
    out = tmp_path / "lost"
    flags = [*flags_of(pairs, out, 12), "--moments", "bfloat16"]
    with two_processes(*flags, "--fsdp") as [run, lost]:
        started = time.monotonic()
        while not checkpoints(out) and time.monotonic() - started < 90:
            time.sleep(0.05)
        lost.send_signal(signal.SIGKILL)
        _, error = run.communicate(timeout=200)
    assert run.returncode == 1 and "rank 0 lost another process of this run" in error
    assert train_py(*flags, "--resume") == 0
    steps, found = zip(*kill_and_resume.losses(out), strict=True)
    assert steps == tuple(range(1, 13)) and found[-1] < found[0]
