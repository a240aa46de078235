"""A run of training: its folder, its log, its counters, its checkpoints, the signals that stop it.

    RUN/log.jsonl, skipped.jsonl                     a line for every step, for every bad sample
    RUN/adapter.safetensors, samples.png             at every evaluation
    RUN/best.safetensors                             at the one with the lowest validation loss
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
    checkpoints, load_checkpoint, not_finite, restore, save_checkpoint, unfinished, whole_state,
)
from training.processes import RANK, WORLD, gathered, say, total, whole
from training.report import read_log, write_report
from training.skipped import Skipped
from training.validation import count_tokens

BAD_STEPS = 10          # this many steps in a row whose loss is not finite end a run
COUNTS = ("tokens", "clipped", "texts_cut", "skipped", "skipped_steps")     # of a run so far
RESULTS = ("adapter.safetensors", "best.safetensors", "samples.png", "report.html", "score.json")


def can_resume(folder, resume, overwrite):
    """Whether a run in `folder` is to be resumed; resume and overwrite are the user's flags.

    Raises ValueError if the folder holds a run that neither flag allows to be replaced.
    """
    saved = checkpoints(folder)
    if resume and saved:
        return True
    results = [folder / name for name in RESULTS if (folder / name).is_file()]
    if not overwrite and unfinished(folder):
        raise ValueError(
            f"{folder} holds an unfinished run ({saved[-1].name}); continue it with --resume, or "
            "start a new one with --overwrite")
    if not overwrite and (saved or results):
        raise ValueError(
            f"{folder} holds a finished run ({(saved + results)[0].name}); give another --out, or "
            "replace that run with --overwrite")
    if resume:
        say(f"{folder}: no checkpoint to resume from; the run starts at step 1")
    return False


class Run:
    """The bookkeeping of one run, in each of its processes; rank 0 alone writes files.

    identity: {flag: value} of all that makes this run what it is; recipe: its hyperparameters;
    pairs: how many there are to train on; resume: load the last checkpoint; patience, max_bad: as
    the flags; share: of training.arithmetic. Raises ValueError if the checkpoint is damaged or of
    another run.
    """

    def __init__(self, folder, identity, recipe, pairs, resume=False, save_every=None,
                 patience=None, max_bad=0.05, share=None):
        self.folder, self.identity, self.recipe, self.pairs = folder, identity, recipe, pairs
        self.save_every = save_every or recipe.eval_every
        self.patience, self.share = patience, share
        self.checkpoint = load_checkpoint(folder, identity) if resume else None
        state = self.checkpoint or {"step": 0, "counts": dict.fromkeys(COUNTS, 0),
                                    "best": {"loss": None, "step": 0, "since": 0}}
        self.first = self.step = self.saved = state["step"]
        self.counts, self.best = dict(state["counts"]), dict(state["best"])
        self.bad_in_a_row = 0
        self.skipped = Skipped(folder / "skipped.jsonl", max_bad, state.get("skipped"))
        self.stop, self.signals = False, []
        self.progress = Progress("training", recipe.steps, "steps", before=self.first)

    @contextlib.contextmanager
    def begin(self, model, optimizer, stage):
        """The context of the training loop. Restores the checkpoint, if there is one."""
        self.model, self.optimizer, self.stage = model, optimizer, stage
        self.weights = {name: model.get_parameter(name) for name in model.trainable_names()}
        self.device = next(iter(self.weights.values())).device
        if self.checkpoint:
            restore(self.checkpoint, self.weights, optimizer)
            self.checkpoint = None
        if RANK == 0:
            begin_folder(self.folder, self.first)
            self.skipped.cut(self.first)
        log = self.folder / "log.jsonl" if RANK == 0 else os.devnull
        with signals_kept() as self.signals, open(log, "a") as self.log_file:
            yield

    def describe(self, model):
        """Print what this run is about to do."""
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        trainable, recipe = model.trainable_names(self.recipe.mode), self.recipe
        line = (f"{sum(sizes[name] for name in trainable):,} of {sum(sizes.values()):,} parameters "
                f"are trained ({recipe.mode}): {recipe.steps} steps of {recipe.batch_size} pairs; "
                f"each of {self.pairs:,} pairs is seen {self.epochs(recipe.steps):.3g} times")
        if WORLD > 1:
            line += f", in {WORLD} processes"
        if self.first > 0:
            line += f", resumed after step {self.first}"
        say(line)
        if recipe.warmup_steps > recipe.steps / 5:
            say(f"warning: warm-up takes {recipe.warmup_steps} of {recipe.steps} steps, more than "
                "a fifth; the rate then jumps down to its cosine; give a lower --warmup-steps",
                sys.stderr)

    def epochs(self, step):
        """How often each pair was seen after a number of steps."""
        return step * self.recipe.batch_size / self.pairs

    # ---- One step

    def steps(self, loader):
        """Yield (step, its batch in parts) for the steps that remain; the first step is 1.

        Raises ValueError if the loader does; what was trained is saved then.
        """
        self.began, loader = time.monotonic(), iter(loader)
        while not self.out_of_patience:
            waits = time.monotonic()
            try:
                parts = next(loader, None)
            except ValueError as error:
                if WORLD == 1:                                # others would wait for this process
                    self.save_what_there_is()
                raise ValueError(f"{error}; {self.continuation}") from None
            if parts is None:
                return
            self.waited = time.monotonic() - waits            # for the loader
            self.step += 1
            yield self.step, parts
            self.began = time.monotonic()

    def totals(self, loss, text_tokens, parts):
        """The loss and text tokens of all processes, which also agree here whether to stop.

        A signal to any process stops them all, after the same step.
        """
        tokens, cut = count_tokens(self.model, parts, self.stage, self.recipe.max_text_tokens)
        skipped = [entry for batch in parts for entry in batch.skipped]
        numbers = [loss, text_tokens, tokens, cut, len(skipped), len(self.signals)]
        loss, text_tokens, tokens, cut, bad, self.stop = total(numbers, self.device)
        if bad:
            self.skipped.add(gathered(skipped), write=RANK == 0)
        if cut and not self.counts["texts_cut"]:
            say(f"warning: a text of step {self.step} is longer than --max-text-tokens "
                f"{self.recipe.max_text_tokens}; it was cut and lost its end, so the model does "
                "not learn from it when to stop; a higher --max-text-tokens keeps texts whole",
                sys.stderr)
        self.step_tokens = int(tokens)
        self.counts["tokens"] += int(tokens)
        self.counts["texts_cut"] += int(cut)
        self.counts["skipped"] += int(bad)
        return loss, text_tokens

    def is_finite(self, loss, norm):
        """Whether a step can be taken. Raises ValueError after BAD_STEPS in a row that cannot, or
        if no step of the run could, or if the weights hold NaN."""
        if math.isfinite(loss + norm):
            self.bad_in_a_row = 0
            self.counts["clipped"] += norm > self.recipe.max_grad_norm
            return True
        self.bad_in_a_row += 1
        self.counts["skipped_steps"] += 1
        if self.bad_in_a_row == 1:
            name = not_finite(self.model)
            if name:
                raise ValueError(f"the weights hold NaN or infinity, in {name}; the file given as "
                                 "--weights or --init is damaged: make or download it again")
        none_was = self.counts["skipped_steps"] == self.recipe.steps
        if self.bad_in_a_row == BAD_STEPS or none_was:
            kept = "no checkpoint was saved"
            if self.saved:
                kept = f"the checkpoint of step {self.saved} is kept"
            raise ValueError(
                f"the loss was not finite in the {self.bad_in_a_row} steps up to step {self.step}, "
                f"which changed no weights; {kept}; a new run with a lower --lr or "
                "--max-grad-norm may help")
        return False

    def measured(self, loss, text_tokens, rate, norm):
        """The line of log.jsonl for this step: its loss (nats per token), speed and memory."""
        seconds = time.monotonic() - self.began
        finite, pairs = self.bad_in_a_row == 0, self.recipe.batch_size
        if RANK == 0:
            self.progress.show(self.step, f"loss {loss:.3f}, rate {rate:.2e}")
        entry = {"step": self.step, "epoch": self.epochs(self.step),
                 "waiting_for_data": self.waited / seconds,
                 "loss": loss if finite else None, "lr": rate,
                 "grad_norm": norm if finite else None,
                 "samples_per_s": pairs / seconds, "tokens_per_s": text_tokens / seconds,
                 **self.counts, "memory": peak_memory(self.device)}
        if self.share:
            share = self.share(seconds, pairs, self.step_tokens, text_tokens)
            entry["share_of_machine"] = share / WORLD
        return entry

    def log(self, entry):
        self.val_loss = entry.get("val_loss")
        if self.val_loss is not None and not math.isfinite(self.val_loss):
            entry["val_loss"] = self.val_loss = None
        print(json.dumps(entry), file=self.log_file, flush=True)

    # ---- Evaluation, saving, stopping

    @property
    def evaluates(self):
        """Whether this step is followed by an evaluation."""
        return self.step % self.recipe.eval_every == 0 or self.step == self.recipe.steps

    @property
    def saves(self):
        """Whether this step is followed by a checkpoint. While the loss is not finite only the
        last step is: its weights are those of the last step that could be taken."""
        due = self.evaluates or self.stop or self.step % self.save_every == 0
        return due and (self.bad_in_a_row == 0 or self.step == self.recipe.steps)

    def save(self, draw=None):
        """Write a checkpoint and, at an evaluation, adapter.safetensors and samples.png, and
        best.safetensors if the validation loss is the lowest so far.

        draw: function that writes samples.png to the path it is given. All processes call save.
        """
        tensors = {name: whole(parameter) for name, parameter in self.weights.items()}
        if self.evaluates and draw:
            if RANK == 0:
                save_tensors(tensors, self.folder / "adapter.safetensors")
            if self.is_best() and RANK == 0:
                save_tensors(tensors, self.folder / "best.safetensors")
            draw(self.folder / "samples.png")
        if RANK == 0:
            os.fsync(self.log_file.fileno())
            write_report(self.folder, self.identity)
        save_checkpoint(
            self.folder, self.step, self.recipe.steps, run=self.identity, weights=tensors,
            optimizer=whole_state(self.optimizer, self.weights), counts=self.counts,
            best=self.best, skipped=self.skipped.state)
        self.saved = self.step

    def is_best(self):
        """Whether this evaluation has the lowest validation loss; counts those that have not."""
        if self.val_loss is None:
            return False
        if self.best["loss"] is None or self.val_loss < self.best["loss"]:
            self.best = {"loss": self.val_loss, "step": self.step, "since": 0}
            return True
        self.best["since"] += 1
        return False

    @property
    def out_of_patience(self):
        return self.patience is not None and self.best["since"] >= self.patience

    def save_what_there_is(self):
        """Save after an error, if the last step could be taken and is not saved yet."""
        if self.saved < self.step and self.bad_in_a_row == 0:
            self.save()

    @property
    def continuation(self):
        """What a user can do after the run has stopped."""
        if self.saved == 0:
            return "nothing was saved; the same command starts again at step 1"
        return f"the same command with --resume continues after step {self.saved}"

    def end_step(self):
        """Raise SystemExit after SIGTERM (code 143) or Ctrl-C (code 130), in any process.

        Raises ValueError, when all is saved, if too many samples were bad.
        """
        try:
            self.skipped.check(min(self.step * self.recipe.batch_size, self.pairs))
        except ValueError as error:
            self.save_what_there_is()
            raise ValueError(f"{error}; {self.continuation}") from None
        if self.stop:
            say(f"stopped after step {self.step} of {self.recipe.steps}; {self.continuation}")
            number = self.signals[0] if self.signals else signal.SIGTERM
            raise SystemExit(128 + number)

    def conclude(self):
        """Print what was written, and what a user should know of it."""
        if self.out_of_patience:
            say(f"ended after step {self.step}: the last {self.best['since']} evaluations had no "
                "lower validation loss")
        if self.bad_in_a_row:
            say(f"warning: the loss of the last {self.bad_in_a_row} steps was not finite; they "
                "changed no weights", sys.stderr)
        texts = self.step * self.recipe.batch_size
        if self.counts["texts_cut"]:
            say(f"warning: {self.counts['texts_cut']} of {texts} texts were cut at "
                f"--max-text-tokens {self.recipe.max_text_tokens} and lost their end", sys.stderr)
        if self.skipped.names:
            say(f"{len(self.skipped.names)} samples were bad; skipped.jsonl names them")
        say(f"wrote {self.folder}/adapter.safetensors, log.jsonl, samples.png and report.html")
        if self.best["step"]:
            say(f"wrote {self.folder}/best.safetensors, of step {self.best['step']}: validation "
                f"loss {self.best['loss']:.3f}")


# ---- The folder, the signals, the memory


def begin_folder(folder, step):
    """Make a run's folder and keep the log of its first `step` steps; step 0 starts a new run.

    A new run removes all that an older one wrote. Files that a kill left half-written are removed
    too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old = list(folder.glob(".*.part"))
    if step == 0:
        old += [*checkpoints(folder), *(folder / name for name in RESULTS)]
    for file in old:
        file.unlink(missing_ok=True)
    kept = [entry for entry in read_log(folder) if entry["step"] <= step]
    with written_beside(folder / "log.jsonl") as path:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))


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
