"""Train ArtGPT-4 in its two stages: `python train.py --stage 1`, then `python train.py --stage 2`.

Stage 1 teaches the projection, the adapters and their norms to read pictures, from short captions
without a prompt. Stage 2 teaches them how to answer, from a few long descriptions after an
instruction. Everything else is frozen.

    torchrun --nproc-per-node 8 train.py --stage 1 ...           eight GPUs, each the whole model
    torchrun --nproc-per-node 8 train.py --stage 1 --fsdp ...    eight GPUs, each an eighth of it

A run may end at any moment, by Ctrl-C or by a power cut. The same command with --resume continues
from the last checkpoint and ends with the same weights, to the bit.
"""
import math
import random
import sys
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from artgpt4 import IGNORE, TRAINABLE, normalise
from common.command_line import Misuse, command_parser, number, printable, run_command
from common.files import read_json, save_tensors, written_beside
from common.models import TINY, load, model_flags
from conversion.checkpoints import open_checkpoint, take_adapter
from gallery import familiarity, score
from gallery.album import contact_sheet, painted
from gallery.scenes import SEEN_PAIRS
from training.data import Examples, batches, held_out_batches
from training.optimizer import optimizer_for, recompute_blocks
from training.processes import (RANK, UNDER_TORCHRUN, WORLD, gathered, on_rank_0, processes, say,
                                spread, whole)
from training.run import Run, can_resume, frozen_checksum
from training.sources import Gallery, open_source

SAVE_EVERY = 100                # steps from a checkpoint to the next at most


@dataclass
class Recipe:
    """The hyperparameters of one stage. Rates are per optimizer step."""
    batch_size: int             # pairs per step, of all processes together
    warmup_lr: float            # the rate rises from here linearly to lr,
    lr: float
    min_lr: float               # then follows a cosine to min_lr
    warmup_steps: int
    steps: int                  # 0: as many as `epochs` take
    max_text_tokens: int        # a longer text is cut, and loses its end
    epochs: int = 0             # passes over the training pairs, in place of steps
    evaluations: int = 1        # in a run, the last one at its end
    min_crop_area: float = 0.5  # the smallest share of a picture that a random crop keeps
    accumulate: int = 1         # parts that a batch is computed in, each of texts of like length
    mode: str = "artgpt4"       # which parameters are trained: a key of artgpt4.TRAINABLE
    weight_decay: float = 0.05  # of AdamW, on matrices only
    max_grad_norm: float = 1.0
    seed: int = 42              # of the order, the crops, and the start of the adapters

    def for_pairs(self, pairs):
        """This recipe with the steps that its epochs take on a number of training pairs."""
        steps = self.steps or math.ceil(self.epochs * pairs / self.batch_size)
        return replace(self, steps=steps, warmup_steps=min(self.warmup_steps, steps // 2))

    def evaluates_after(self, step):
        done, before = (self.evaluations * n // self.steps for n in (step, step - 1))
        return done > before


RECIPES = {  # (recipe, stage): batch_size, warmup_lr, lr, min_lr, warmup_steps, steps, by name
    # The paper's own (section 3.3). Its min_lr is above its lr in stage 1, so the rate rises.
    ("paper", 1): Recipe(32, 1e-8, 1e-7, 8e-7, 5000, 10000, max_text_tokens=32, evaluations=10),
    ("paper", 2): Recipe(12, 1e-6, 3e-5, 1e-5, 200, 1000, max_text_tokens=160),
    ("minigpt4", 1): Recipe(64, 1e-6, 1e-4, 8e-5, 5000, 20000, max_text_tokens=32, evaluations=20,
                            mode="minigpt4"),
    # A trained model and one's own pictures, a few hundred of them.
    ("finetune", 2): Recipe(4, 1e-6, 3e-5, 1e-6, 10, 0, max_text_tokens=240, epochs=3,
                            evaluations=3, min_crop_area=0.8),
    # For weights/tiny: a few pictures of one's own, and the gallery; minutes on two cores.
    ("mine", 2): Recipe(12, 1e-5, 1e-2, 1e-4, 10, 0, max_text_tokens=240, epochs=150,
                        min_crop_area=0.8),
    ("tiny", 1): Recipe(32, 2e-5, 4e-3, 2e-4, 20, 400, max_text_tokens=40, evaluations=2,
                        min_crop_area=0.8),
    ("tiny", 2): Recipe(16, 2.5e-4, 5e-3, 5e-4, 20, 350, max_text_tokens=240, evaluations=2,
                        min_crop_area=0.8, accumulate=4),
}


def learning_rate(step, recipe):
    """The rate of step 0, 1, ...: linear warm-up over the first steps of the run, then a cosine
    over the whole run, which begins at step 0 too, as in the released code. When warm-up ends it
    has already fallen a little, so the rate jumps down: by 2 % after a tenth of the run."""
    if step < recipe.warmup_steps:
        rise = step / recipe.warmup_steps
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * rise
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * cosine


def loss_of(module, parts, learn):
    """Sum the loss over the parts of a batch, of all processes -> nats per token, their number of
    tokens, and the sums of the gradients of this process if it is to `learn`."""
    loss, tokens = 0.0, 0
    for pixels, ids, targets in parts:
        summed = module(normalise(pixels), ids, targets)
        if learn:
            summed.backward()
        loss, tokens = loss + summed.item(), tokens + int((targets != IGNORE).sum())
    losses, counts = zip(*gathered((loss, tokens)), strict=True)
    return sum(losses) / sum(counts), sum(counts)


def train(run, module, optimizer, loader, recipe, judge):
    """Train the parameters of the optimizer on a loader of training.data, to its end. module: of
    spread(model). judge(faults) shows what it learned, and returns {"val_loss": ...} or {}. Raises
    SystemExit, 143 after SIGTERM and 130 after Ctrl-C, when all is saved."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step, (parts, faults) in enumerate(loader, run.step + 1):
        run.step, rate = step, learning_rate(step - 1, recipe)
        loss, tokens = loss_of(module, parts, learn=True)
        for parameter in parameters:                           # from the processes' mean of sums
            parameter.grad.mul_(WORLD / tokens)                # to the mean over all tokens
        norm = whole(clip_grad_norm_(parameters, recipe.max_grad_norm)).item()
        for group in optimizer.param_groups:
            group["lr"] = rate
        if run.is_finite(loss, norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        evaluates = recipe.evaluates_after(step)
        found = judge(faults) if evaluates else {}
        faults, signals = (sum(lists, []) for lists in zip(*gathered((faults, run.signals)),
                                                           strict=True))
        run.log({"loss": loss, "lr": rate, "grad_norm": norm} | found, faults)
        if evaluates or signals or step % SAVE_EVERY == 0:
            run.save()
        if signals:
            say(f"\nstopped after step {step} of {recipe.steps}; the same command with --resume "
                "continues", sys.stderr)
            raise SystemExit(128 + signals[0])


# ---- What a run is judged by


@torch.no_grad()
def judged(run, module, model, held_out, pictures, faults):
    """Write the run's samples.png: pictures uint8 (N, S, S, 3), each with what the model says of
    it. -> {"val_loss": of held-out Examples, in nats per token}; {} without. Adds to faults."""
    texts = on_rank_0(score.describe, model, pictures, held_out.source.stage)
    if RANK == 0:
        with written_beside(run.folder / "samples.png") as path:
            contact_sheet(pictures, 4, captions=texts).save(path, format="PNG")
    if len(held_out) == 0:
        return {}
    loss, _ = loss_of(module, held_out_batches(held_out, faults), learn=False)
    return {"val_loss": loss}


def first_pictures(examples, most):
    """At most so many pictures of Examples, uncropped; uint8 (S, S, 3) each."""
    examples = copy(examples)
    examples.recipe = replace(examples.recipe, min_crop_area=1)
    return [examples[0, 0, i][0][0].numpy() for i in examples.numbers[:most]]


# ---- The command


def command_line():
    parser = command_parser("train.py", __doc__, conflict_handler="resolve")
    model_flags(parser)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.set_defaults(dtype="float32", device=device)
    add = parser.add_argument
    add("--stage", type=int, choices=(1, 2), required=True,
        help="1: short captions, without a prompt; 2: descriptions, after an instruction")
    add("--data", default="3000", metavar="WHAT",
        help="'laion/{00000..00301}.tar', a folder of NAME.jpg with NAME.txt, the folder "
             "cc_sbu_align, or a number of the gallery's paintings; default: %(default)s")
    add("--val", type=number(int, 0, 10 ** 6), default=0, metavar="PAIRS",
        help="pairs that are kept out of training, for the validation loss and samples.png")
    add("--init", "--adapter", type=Path, dest="adapter", metavar="FILE",
        help="what training starts from: an adapter.safetensors, a weights folder, ArtGPT-4.pth or "
             "pretrained_minigpt4.pth; default: in stage 1 an untrained adapter, in stage 2 "
             "runs/stage1/adapter.safetensors")
    add("--out", type=Path, help="the run's folder; default: runs/stage1 or runs/stage2")
    add("--recipe", choices=sorted({name for name, _ in RECIPES}),
        help="the hyperparameters; default: for the tiny model tiny, with --stage 2 --data mine; "
             "for others paper, with --stage 2 --init finetune")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true",
                          help="continue from the run's last checkpoint, if it has one")
    existing.add_argument("--overwrite", action="store_true",
                          help="start a new run in a folder that holds one, which is deleted")
    add("--checkpointing", action="store_true",
        help="compute the blocks a second time in the backward pass, to save memory")
    add("--moments", choices=("float32", "bfloat16"), default="float32",
        help="of AdamW; default: %(default)s")
    add("--fsdp", action="store_true",
        help="spread the model over torchrun's processes, frozen weights included")
    # On two CPU cores a worker takes more time from the model than it saves.
    add("--workers", type=number(int, 0, 1024), default=int(device == "cuda"), metavar="N",
        help="processes that read pictures, for each training process; default: %(default)s")
    group = parser.add_argument_group("changes of the recipe")
    for name, (kind, low, high), meaning in (
            ("steps", (int, 1, 10 ** 8), "length of the run, in optimizer steps"),
            ("batch_size", (int, 1, 10 ** 6), "pairs per step"),
            ("accumulate", (int, 1, 10 ** 6), "parts that a batch is computed in"),
            ("lr", (float, 0, 1), "highest learning rate; the others change in proportion"),
            ("seed", (int, 0, 2 ** 63), "of the order, the crops and the start of the adapters")):
        group.add_argument(f"--{name.replace('_', '-')}", type=number(kind, low, high),
                           metavar="N" if kind is int else "X", help=meaning)
    group.add_argument("--mode", choices=sorted(TRAINABLE),
                       help="train the paper's parameters, or MiniGPT-4's: the projection alone")
    return parser


def chosen_recipe(args):
    """The recipe that the flags name, with what they change. Raises Misuse, naming the flag."""
    name = args.recipe
    if name is None:
        config, tiny = (read_json(folder / "config.json") for folder in (args.weights, TINY))
        name = "finetune" if args.stage == 2 and args.adapter else "paper"
        if all(config.get(size) == tiny[size] for size in ("llama_width", "llama_layers")):
            own = not args.data.isdecimal() or Path(args.data).exists()
            name = "mine" if args.stage == 2 and own else "tiny"
        say(f"recipe {name}, chosen by the weights and flags")
    if (name, args.stage) not in RECIPES:
        raise Misuse(f"--recipe {name} has no stage {args.stage}")
    usual = RECIPES[name, args.stage]
    given = {key: value for key, value in vars(args).items()
             if key in asdict(usual) and value is not None}
    recipe = replace(usual, **given)
    ratio = recipe.lr / usual.lr
    recipe = replace(recipe, warmup_lr=usual.warmup_lr * ratio, min_lr=usual.min_lr * ratio)
    if recipe.batch_size % (WORLD * recipe.accumulate):
        raise Misuse(f"--batch-size {recipe.batch_size} cannot be shared evenly by {WORLD} "
                     f"processes with --accumulate {recipe.accumulate}")
    return recipe


def load_model(args, resume):
    """The model to train, with the trainable parameters that --init names, unless a checkpoint has
    them. Raises ValueError, naming the file, if one does not fit."""
    default = Path("runs/stage1/adapter.safetensors") if args.stage == 2 else None
    file = None if resume else args.adapter or default
    if file and file.is_dir():
        file = file / "adapter.safetensors"
    args.adapter, checkpoint = file, None                      # what load() reads, and what not
    if file and file.suffix != ".safetensors":
        args.adapter, checkpoint = None, open_checkpoint(file, "adapter")
    model = load(args, train=True)
    if checkpoint:
        shapes = {name: model.get_parameter(name).shape for name in model.trainable_names()}
        stored = take_adapter(checkpoint, model.config, shapes)
        model.load_state_dict({name: one("cpu") for name, one in stored.items()}, strict=False)
    if args.checkpointing:
        recompute_blocks(model.llama)
    return model


def training_sets(args, recipe, model):
    """Examples to train on, and held-out ones: --val pairs, drawn by the seed. Raises ValueError if
    there are too few."""
    source = open_source(args.data, args.stage, model.config, args.workers)
    source.art = recipe.mode != "minigpt4"                     # what the gallery's texts are like
    if source.left_out:
        say(f"{len(source)} pairs; left out: {source.left_out}", sys.stderr)
    if args.val and not WORLD <= args.val < len(source):
        raise ValueError(f"--val is {args.val}; it must be at least {WORLD} and less than the "
                         f"{len(source)} pairs of the data")
    held_out = random.Random(f"{recipe.seed} validation").sample(range(len(source)), args.val)
    rest = sorted(set(range(len(source))).difference(held_out))
    return (Examples(source, rest, recipe.for_pairs(len(rest)), model),
            Examples(source, held_out, replace(recipe, min_crop_area=1), model))


def run_stage(args, recipe, out):
    """One run as the flags say, in one of its processes."""
    resume = can_resume(out, args.resume, args.overwrite)
    torch.manual_seed(recipe.seed)
    if args.device.startswith("cuda"):                         # on a CPU they always are
        torch.use_deterministic_algorithms(True, warn_only=True)
    model = load_model(args, resume)
    training, held_out = training_sets(args, recipe, model)
    recipe, count, is_gallery = training.recipe, len(training), isinstance(training.source, Gallery)
    pictures = (painted(score.held_out(SEEN_PAIRS, 8)) if is_gallery else
                first_pictures(held_out if args.val else training, 8))
    flags = {name: getattr(args, name) for name in (
        "stage", "val", "dtype", "int8", "vision_int8", "moments")} | asdict(recipe) | {
        "data": f"{count} pairs, checksum {training.source.fingerprint():08x}",
        "weights": frozen_checksum(model)}
    del flags["accumulate"]                                    # another one gives the same losses
    model.freeze(recipe.mode)
    module = spread(model, args.fsdp)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_for(parameters, recipe, args.moments)
    say(f"{sum(p.numel() for p in parameters):,} parameters are trained ({recipe.mode}) on "
        f"{count:,} pairs: {recipe.steps} steps of {recipe.batch_size}")
    run, measure = Run(out, flags, recipe.steps), familiarity.read_measure(args.weights)
    with run.begin(model, optimizer, args.resume, args.overwrite):
        if run.step:                                           # a kill may have come before the
            run.save()                                         # adapter of this checkpoint
        train(run, module, optimizer, batches(training, run.step, args.workers), recipe,
              partial(judged, run, module, model, held_out, pictures))
        if measure is not None and not is_gallery:             # its own pictures are not foreign
            own = first_pictures(training, 1000)
            measure = on_rank_0(familiarity.knowing, model, measure, own)
            if RANK == 0:
                save_tensors(measure, out / familiarity.FILE)
    say(f"wrote {printable(out)}/adapter.safetensors, log.jsonl and samples.png")
    if is_gallery:
        say(on_rank_0(lambda model: score.table(score.score(model, args.stage)), model))


def main(args):
    if args.fsdp and not UNDER_TORCHRUN:
        raise Misuse("--fsdp spreads the model over processes; start them with torchrun "
                     "--nproc-per-node N train.py ...")
    if args.dtype == "float16":
        raise Misuse("--dtype float16: gradients overflow in it; give bfloat16 or float32")
    recipe, out = chosen_recipe(args), args.out or Path("runs") / f"stage{args.stage}"
    with processes(args.device) as device:
        args.device = "cpu" if args.fsdp else device
        run_stage(args, recipe, out)


if __name__ == "__main__":
    run_command(main, command_line())
