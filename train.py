"""Train ArtGPT-4 in its two stages: `python train.py --stage 1`, then `python train.py --stage 2`.

Stage 1 teaches the projection, the adapters and their norms to read pictures, from short captions without a prompt.
Stage 2 teaches the manner of an answer, from few long descriptions after an instruction. Everything else is frozen.

    torchrun --nproc-per-node 8 train.py --stage 1 ...           eight GPUs, the whole model on each
    torchrun --nproc-per-node 8 train.py --stage 1 --fsdp ...    eight GPUs, an eighth of the model on each

A run can end at any moment, by Ctrl-C or by a power cut; the same command with --resume goes on from its last
checkpoint and ends with the same weights, to the bit: what a step trains on is a pure function of seed and step.
"""
import argparse
import contextlib
import functools
import json
import math
import os
import resource
import signal
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from artgpt4 import STOP, TRAINS, ArtGPT4, trainable_names
from training.checkpoints import (RANK, WORLD, begin_folder, checkpoints, frozen_checksum, load_checkpoint, processes,
                        rank_0_first, restore, save_checkpoint, say, signals_kept, total, unfinished, whole,
                        whole_state)
from common.command_line import run_command
from common.files import save_tensors, written_beside
from common.progress import Progress
from gallery.album import painted
from training.data import Skipped, batches, open_source
from gallery.painting import contact_sheet
from gallery.scenes import SEEN_PAIRS
from gallery.score import describe, held_out, score, table
from common.page import html_table, line_chart, page, paragraph, picture_tag
from training.sources import Part

BAD_STEPS = 10                # so many in a row whose loss is not finite end a run


@dataclass
class Recipe:
    """The hyperparameters of one stage; each is also a flag. Rates are per step of the optimizer."""
    batch_size: int
    warmup_lr: float          # the rate rises from here linearly to lr, then goes to min_lr along a cosine
    lr: float
    min_lr: float
    warmup_steps: int
    steps_per_epoch: int
    epochs: int
    max_text_tokens: int
    min_crop_area: float = 0.5
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    mode: str = "artgpt4"     # what trains: a key of artgpt4.TRAINS
    eval_every: int = 1000    # steps between two evaluations: validation loss and samples.png
    seed: int = 42

    @property
    def steps(self):
        return self.steps_per_epoch * self.epochs


RECIPES = {                   # (recipe, stage)
    # The paper's own (section 3.3). Its minimum lies above its initial rate in stage 1, so the rate rises.
    ("paper", 1): Recipe(32, 1e-8, 1e-7, 8e-7, 5000, 5000, 2, max_text_tokens=32),
    ("paper", 2): Recipe(12, 1e-6, 3e-5, 1e-5, 200, 200, 5, max_text_tokens=160),
    ("minigpt4", 1): Recipe(64, 1e-6, 1e-4, 8e-5, 5000, 5000, 4, max_text_tokens=32, mode="minigpt4"),
    # For weights/tiny and the gallery: minutes on two cores.
    ("tiny", 1): Recipe(32, 1e-5, 3e-3, 1e-4, 30, 220, 3, max_text_tokens=40, min_crop_area=0.8, eval_every=220),
    ("tiny", 2): Recipe(16, 1e-5, 3e-3, 5e-5, 20, 105, 7, max_text_tokens=160, min_crop_area=0.8, eval_every=105),
}


def learning_rate(step, recipe):
    """The rate of step 0, 1, ...: linear warm-up over the first steps of the run, then a cosine of the whole run."""
    if step < recipe.warmup_steps:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * step / recipe.warmup_steps
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def optimizer_for(parameters, recipe):
    """AdamW with weight decay on matrices alone: no biases, no norms."""
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
              {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.999))


# ---- Several processes


def spread(model, fsdp):
    """The module whose forward all processes call together; in each of them a gradient is the mean over all.

    fsdp: a process holds its share of every block, and gathers a block's weights while it computes it (FSDP2).
    """
    if fsdp:
        for block in (*model.vit.blocks, model.qformer, *model.llama.blocks):
            fully_shard(block)
        return fully_shard(model)
    if WORLD > 1:                                             # all have read the same files: nothing to broadcast
        return DistributedDataParallel(model, init_sync=False, forward_sync_buffers=False)
    return model


def in_rank_0(function, model, *arguments):
    """function(model, ...) in rank 0, None in the others; all take part where FSDP2 has spread the model."""
    if not isinstance(model, FSDPModule) and RANK:
        return None
    model.function = functools.partial(function, model)
    register_fsdp_forward_method(model, "function")           # FSDP2 gathers weights for it, as it does for forward
    with torch.compiler.set_stance("force_eager"):            # an answer's shapes change with every token
        result = model.function(*arguments)
    return None if RANK else result


# ---- Evaluation


@torch.no_grad()
def validation_loss(module, source, recipe, stage, image_size, workers, device):
    """The mean loss of the pairs held out, uncropped, in batches that are the same every time."""
    loss, tokens, size = 0.0, 0, min(recipe.batch_size, len(source) // WORLD * WORLD)
    for [batch] in batches(source, stage, image_size, size, len(source) // size, 0, 1.0, workers, 0, RANK, WORLD):
        losses = module(batch.pixels, batch.texts, batch.prompts, END[stage], recipe.max_text_tokens)
        loss, tokens = loss + losses.sum().item(), tokens + len(losses)
    loss, tokens = total([loss, tokens], device)
    return loss / tokens


def sample_pictures(source, count=8):
    """The first pictures of a source that can be read, to be described at every evaluation: uint8 (224, 224, 3)."""
    pictures = []
    for i in range(min(len(source), 1000)):
        if len(pictures) < count:
            with contextlib.suppress(ValueError):
                pictures.append(np.asarray(source.picture(i, 224).resize((224, 224))))
    return pictures


def draw_samples(model, pictures, stage, file, columns=4):
    """The pictures with what the model says of each, as one picture."""
    texts = in_rank_0(describe, model, pictures, stage)
    if RANK == 0:
        sheet = contact_sheet([Image.fromarray(p) for p in pictures], columns, captions=texts)
        with written_beside(file) as path:
            sheet.save(path, format="PNG")


def write_report(out, run):
    """RUN/report.html, a page for itself: the curves of log.jsonl so far, samples.png, and what run this is."""
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    every = -(-len(log) // 500)                               # so many steps are one point of a curve, their mean

    def points(key):
        parts = [[entry for entry in log[i:i + every] if entry[key] is not None] for i in range(0, len(log), every)]
        return [(part[-1]["step"], sum(entry[key] for entry in part) / len(part)) for part in parts if part]
    loss = {"training": points("loss"), "validation": [(e["step"], e["val_loss"]) for e in log if "val_loss" in e]}
    parts = [paragraph(f"Step {log[-1]['step']}. Written again at every checkpoint; it reloads itself every minute."),
             '<meta http-equiv="refresh" content="60">',
             line_chart({name: curve for name, curve in loss.items() if curve}, "Loss", "step", "nats a token")]
    for key, title, unit in (("lr", "Learning rate", "of the step"), ("samples_per_s", "Speed", "pairs a second"),
                             ("grad_norm", "Gradient", "norm before it is clipped")):
        parts.append(line_chart({unit: points(key)}, title, "step", log_y=key == "grad_norm"))
    if (out / "samples.png").is_file():
        parts += ["<h2>What the model says</h2>", picture_tag(Image.open(out / "samples.png"), 1000, "samples.png")]
    pairs, seconds = run["batch_size"] * len(log), sum(run["batch_size"] / entry["samples_per_s"] for entry in log)
    totals = {"steps": len(log), "pairs": pairs, "hours": f"{seconds / 3600:.2f}",
              "most memory": f"{log[-1]['memory'] / 1e9:.2f} GB", "bad samples": log[-1]["skipped"],
              "steps without a finite loss": log[-1]["skipped_steps"]}
    parts += ["<h2>The run</h2>", html_table(("so far", ""), totals.items()), html_table(("flag", ""), run.items())]
    with written_beside(out / "report.html") as path:
        path.write_text(page(f"Training {out}", "\n".join(parts)), encoding="utf-8")


# ---- Training

END = {1: "\n", 2: STOP}      # what a text of the stage ends with


def backward(module, micro_batches, recipe, stage):
    """Add the gradients of the sum of this process's losses to what trains. Returns the sum and its tokens' number."""
    loss, tokens = 0.0, 0
    for i, batch in enumerate(micro_batches, 1):
        waits = isinstance(module, DistributedDataParallel) and i < len(micro_batches)   # the last one sums over all
        with module.no_sync() if waits else contextlib.nullcontext():
            losses = module(batch.pixels, batch.texts, batch.prompts, END[stage], recipe.max_text_tokens)
            losses.sum().backward()
        loss, tokens = loss + losses.sum().item(), tokens + len(losses)
    return loss, tokens


def warn_if_untrained(first_loss, vocabulary):
    """Say so if the first loss is that of a guess among all tokens, or worse."""
    if first_loss > 0.95 * math.log(vocabulary):
        say(f"warning: the first loss, {first_loss:.3f}, is no better than a guess among {vocabulary} tokens, "
            f"{math.log(vocabulary):.3f}: is the language model trained, or a delta still to be added?", sys.stderr)


def peak_memory(device):
    """The most memory so far, in bytes: of the card, or of this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train(model, source, recipe, stage, out, run, pictures, val=None, checkpoint=None, save_every=None, workers=1,
          accumulate=1, window=1, fsdp=False):
    """Train what recipe.mode says, and write to the run's folder `out`: log.jsonl and skipped.jsonl; every eval_every
    steps adapter.safetensors and samples.png; then, and every save_every steps, report.html and a checkpoint.

    source, val: of data.py, to train on and to evaluate with; pictures: to be described, see sample_pictures.
    run: {flag: value} of what makes this run what it is; checkpoint: of load_checkpoint, to go on from.
    Raises SystemExit after SIGTERM or Ctrl-C, when all is saved; ValueError after BAD_STEPS losses that are not finite.
    """
    model.freeze(recipe.mode)
    module = spread(model, fsdp)
    weights = {name: model.get_parameter(name) for name in trainable_names(model.config)}
    parameters = [parameter for parameter in weights.values() if parameter.requires_grad]
    optimizer, device = optimizer_for(parameters, recipe), parameters[0].device
    first, bad_samples, bad_steps, in_a_row = 0, 0, 0, 0
    if checkpoint:
        restore(checkpoint, weights, optimizer)
        first, bad_samples, bad_steps = (checkpoint[key] for key in ("step", "bad_samples", "bad_steps"))
    skipped = Skipped(out / "skipped.jsonl", checkpoint and checkpoint["skipped"])
    if RANK == 0:
        begin_folder(out, first)
        skipped.cut(first)
    say(f"stage {stage}: {sum(p.numel() for p in parameters):,} of {sum(p.numel() for p in model.parameters()):,} "
        f"parameters train ({recipe.mode}), {recipe.steps} steps of {recipe.batch_size} pairs, {len(source)} pairs"
        + f", {WORLD} processes" * (WORLD > 1) + f", from step {first} on" * (first > 0))
    image_size = model.config.image_size
    loader = batches(source, stage, image_size, recipe.batch_size, recipe.steps, recipe.seed, recipe.min_crop_area,
                     workers, first, RANK, WORLD, accumulate, window)
    progress, saved = Progress(f"stage {stage}", recipe.steps, "steps", before=first), first
    with signals_kept() as signals, open(out / "log.jsonl" if RANK == 0 else os.devnull, "a") as log:
        began = time.monotonic()
        for step, micro_batches in enumerate(loader, first + 1):
            rate = learning_rate(step - 1, recipe)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, tokens = backward(module, micro_batches, recipe, stage)
            sums = [loss, tokens, skipped.add(micro_batches), len(signals)]
            loss, tokens, bad, stop = total(sums, device)     # stop: a signal to any process stops all, after one step
            for parameter in parameters:                      # from the processes' mean of sums to the mean of all
                parameter.grad.mul_(WORLD / tokens)
            norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
            loss, norm = loss / tokens, (norm.full_tensor() if fsdp else norm).item()
            if finite := math.isfinite(loss + norm):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            in_a_row = 0 if finite else in_a_row + 1
            bad_samples, bad_steps = bad_samples + int(bad), bad_steps + (not finite)
            if step == 1:
                warn_if_untrained(loss, model.config.llama.vocab_size)
            if in_a_row == BAD_STEPS:
                raise ValueError(f"the loss was not finite in the {BAD_STEPS} steps up to step {step}, which changed "
                                 f"nothing; {f'the checkpoint of step {saved} is kept' if saved else 'none is saved'}; "
                                 "a lower --lr or --max-grad-norm may help, in a run that begins anew")

            seconds = time.monotonic() - began
            entry = {"step": step, "loss": loss if finite else None, "lr": rate, "grad_norm": norm if finite else None,
                     "samples_per_s": recipe.batch_size / seconds, "tokens_per_s": tokens / seconds,
                     "skipped": bad_samples, "skipped_steps": bad_steps, "memory": peak_memory(device)}
            evaluates = step % recipe.eval_every == 0 or step == recipe.steps
            if evaluates and val:
                entry["val_loss"] = validation_loss(module, val, recipe, stage, image_size, workers, device)
            print(json.dumps(entry), file=log, flush=True)
            if RANK == 0:
                progress.show(step, f"loss {loss:.3f}, rate {rate:.2e}")
            if (evaluates or stop or step % (save_every or recipe.eval_every) == 0) and not in_a_row:
                tensors = {name: whole(parameter) for name, parameter in weights.items()}
                if evaluates:
                    if RANK == 0:
                        save_tensors(tensors, out / "adapter.safetensors")
                    draw_samples(model, pictures, stage, out / "samples.png")
                if RANK == 0:
                    os.fsync(log.fileno())
                    write_report(out, run)
                save_checkpoint(out, step, recipe.steps, run=run, weights=tensors,
                                optimizer=whole_state(optimizer, weights), bad_samples=bad_samples, bad_steps=bad_steps,
                                skipped=skipped.state)
                saved = step
            if stop:
                say(f"stopped after step {step} of {recipe.steps}; the same command with --resume goes on from {saved}")
                raise SystemExit(128 + (signals or [signal.SIGTERM])[0])
            began = time.monotonic()


def chosen_recipe(args):
    """The recipe that the flags name, with what they change in it. Raises ValueError for a number out of range."""
    if (args.recipe, args.stage) not in RECIPES:
        raise ValueError(f"the recipe {args.recipe} has no stage {args.stage}")
    chosen = {f.name: getattr(args, f.name) for f in fields(Recipe) if getattr(args, f.name) is not None}
    recipe = Recipe(**asdict(RECIPES[args.recipe, args.stage]) | chosen)
    numbers = ("batch_size", "steps_per_epoch", "epochs", "max_text_tokens", "eval_every")
    for name in (*numbers, "pictures", "accumulate", "window", "save_every"):
        value = getattr(recipe if name in numbers else args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    if not 0 < recipe.min_crop_area <= 1:
        raise ValueError(f"--min-crop-area is {recipe.min_crop_area}; it is a share of the picture, above 0, up to 1")
    if recipe.batch_size % (WORLD * args.accumulate):
        raise ValueError(f"--batch-size is {recipe.batch_size}; {WORLD} processes with --accumulate {args.accumulate} "
                         "cannot share that evenly")
    return recipe


def load_model(args, init, device):
    """The model to train, with the adapter in the file `init` if there is one."""
    dtype = getattr(torch, args.dtype)
    model = ArtGPT4.from_pretrained(args.weights, "cpu" if args.fsdp else device, dtype, adapter=False, int8=args.int8)
    if init:
        model.load_adapter(init)
    model.llama.checkpointing = args.checkpointing
    if args.compile:
        try:
            torch.compile(torch.sin)(torch.zeros(8, device=device))
        except Exception as error:                            # no compiler, no Python headers, ...
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"--compile: torch.compile cannot run here ({reason}); leave it out, or install a C++ "
                             "compiler") from None
        for block in (*model.vit.blocks, *model.llama.blocks):
            block.compile(dynamic=True)
    return model


def run(args, device):
    """One run, as the flags say, in one of its processes, on its device."""
    recipe = chosen_recipe(args)
    out = args.out or Path("runs") / f"stage{args.stage}"
    if args.fsdp and "RANK" not in os.environ:
        raise ValueError("--fsdp spreads a model over processes: start them with torchrun --nproc-per-node N train.py")
    if unfinished(out) and not (args.resume or args.overwrite):
        raise ValueError(f"{out} holds a run that is not finished ({checkpoints(out)[-1].name}): --resume goes on with "
                         "it, --overwrite begins anew")
    resumes = args.resume and bool(checkpoints(out))
    if args.resume and not resumes:
        say(f"{out}: no checkpoint to resume from; the run begins")
    init = args.init or (Path("runs/stage1/adapter.safetensors") if args.stage == 2 else None)
    if resumes:                                               # all that trains is in the checkpoint
        init = None
    elif init and not Path(init).is_file():
        raise ValueError(f"{init}: no such file" + ("" if args.init else "; stage 2 begins where stage 1 ended: run it "
                                                    "first, or give --init FILE"))
    torch.manual_seed(recipe.seed)
    torch.use_deterministic_algorithms(device.startswith("cuda"), warn_only=True)    # a CPU's are
    model = load_model(args, init, device)
    with rank_0_first():
        source, val = open_source(args.data, out.parent / "index", args.pictures), None
        data = f"{args.data or 'the gallery'} ({len(source)} pairs)"
        if args.val:
            if not WORLD <= args.val < len(source):
                raise ValueError(f"--val is {args.val}; it is {WORLD} or more, and less than the {len(source)} pairs")
            last = len(source) - args.val
            source, val = Part(source, 0, last), Part(source, last, len(source))
        pictures = sample_pictures(val or source) if args.data else painted(held_out(SEEN_PAIRS, 8))
    identity = {"stage": args.stage, "data": data, "val": args.val, "window": args.window, **asdict(recipe),
                "dtype": args.dtype, "int8": args.int8, "weights": frozen_checksum(model)}
    checkpoint = load_checkpoint(out, identity) if resumes else None
    train(model, source, recipe, args.stage, out, identity, pictures, val, checkpoint, args.save_every, args.workers,
          args.accumulate, args.window, args.fsdp)
    say(f"{out}/adapter.safetensors, log.jsonl, samples.png and report.html are written")
    if not args.data:
        shares = in_rank_0(score, model, args.stage)
        if RANK == 0:
            with written_beside(out / "score.json") as path:
                path.write_text(json.dumps(shares, indent=1) + "\n")
            print(table(shares))


def main(args):
    with processes(args.device) as device:
        run(args, device)


def command_line():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--stage", type=int, choices=(1, 2), required=True)
    add("--weights", type=Path, default=Path(__file__).parent / "weights" / "tiny",
        help="weights folder (weights/tiny)")
    add("--data", help="'laion/{00000..00301}.tar', a folder of NAME.jpg with NAME.txt, or the folder cc_sbu_align "
                       "(without it: the gallery)")
    add("--val", type=int, default=0, metavar="PAIRS",
        help="so many at the end of the data are kept out of training, for the validation loss and samples.png")
    add("--pictures", type=int, default=3000, help="paintings of the gallery to train on (%(default)s)")
    add("--out", type=Path, help="the run's folder (default: runs/stage1 or runs/stage2)")
    add("--init", type=Path, help="adapter.safetensors to begin with (default: stage 1 anew, stage 2 "
                                  "runs/stage1/adapter.safetensors)")
    add("--recipe", choices=sorted({name for name, _ in RECIPES}), default="tiny")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint, if it has one")
    again.add_argument("--overwrite", action="store_true", help="begin anew where a run has not finished")
    add("--save-every", type=int, metavar="STEPS", help="steps between checkpoints (default: at evaluations alone)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of the frozen weights and activations; what trains is float32 (default: %(default)s)")
    add("--int8", action="store_true", help="the language model's frozen matrices in a byte a weight")
    add("--accumulate", type=int, default=1, metavar="N", help="compute a batch in N parts, for less memory")
    add("--checkpointing", action="store_true", help="compute the blocks again in the backward pass, for less memory")
    add("--window", type=int, default=1, metavar="N", help="sort the pairs of N batches by length, for less padding")
    add("--compile", action="store_true", help="torch.compile the blocks")
    add("--fsdp", action="store_true", help="spread the model over torchrun's processes, frozen weights too")
    add("--workers", type=int, default=1, help="processes that read pictures, each (default: %(default)s)")
    of_recipe = parser.add_argument_group("hyperparameters (default: the recipe's)")
    for hyperparameter in fields(Recipe):
        choices = sorted(TRAINS) if hyperparameter.name == "mode" else None
        of_recipe.add_argument(f"--{hyperparameter.name.replace('_', '-')}", type=hyperparameter.type, choices=choices)
    run_command(main, parser)


if __name__ == "__main__":
    command_line()
