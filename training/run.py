"""A run of training: its folder, its log, its checkpoints, and the signals that stop it.

    RUN/log.jsonl                          a line for every step; locked while a process trains
    RUN/checkpoint-STEP-of-STEPS.pt        step, flags, weights, optimizer; the last two are kept
    RUN/adapter.safetensors, samples.png   at every evaluation, after its checkpoint
    RUN/best.safetensors                   at the evaluation with the lowest validation loss

A checkpoint has whole tensors, however many processes trained, so any number of them can resume.
Each file is written beside and renamed, so it is there whole or not at all.
"""
import contextlib
import fcntl
import json
import math
import os
import signal
import sys
import time
import zipfile
import zlib

import torch

from common.command_line import Progress, one_line
from common.files import check_file, written_beside
from training.processes import RANK, WORLD, local, say, share_of, whole

RESULTS = ("adapter.safetensors", "best.safetensors", "samples.png", "score.json",
           "familiarity.safetensors")
SAVE_SECONDS = 600      # from a checkpoint to the next at most
BAD_STEPS = 10          # this many steps in a row whose loss is not finite end a run


def checkpoints(folder):
    """The checkpoints in a run's folder, oldest first."""
    return sorted(folder.glob("checkpoint-*-of-*.pt"))


def can_resume(folder, resume, overwrite):
    """Whether a run in `folder` is to be continued; resume and overwrite are the user's flags.

    Raises ValueError if the folder holds a run that neither flag allows to be replaced.
    """
    saved, log = checkpoints(folder), folder / "log.jsonl"
    found = [*saved[-1:], *(folder / name for name in RESULTS if (folder / name).exists())]
    trained = saved or (folder / "adapter.safetensors").exists()
    if overwrite or (resume and (saved or not trained)):      # a picture alone is no run
        return not overwrite and len(saved) > 0
    if found or (log.is_file() and log.stat().st_size > 0):
        raise ValueError(f"{[*found, log][0]}: the folder holds a run; give another --out, "
                         "--resume to continue it, or --overwrite to delete it")
    return False


class Run:
    """The bookkeeping of one run, in each of its processes; rank 0 alone writes files.

    flags: {flag: value} of all that makes this run what it is; steps: its length.
    """

    def __init__(self, folder, flags, steps):
        self.folder, self.flags, self.steps = folder, flags, steps
        self.step = self.saved = self.bad = self.skipped = self.cut = 0
        self.val_loss, self.best = None, math.inf

    @contextlib.contextmanager
    def begin(self, model, optimizer, resume, overwrite):
        """The context of the training loop: the log is open, signals are kept, and what a
        checkpoint holds is loaded. Raises ValueError if another process trains there, or if the
        flags do not allow to replace the run that is there."""
        self.optimizer = optimizer
        self.weights = {name: model.get_parameter(name) for name in model.trainable_names()}
        with open_log(self.folder) as self.log_file, signals_kept() as self.signals:
            if can_resume(self.folder, resume, overwrite):
                self.load_newest()
            elif resume:
                say(f"{self.folder}: no checkpoint to resume from; the run starts at step 1")
            self.clean()
            self.progress = Progress("training", self.steps, "steps", before=self.step)
            self.last_save = time.monotonic()
            yield

    def clean(self):
        """Cut the log after the steps that are saved; remove what a kill left half-written, and
        before step 1 what an older run has written."""
        if RANK > 0:
            return
        old = [*checkpoints(self.folder), *(self.folder / name for name in RESULTS)]
        for file in [*self.folder.glob(".*.part"), *(old if self.step == 0 else ())]:
            file.unlink(missing_ok=True)
        end = at = 0
        self.log_file.seek(0)
        for line in self.log_file:
            at += len(line)
            with contextlib.suppress(Exception):              # half a line, or a foreign one
                entry = json.loads(line)
                if 0 < entry["step"] <= self.step and line.endswith(b"\n"):
                    self.best = min(self.best, entry.get("val_loss", math.inf))
                    self.skipped += len(entry.get("skipped", []))
                    self.cut += entry.get("cut", 0)
                    end, self.val_loss = at, entry.get("val_loss")
        self.log_file.truncate(end)

    # ---- Steps

    def batches(self, loader):
        """Yield the batches of a loader, and count the steps. What was trained is saved if the
        loader fails, unless other processes would wait for this one."""
        loader = iter(loader)
        while self.step < self.steps:
            self.began = time.monotonic()
            try:
                batch = next(loader)
            except Exception:
                if WORLD == 1:
                    self.save()
                    if self.signals:                          # a worker heard the signal too
                        self.stop()
                raise
            self.step += 1
            self.waited = time.monotonic() - self.began
            yield batch

    def is_finite(self, loss, norm):
        """Whether a step can be taken. Raises ValueError after BAD_STEPS in a row that cannot."""
        self.bad = 0 if math.isfinite(loss + norm) else self.bad + 1
        if self.bad == min(BAD_STEPS, self.steps):
            raise ValueError(f"the loss was not finite in {self.bad} steps up to step {self.step}; "
                             "a lower --lr may help, or the files of --weights hold NaN")
        return self.bad == 0

    def log(self, entry, cut, skipped, val_loss):
        """Write the line of a step: entry with its speed, how many texts were cut, what was bad,
        and the validation loss or None."""
        self.val_loss, self.best = val_loss, min(self.best, val_loss or math.inf)
        self.skipped, self.cut = self.skipped + len(skipped), self.cut + cut
        if RANK > 0:
            return
        seconds = time.monotonic() - self.began
        entry |= {"samples_per_s": self.flags["batch_size"] / seconds,
                  "waiting_for_data": self.waited / seconds}
        entry = {key: value if math.isfinite(value) else None for key, value in entry.items()}
        extra = {"cut": cut, "skipped": skipped, "val_loss": val_loss}
        entry |= {key: value for key, value in extra.items() if value}
        self.log_file.write(json.dumps({"step": self.step} | entry).encode() + b"\n")
        self.log_file.flush()
        notes = {"samples skipped": self.skipped, "texts cut": self.cut}
        note = "".join(f", {count} {what}" for what, count in notes.items() if count)
        self.progress.show(self.step, f"loss {entry['loss'] or math.nan:.3f}{note}")

    @property
    def save_is_due(self):
        """Whether the last checkpoint is old, by the clock of the first process."""
        return RANK == 0 and time.monotonic() - self.last_save > SAVE_SECONDS

    def stop(self):
        """Raise SystemExit, 143 after SIGTERM and 130 after Ctrl-C, when all is saved."""
        if RANK == 0:
            self.progress.say(f"stopped after step {self.saved} of {self.steps}; the same command "
                              "with --resume continues")
        raise SystemExit(128 + (self.signals or [signal.SIGTERM])[0])

    # ---- Checkpoints

    def save(self):
        """Write a checkpoint, unless it is there, and remove all but the last two. All processes
        call it. Returns {name: whole tensor} of the weights."""
        state = {"step": self.step, "flags": self.flags, "taken": 0,
                 "weights": {name: whole(p) for name, p in self.weights.items()},
                 "exp_avg": {}, "exp_avg_sq": {}}
        if self.saved == self.step:
            return state["weights"]
        for name, parameter in self.weights.items():
            moments = self.optimizer.state.get(parameter)
            if moments:
                state["taken"] = int(moments["step"])
                state["exp_avg"][name] = whole(moments["exp_avg"])
                state["exp_avg_sq"][name] = whole(moments["exp_avg_sq"])
        if RANK == 0:
            name = f"checkpoint-{self.step:07d}-of-{self.steps:07d}.pt"
            with written_beside(self.folder / name) as path:
                torch.save(state, path)
            for old in checkpoints(self.folder)[:-2]:
                old.unlink(missing_ok=True)
        self.saved, self.last_save = self.step, time.monotonic()
        return state["weights"]

    def load_newest(self):
        """Continue from the newest undamaged checkpoint. Raises ValueError if it belongs to a run
        with other flags, or if all are damaged."""
        for file in reversed(checkpoints(self.folder)):
            try:
                saved = read_checkpoint(file)
                other = [name for name in self.flags if saved["flags"][name] != self.flags[name]]
                if not other:
                    return self.load(saved)
            except Exception as error:                        # a damaged file can raise anything
                say(f"{file}: damaged ({one_line(error)}); using the one before it", sys.stderr)
                continue
            found = ", ".join(f"{name} {saved['flags'][name]}, not {self.flags[name]}"
                              for name in other)
            raise ValueError(f"{file}: that run has {found}; resume it with the same flags, or "
                             "give another --out")
        raise ValueError(f"{self.folder}: all its checkpoints are damaged; start again with "
                         "--overwrite")

    def load(self, saved):
        """Copy what a checkpoint holds into weights and optimizer, once all of it is known to fit.
        Raises ValueError if it does not."""
        trained = {name: p for name, p in self.weights.items() if p.requires_grad}
        moment = getattr(torch, self.flags["moments"])
        check(saved["weights"], self.weights, torch.float32)
        if saved["taken"] > 0:
            check(saved["exp_avg"], trained, moment)
            check(saved["exp_avg_sq"], trained, moment, low=0)
        numbers = {type(saved["taken"]), type(saved["step"])}
        if numbers != {int} or not 0 <= saved["taken"] <= saved["step"] <= self.steps:
            raise ValueError(f"{saved['taken']} steps taken of {saved['step']}")
        for name, parameter in self.weights.items():
            parameter.data.copy_(share_of(saved["weights"][name], parameter))
        for name, parameter in trained.items() if saved["taken"] else ():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(saved["taken"]), device=parameter.device)} | {
                key: share_of(saved[key][name], parameter) for key in ("exp_avg", "exp_avg_sq")}
        self.step = self.saved = saved["step"]


def check(tensors, parameters, dtype, low=-math.inf):
    """Raise ValueError unless {name: tensor} has the names and shapes of {name: parameter}, the
    dtype, and finite values of at least `low`."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != {name: parameter.shape for name, parameter in parameters.items()}:
        raise ValueError("other names or shapes than this model's")
    for name, tensor in tensors.items():
        if tensor.dtype != dtype or not (tensor.isfinite() & (tensor >= low)).all():
            raise ValueError(f"{name} holds NaN, infinity, or what is no {dtype}")


def read_checkpoint(file):
    """The dictionary in a checkpoint file. Raises an error of any kind if it is damaged."""
    check_file(file)
    with zipfile.ZipFile(file) as archive:           # torch.load does not compare the checksums
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"{damaged} does not match its checksum")
    return torch.load(file, "cpu", weights_only=True, mmap=True)


# ---- The log, the signals, the model


def open_log(folder):
    """The log of a run, in rank 0 locked: the kernel frees it when the process ends, however it
    ends. Raises ValueError if another process holds it."""
    file = folder / "log.jsonl"
    if RANK > 0:
        return open(os.devnull, "ab+")
    folder.mkdir(parents=True, exist_ok=True)
    opened = open(file, "ab+")
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{folder}: another run is writing there; wait for its end, or give "
                         "another --out") from None
    except OSError:                                           # a file system without locks
        pass
    return opened


@contextlib.contextmanager
def signals_kept():
    """Yields a list that collects SIGTERM and SIGINT (Ctrl-C), which would end the process."""
    received, kept = [], (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, _: received.append(number)) for number in kept]
    try:
        yield received
    finally:
        for number, handler in zip(kept, before, strict=True):
            signal.signal(number, handler)


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
