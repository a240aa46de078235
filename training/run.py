"""A run of training: its folder, its log, its counters, its checkpoints, the signals that stop it.

    RUN/log.jsonl, skipped.jsonl                     a line for every step, for every bad sample
    RUN/adapter.safetensors, samples.png             at every evaluation
    RUN/report.html, checkpoint-STEP-of-STEPS.pt     at every evaluation and every save_every steps
"""
import contextlib
import json
import math
import os
import resource
import signal
import sys
import time

import torch

from common.files import save_tensors, written_beside
from common.progress import Progress
from training.checkpoints import (
    checkpoints, load_checkpoint, restore, save_checkpoint, unfinished, whole_state,
)
from training.processes import RANK, WORLD, say, total, whole
from training.report import write_report
from training.skipped import Skipped

BAD_STEPS = 10          # this many steps in a row whose loss is not finite end a run


def can_resume(folder, resume, overwrite):
    """Whether a run in `folder` is to be resumed; resume and overwrite are the user's flags.

    Raises ValueError if the folder holds an unfinished run and neither flag is given.
    """
    if unfinished(folder) and not (resume or overwrite):
        raise ValueError(
            f"{folder} holds an unfinished run ({checkpoints(folder)[-1].name}); continue it with "
            "--resume, or start a new one with --overwrite")
    if resume and not checkpoints(folder):
        say(f"{folder}: no checkpoint to resume from; the run starts at step 1")
    return resume and bool(checkpoints(folder))


class Run:
    """The bookkeeping of one run, in each of its processes; rank 0 alone writes files.

    identity: {flag: value} of all that makes this run what it is; recipe: its hyperparameters;
    resume: load the last checkpoint. Raises ValueError if that is damaged or of another run.
    """

    def __init__(self, folder, identity, recipe, resume=False, save_every=None):
        self.folder, self.identity, self.recipe = folder, identity, recipe
        self.save_every = save_every or recipe.eval_every
        self.checkpoint = load_checkpoint(folder, identity) if resume else None
        state = self.checkpoint or {"step": 0, "bad_samples": 0, "bad_steps": 0, "skipped": None}
        self.first = self.step = self.saved = state["step"]
        self.bad_samples, self.bad_steps = state["bad_samples"], state["bad_steps"]
        self.bad_in_a_row = 0
        self.skipped = Skipped(folder / "skipped.jsonl", state["skipped"])
        self.stop, self.signals = False, []
        self.progress = Progress("training", recipe.steps, "steps", before=self.first)

    @contextlib.contextmanager
    def begin(self, weights, optimizer):
        """The context of the training loop. Restores the checkpoint, if there is one.

        weights: {name: parameter}, those of adapter.safetensors.
        """
        self.weights, self.optimizer = weights, optimizer
        self.device = next(iter(weights.values())).device
        if self.checkpoint:
            restore(self.checkpoint, weights, optimizer)
            self.checkpoint = None
        if RANK == 0:
            begin_folder(self.folder, self.first)
            self.skipped.cut(self.first)
        log = self.folder / "log.jsonl" if RANK == 0 else os.devnull
        with signals_kept() as self.signals, open(log, "a") as self.log_file:
            yield

    def describe(self, model, source):
        """Print what this run is about to do."""
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        trainable = model.trainable_names(self.recipe.mode)
        line = (f"{sum(sizes[name] for name in trainable):,} of {sum(sizes.values()):,} parameters "
                f"are trained ({self.recipe.mode}): {self.recipe.steps} steps of "
                f"{self.recipe.batch_size} pairs, from {len(source)} pairs")
        if WORLD > 1:
            line += f", in {WORLD} processes"
        if self.first > 0:
            line += f", resumed after step {self.first}"
        say(line)

    # ---- One step

    def steps(self, loader):
        """Yield (step, its batch in parts) for the steps that remain; the first step is 1."""
        self.began = time.monotonic()
        for step, parts in enumerate(loader, self.first + 1):
            self.step = step
            yield step, parts
            self.began = time.monotonic()

    def totals(self, loss, tokens, parts):
        """The loss and tokens of all processes, which also agree here whether to stop.

        A signal to any process stops them all, after the same step.
        """
        numbers = [loss, tokens, self.skipped.add(parts), len(self.signals)]
        loss, tokens, bad_samples, self.stop = total(numbers, self.device)
        self.bad_samples += int(bad_samples)
        return loss, tokens

    def is_finite(self, loss, norm):
        """Whether a step can be taken. Raises ValueError after BAD_STEPS in a row that cannot."""
        if math.isfinite(loss + norm):
            self.bad_in_a_row = 0
            return True
        self.bad_in_a_row += 1
        self.bad_steps += 1
        if self.bad_in_a_row == BAD_STEPS:
            kept = "no checkpoint was saved"
            if self.saved:
                kept = f"the checkpoint of step {self.saved} is kept"
            raise ValueError(
                f"the loss was not finite in the {BAD_STEPS} steps up to step {self.step}, which "
                f"changed no weights; {kept}; a new run with a lower --lr or --max-grad-norm may "
                "help")
        return False

    def measured(self, loss, tokens, rate, norm):
        """The line of log.jsonl for this step: its loss (nats per token), speed and memory."""
        seconds = time.monotonic() - self.began
        finite = self.bad_in_a_row == 0
        if RANK == 0:
            self.progress.show(self.step, f"loss {loss:.3f}, rate {rate:.2e}")
        return {"step": self.step, "loss": loss if finite else None, "lr": rate,
                "grad_norm": norm if finite else None,
                "samples_per_s": self.recipe.batch_size / seconds,
                "tokens_per_s": tokens / seconds, "skipped": self.bad_samples,
                "skipped_steps": self.bad_steps, "memory": peak_memory(self.device)}

    def log(self, entry):
        print(json.dumps(entry), file=self.log_file, flush=True)

    # ---- Evaluation, saving, stopping

    @property
    def evaluates(self):
        """Whether this step is followed by an evaluation."""
        return self.step % self.recipe.eval_every == 0 or self.step == self.recipe.steps

    @property
    def saves(self):
        """Whether this step is followed by a checkpoint; never while the loss is not finite."""
        due = self.evaluates or self.stop or self.step % self.save_every == 0
        return due and self.bad_in_a_row == 0

    def save(self, draw):
        """Write a checkpoint and, at an evaluation, adapter.safetensors and samples.png.

        draw: function that writes samples.png to the path it is given. All processes call save.
        """
        tensors = {name: whole(parameter) for name, parameter in self.weights.items()}
        if self.evaluates:
            if RANK == 0:
                save_tensors(tensors, self.folder / "adapter.safetensors")
            draw(self.folder / "samples.png")
        if RANK == 0:
            os.fsync(self.log_file.fileno())
            write_report(self.folder, self.identity)
        save_checkpoint(
            self.folder, self.step, self.recipe.steps, run=self.identity, weights=tensors,
            optimizer=whole_state(self.optimizer, self.weights), bad_samples=self.bad_samples,
            bad_steps=self.bad_steps, skipped=self.skipped.state)
        self.saved = self.step

    def stop_if_asked(self):
        """Raise SystemExit after SIGTERM (code 143) or Ctrl-C (code 130), in any process."""
        if self.stop:
            say(f"stopped after step {self.step} of {self.recipe.steps}; the same command with "
                f"--resume continues after step {self.saved}")
            number = self.signals[0] if self.signals else signal.SIGTERM
            raise SystemExit(128 + number)


# ---- The folder, the signals, the memory


def begin_folder(folder, step):
    """Make a run's folder and keep the log of its first `step` steps; step 0 starts a new run.

    A new run removes the scores and checkpoints of an older one. Files that a kill left
    half-written are removed too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old = list(folder.glob(".*.part"))
    if step == 0:
        old += [folder / "score.json", *checkpoints(folder)]
    for file in old:
        file.unlink(missing_ok=True)
    log, lines = folder / "log.jsonl", []
    if log.is_file():
        lines = log.read_text().splitlines(keepends=True)[:step]
    with written_beside(log) as path:
        path.write_text("".join(lines))


@contextlib.contextmanager
def signals_kept():
    """Yields a list that collects SIGTERM and SIGINT (Ctrl-C) instead of ending the process."""
    received = []

    def keep(number, frame):
        received.append(number)

    before = {number: signal.signal(number, keep) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def peak_memory(device):
    """The most memory used so far, in bytes: of the GPU, or of this process if there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def warn_if_untrained(first_loss, vocabulary):
    """Print a warning if the first loss is that of a guess among all tokens, or worse."""
    guess = math.log(vocabulary)
    if first_loss > 0.95 * guess:
        say(f"warning: the first loss, {first_loss:.3f}, is no better than a guess among "
            f"{vocabulary} tokens, {guess:.3f}; is the language model trained, or is it a delta "
            "that must still be added to its base?", sys.stderr)
