"""A run of training: its folder, its log, its checkpoints, and the signals that stop it.

docs/training.md lists what a run writes; each file is there whole or not at all. A checkpoint has
whole tensors, however many processes trained, so any number of them can resume.
"""
import contextlib
import fcntl
import json
import math
import os
import signal
import time
import zlib

import torch

from artgpt4 import errors_naming
from common.command_line import Misuse, Progress, signals_kept
from common.files import check_file, save_tensors, written_beside
from conversion.checkpoints import compare_checksum
from training.processes import RANK, copy_whole, local, say, whole

RESULTS = ("adapter.safetensors", "best.safetensors", "samples.png", "familiarity.safetensors")
STOP = (signal.SIGTERM, signal.SIGINT)
BAD_STEPS = 10          # this many steps in a row whose loss is not finite end a run


def checkpoints(folder):
    """The checkpoints in a run's folder, oldest first."""
    return sorted(folder.glob("checkpoint-*-of-*.pt"))


def can_resume(folder, resume, overwrite):
    """Whether a run in `folder` is to be continued; resume and overwrite are the user's flags.
    Raises ValueError if the folder holds a model, or a run that neither of them lets go."""
    if (folder / "config.json").exists():
        raise ValueError(f"{folder}: the folder holds a model; give another --out")
    saved, log = checkpoints(folder), folder / "log.jsonl"
    results = saved[-1:] + [folder / name for name in RESULTS if (folder / name).exists()]
    if overwrite or (resume and (saved or folder / "adapter.safetensors" not in results)):
        return not overwrite and len(saved) > 0
    if results or (log.is_file() and log.stat().st_size > 0):
        raise ValueError(f"{[*results, log][0]}: the folder holds a run; give another --out, "
                         "--overwrite to delete it, or --resume if it has a checkpoint")
    return False


class Run:
    """The bookkeeping of one run, in each of its processes; rank 0 alone writes files. flags:
    {flag: value} of all that makes this run what it is; steps: its length."""

    def __init__(self, folder, flags, steps):
        self.folder, self.flags, self.steps = folder, flags, steps
        self.step = self.bad = self.faults = self.log_size = 0
        self.best, self.is_best = math.inf, False             # validation loss

    @contextlib.contextmanager
    def begin(self, model, optimizer, resume, overwrite):
        """The context of the training loop: the log is open, signals are kept, and what the last
        checkpoint holds is loaded. Raises ValueError if another process trains there."""
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.tensors = {f"weights.{name}": model.get_parameter(name)
                        for name in model.trainable_names()}
        for parameter, state in optimizer.state.items():      # step, exp_avg, exp_avg_sq
            self.tensors |= {f"{key}.{names[parameter]}": value for key, value in state.items()}
        with open_log(self.folder) as self.log_file, signals_kept(*STOP) as self.signals:
            if can_resume(self.folder, resume, overwrite):
                self.load(checkpoints(self.folder)[-1])
            elif resume:
                say(f"{self.folder}: no checkpoint to resume from; the run starts at step 1")
            if RANK == 0:
                old = [*checkpoints(self.folder), *(self.folder / name for name in RESULTS)]
                for file in [*self.folder.glob(".*.part"), *([] if self.step else old)]:
                    file.unlink(missing_ok=True)              # what a kill left half-written, too
                size = min(self.log_size, self.log_file.seek(0, os.SEEK_END))
                self.log_file.seek(self.log_file.truncate(size))
            self.progress = Progress("training", self.steps, "steps", before=self.step)
            yield

    def is_finite(self, loss, norm):
        """Whether a step can be taken. Raises ValueError after BAD_STEPS in a row that cannot."""
        self.bad = 0 if math.isfinite(loss + norm) else self.bad + 1
        if self.bad == min(BAD_STEPS, self.steps):
            raise ValueError(f"the loss was not finite in {self.bad} steps up to step {self.step}; "
                             "a lower --lr may help, or the files of --weights hold NaN")
        return self.bad == 0

    def log(self, numbers, faults):
        """Write the line of a step: the time, its numbers, and what faults its batch has."""
        val_loss = numbers.get("val_loss", math.inf)
        self.is_best, self.best = val_loss < self.best, min(self.best, val_loss)
        entry = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        entry = {"step": self.step, "time": time.time()} | entry | {"faults": faults}
        with errors_naming(self.log_file.name):               # a full disk
            self.log_file.write(json.dumps(entry).encode() + b"\n")
            self.log_file.flush()
        self.faults += len(faults)
        note = f", {self.faults} samples bad or cut, see log.jsonl" if self.faults else ""
        if RANK == 0:
            self.progress.show(self.step, f"loss {numbers['loss']:.3f}{note}")

    def save(self):
        """Write a checkpoint, and the results that its weights are; remove all but the last two
        checkpoints. All processes call it, because each may hold a share of the tensors."""
        tensors = {}
        for name, tensor in self.tensors.items():
            tensor = whole(tensor).detach()
            if RANK == 0:
                tensors[name] = tensor.cpu()
        if RANK > 0:
            return
        state = {"step": self.step, "flags": self.flags, "tensors": tensors, "best": self.best,
                 "log_size": self.log_file.tell()}
        weights = {name.removeprefix("weights."): tensor for name, tensor in tensors.items()
                   if name.startswith("weights.")}
        os.fsync(self.log_file.fileno())                      # as far as the checkpoint says
        if self.is_best:                                      # after a kill the step comes again
            save_tensors(weights, self.folder / "best.safetensors")
        name = f"checkpoint-{self.step:07d}-of-{self.steps:07d}.pt"
        with written_beside(self.folder / name) as path:
            torch.save(state, path)
        save_tensors(weights, self.folder / "adapter.safetensors")
        for old in checkpoints(self.folder)[:-2]:
            old.unlink(missing_ok=True)

    @torch.no_grad()
    def load(self, file):
        """Copy what a checkpoint holds into weights and optimizer, once all of it is known to fit.
        Raises ValueError, naming the file, if it is damaged, Misuse if it has other flags."""
        check_file(file)
        with errors_naming(f"{file}: damaged; without it --resume takes the one before it"):
            compare_checksum(file)
            saved = torch.load(file, "cpu", weights_only=True, mmap=True)
            flags, tensors, *numbers = (saved[key] for key in (
                "flags", "tensors", "step", "best", "log_size"))
        for flag, value in self.flags.items():
            if flags.get(flag) != value:
                raise Misuse(f"{file}: that run has {flag} {flags.get(flag)}, not {value}; resume "
                             "it with the same flags, or give another --out")
        kinds, expected = ({name: (tensor.shape, tensor.dtype) for name, tensor in each.items()}
                           for each in (tensors, self.tensors))
        if kinds != expected or not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError(f"{file}: other tensors than this model's, or with NaN or infinity")
        for name, tensor in self.tensors.items():
            copy_whole(tensors[name], tensor)
        self.step, self.best, self.log_size = numbers


def open_log(folder):
    """The log of a run, in rank 0 locked: the kernel frees it when the process ends, however it
    ends. Raises ValueError if another process holds it."""
    if RANK > 0:
        return open(os.devnull, "ab+")
    folder.mkdir(parents=True, exist_ok=True)
    opened = open(folder / "log.jsonl", "ab+")
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{folder}: another run is writing there; wait for its end, or give "
                         "another --out") from None
    except OSError:                                           # a file system without locks
        pass
    return opened


def frozen_checksum(model):
    """CRC-32, in hexadecimal, of a model's config, its tokenizer, and every value that is never
    trained."""
    crc = zlib.crc32(repr(model.config).encode() + model.tokenizer.serialized_model_proto())
    trainable = set(model.trainable_names())
    for name, tensor in sorted(model.state_dict().items()):
        if name not in trainable:
            values = local(tensor).cpu().contiguous().flatten().view(torch.uint8)
            crc = zlib.crc32(values.numpy(), zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"
