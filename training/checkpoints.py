"""Checkpoints: the saved states of a run, from which it continues to the same bits.

A checkpoint is RUN/checkpoint-STEP-of-STEPS.pt: {"step", "run" (what --resume compares),
"weights" and "optimizer" by the names of the trainable parameters, and the counters of
training/run.py}. Its tensors are whole, however many processes trained, so any other number of
them can resume. It is written beside and renamed, so it is there whole or not at all. The last
two are kept.
"""
import math
import sys
import zipfile
import zlib

import torch
from torch.distributed.tensor import DTensor

from common.files import written_beside
from training.processes import RANK, say, share_of, whole

CHECKED = 65536         # values of each tensor that frozen_checksum takes, at equal distances


def checkpoints(folder):
    """The checkpoints in a run's folder, oldest first."""
    return sorted(folder.glob("checkpoint-*-of-*.pt"))


def unfinished(folder):
    """Whether the last checkpoint in a run's folder is not that of its last step."""
    files = checkpoints(folder)
    if not files:
        return False
    _, step, _, steps = files[-1].stem.split("-")
    return int(step) < int(steps)


def whole_state(optimizer, weights):
    """An optimizer's state as {name: {"exp_avg": whole tensor, ...}}; weights: {name: parameter}.

    All processes call it; only rank 0 gets the tensors.
    """
    state = {}
    for name, parameter in weights.items():
        if parameter.requires_grad:
            state[name] = {key: whole(value) for key, value in optimizer.state[parameter].items()}
    return state


def save_checkpoint(folder, step, steps, **state):
    """Write a checkpoint and remove all but the last two. Only rank 0 writes."""
    if RANK > 0:
        return
    with written_beside(folder / f"checkpoint-{step:07d}-of-{steps:07d}.pt") as path:
        torch.save({"step": step} | state, path)
    for old in checkpoints(folder)[:-2]:
        old.unlink()


def read_checkpoint(file):
    """The dictionary in a checkpoint file, its tensors mapped from disk.

    Raises ValueError, or whatever torch and zipfile raise, if the file is damaged.
    """
    with zipfile.ZipFile(file) as archive:           # torch.load does not compare the checksums
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"{damaged} does not match its checksum")
    return torch.load(file, "cpu", weights_only=True, mmap=True)


def load_checkpoint(folder, identity):
    """The newest undamaged checkpoint in a run's folder, or None if there is no checkpoint.

    identity: {flag: value} of all that makes a run what it is. Raises ValueError if the
    checkpoint belongs to a run with another identity, or if all checkpoints are damaged.
    """
    files = checkpoints(folder)
    for file in reversed(files):
        try:
            checkpoint = read_checkpoint(file)
        except Exception as error:                   # a damaged file can raise anything
            say(f"{file}: damaged ({error}); using the one before it", file=sys.stderr)
            continue
        compare(file, checkpoint["run"], identity)
        return checkpoint
    if files:
        raise ValueError(f"{folder}: all its checkpoints are damaged; start again with --overwrite")
    return None


def compare(file, saved, identity):
    """Raise ValueError, naming the flag, if the checkpoint in `file` is of another run."""
    for flag, value in identity.items():
        if saved.get(flag) != value:
            raise ValueError(
                f"{file}: that run has --{flag.replace('_', '-')} {saved.get(flag)}, this one "
                f"{value}; resume it with the same value, or start a new run with --overwrite or "
                "another --out")


def restore(checkpoint, weights, optimizer):
    """Copy a checkpoint's tensors into the parameters and the optimizer."""
    for name, parameter in weights.items():
        with torch.no_grad():
            parameter.copy_(share_of(checkpoint["weights"][name], parameter))
        for key, value in checkpoint["optimizer"].get(name, {}).items():
            optimizer.state[parameter][key] = share_of(value, parameter)


def frozen_checksum(model, parts=("",)):
    """CRC-32, in hexadecimal, of values from all over every tensor that is never trained, or of
    those whose names begin with one of `parts`.

    Two models with the same checksum are taken for the same model.
    """
    crc, trainable = 0, set(model.trainable_names())
    for name, tensor in model.state_dict().items():
        if name not in trainable and name.startswith(parts):
            stride = math.ceil(tensor.numel() / CHECKED)
            values = tensor.flatten()[::stride].contiguous().view(torch.uint8)
            crc = zlib.crc32(values.cpu().numpy(), crc)
    return f"{crc:08x}"


def not_finite(model):
    """The name of a tensor of the model that holds NaN or infinity, or None."""
    for name, tensor in model.state_dict().items():
        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return name
    return None
