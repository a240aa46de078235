"""What outlives an interruption: a run's checkpoints, its log, the signals that ask it to stop; for any number of
processes.

A checkpoint is RUN/checkpoint-STEP-of-STEPS.pt: {"step", "run" (what --resume compares), "weights" and "optimizer" by
the names of what trains, and what train.py adds}. Its tensors are whole, however many processes trained, so any other
number of them can go on. It is written beside and renamed, so it is there whole or not at all; the last two are kept.
"""
import contextlib
import os
import signal
import sys
import zipfile
import zlib

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from artgpt4 import trainable_names
from common.files import written_beside

# ---- One of several processes

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))       # as torchrun says


@contextlib.contextmanager
def processes(device):
    """Join the processes that torchrun started, if it did. Yields this one's device."""
    if "RANK" not in os.environ:
        yield device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
        dist.destroy_process_group()
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise ValueError(f"rank {RANK} has lost another process of this run, and ends too; after its error is mended, "
                         "the same command with --resume goes on from the last checkpoint") from error


def say(line, file=None):
    """Print, in rank 0 alone."""
    if RANK == 0:
        print(line, file=file, flush=True)


@contextlib.contextmanager
def rank_0_first():
    """Rank 0 does what is in the block, then the others, who find its files."""
    if RANK:
        dist.barrier()
    yield
    if WORLD > 1 and not RANK:
        dist.barrier()


def total(numbers, device):
    """Each of the numbers, summed over all processes."""
    tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
    if WORLD > 1:
        dist.all_reduce(tensor)
    return tensor.tolist()


def whole(tensor):
    """The tensor on the CPU in rank 0, gathered from all processes if it is spread (FSDP2); in the others None."""
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return None if RANK else tensor.detach().cpu()


def share(tensor, parameter):
    """What this process holds of `parameter`, on its device, from the whole tensor. A count of steps stays as it is."""
    if isinstance(parameter, DTensor) and tensor.ndim:
        tensor = tensor.to(parameter.device)
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor.to(parameter.device if tensor.ndim else "cpu", copy=True)


# ---- Checkpoints


def checkpoints(out):
    """The checkpoints in a run's folder, oldest first."""
    return sorted(out.glob("checkpoint-*-of-*.pt"))


def unfinished(out):
    """Whether the last checkpoint in a run's folder is not of its last step."""
    steps = [file.stem.split("-")[1::2] for file in checkpoints(out)[-1:]]           # [[STEP, STEPS]] or []
    return any(int(step) < int(last) for step, last in steps)


def whole_state(optimizer, weights):
    """{name: {"exp_avg": whole tensor, ...}} of an optimizer; weights: {name: parameter}. For restore."""
    return {name: {key: whole(value) for key, value in optimizer.state[parameter].items()}
            for name, parameter in weights.items() if parameter.requires_grad}


def save_checkpoint(out, step, steps, **state):
    """Write a checkpoint, and remove all before the last. Rank 0 writes."""
    if RANK == 0:
        with written_beside(out / f"checkpoint-{step:07d}-of-{steps:07d}.pt") as path:
            torch.save({"step": step} | state, path)
        for old in checkpoints(out)[:-2]:
            old.unlink()


def load_checkpoint(out, run):
    """The newest whole checkpoint in a run's folder, or None where there is none. Raises ValueError if all are damaged,
    or if it is of another run: `run` is {flag: value} of all that makes a run what it is."""
    files = checkpoints(out)
    for file in reversed(files):
        try:
            with zipfile.ZipFile(file) as archive:            # torch.load itself compares no checksums
                if part := archive.testzip():
                    raise ValueError(f"{part} does not match its checksum")
            checkpoint = torch.load(file, "cpu", weights_only=True, mmap=True)
            break
        except Exception as error:                            # a damaged file can raise anything
            say(f"{file}: damaged ({error}); taking the one before", file=sys.stderr)
    else:
        if files:
            raise ValueError(f"{out}: none of its checkpoints is whole; --overwrite begins anew")
        return None
    for flag, value in run.items():
        if checkpoint["run"].get(flag) != value:
            raise ValueError(f"{file}: that run has --{flag.replace('_', '-')} {checkpoint['run'].get(flag)}, this one "
                             f"{value}; resume it with the same, or begin anew with --overwrite or another --out")
    return checkpoint


def restore(checkpoint, weights, optimizer):
    """Put a checkpoint's tensors into the parameters and the optimizer."""
    for name, parameter in weights.items():
        with torch.no_grad():
            parameter.copy_(share(checkpoint["weights"][name], parameter))
        for key, value in checkpoint["optimizer"].get(name, {}).items():
            optimizer.state[parameter][key] = share(value, parameter)


def frozen_checksum(model):
    """CRC-32 of the beginning of every tensor that never trains, in hexadecimal: whether two models are the same."""
    crc, trains = 0, set(trainable_names(model.config))
    for name, tensor in model.state_dict().items():
        if name not in trains:
            crc = zlib.crc32(tensor.flatten()[:4096].contiguous().view(torch.uint8).cpu().numpy(), crc)
    return f"{crc:08x}"


def begin_folder(out, step):
    """Make a run's folder. Its log keeps the lines of the first `step` steps; step 0 keeps nothing of an older run."""
    out.mkdir(parents=True, exist_ok=True)
    old = () if step else (out / "score.json", *checkpoints(out))
    for file in (*old, *out.glob(".*.part")):                 # and what a kill left half written
        file.unlink(missing_ok=True)
    log = out / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)[:step] if log.is_file() else []
    with written_beside(log) as path:
        path.write_text("".join(lines))


@contextlib.contextmanager
def signals_kept():
    """A list to which SIGTERM and SIGINT (Ctrl-C) are appended when they come, instead of ending the process."""
    received = []
    before = {number: signal.signal(number, lambda number, frame: received.append(number))
              for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
