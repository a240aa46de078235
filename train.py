"""Train ArtGPT-4 in its two stages: `python train.py --stage 1`, then `python train.py --stage 2`.

Stage 1 teaches the projection, the adapters and their norms to read pictures, from short captions
without a prompt. Stage 2 teaches them how to answer, from a few long descriptions after an
instruction. Everything else is frozen.

    torchrun --nproc-per-node 8 train.py --stage 1 ...           eight GPUs, each the whole model
    torchrun --nproc-per-node 8 train.py --stage 1 --fsdp ...    eight GPUs, each an eighth of it

A run may end at any moment, by Ctrl-C or by a power cut. The same command with --resume continues
from the last checkpoint and ends with the same weights, to the bit: what a step trains on is a
pure function of seed and step.
"""
from common.start import start_command

if __name__ == "__main__":
    start_command()                                           # before the slow imports

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from common.command_line import run_command
from common.loading import load_folder
from gallery.album import painted
from gallery.scenes import SEEN_PAIRS
from gallery.score import held_out
from training.arithmetic import share_of_machine
from training.cached_vision import cached_vision, release_vision
from training.checkpoints import frozen_checksum
from training.data import batches, open_source, split
from training.flags import chosen_recipe, first_adapter, train_parser
from training.initial import load_initial
from training.lock import locked
from training.memory import check_room
from training.optimizer import AdamW8bit
from training.processes import (
    RANK, WORLD, accumulating, clip_gradients, mean_over_tokens, processes, rank_0_first,
    rank_0_holds, say, spread,
)
from training.recomputation import recompute_blocks
from training.report import sample_pictures
from training.run import Run, can_resume, warn_if_untrained
from training.sources import usable
from training.validation import Evaluation, token_losses


@dataclass
class Recipe:
    """The hyperparameters of one stage; each is also a flag. Rates are per optimizer step."""
    batch_size: int
    warmup_lr: float            # the rate rises from here linearly to lr,
    lr: float
    min_lr: float               # then follows a cosine to min_lr
    warmup_steps: int
    steps: int                  # 0: as many as `epochs` take
    max_text_tokens: int
    epochs: int = 0             # passes over the training pairs, in place of steps
    min_crop_area: float = 0.5
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    mode: str = "artgpt4"       # which parameters are trainable: a key of artgpt4.MODES
    eval_every: int = 1000      # steps between evaluations; 0: one after every epoch
    seed: int = 42

    def for_pairs(self, pairs):
        """This recipe with the steps that its epochs take on a number of training pairs."""
        steps = self.steps or math.ceil(self.epochs * pairs / self.batch_size)
        eval_every = self.eval_every or math.ceil(pairs / self.batch_size)
        return replace(self, steps=steps, eval_every=min(eval_every, steps))


RECIPES = {  # (recipe, stage): batch_size, warmup_lr, lr, min_lr, warmup_steps, steps, by name
    # The paper's own (section 3.3). Its min_lr is above its lr in stage 1, so the rate rises.
    ("paper", 1): Recipe(32, 1e-8, 1e-7, 8e-7, 5000, 10000, max_text_tokens=32),
    ("paper", 2): Recipe(12, 1e-6, 3e-5, 1e-5, 200, 1000, max_text_tokens=160),
    ("minigpt4", 1): Recipe(64, 1e-6, 1e-4, 8e-5, 5000, 20000, max_text_tokens=32,
                            mode="minigpt4"),
    # A trained model and one's own pictures, a few hundred of them: three passes.
    ("finetune", 2): Recipe(4, 1e-6, 3e-5, 1e-6, 10, 0, max_text_tokens=160, epochs=3,
                            min_crop_area=0.8, eval_every=0),
    # For weights/tiny and the gallery: minutes on two cores.
    ("tiny", 1): Recipe(32, 1e-5, 3e-3, 1e-4, 30, 660, max_text_tokens=40,
                        min_crop_area=0.8, eval_every=220),
    ("tiny", 2): Recipe(16, 1e-5, 1e-3, 5e-5, 20, 525, max_text_tokens=240,
                        min_crop_area=0.8, eval_every=105),
}


def learning_rate(step, recipe):
    """The rate of step 0, 1, ...: linear warm-up over the first steps of the run, then a cosine
    over the whole run.

    The cosine begins at step 0 too, as in the released code. When warm-up ends it has already
    fallen a little, so the rate jumps from lr down to it: by 2 % of the way to min_lr after a
    warm-up of a tenth of the run, by 10 % after a fifth, by half after half.
    """
    if step < recipe.warmup_steps:
        rise = step / recipe.warmup_steps
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * rise
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * cosine


def optimizer_for(parameters, recipe, bits=32):
    """AdamW with weight decay on matrices only, not on norms. bits: of each moment, 32 or 8."""
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    if bits == 8:
        return AdamW8bit(groups, lr=recipe.lr, betas=(0.9, 0.999))
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.999), fused=True)


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


def backward(module, parts, stage, max_text_tokens):
    """Add the gradients of the summed token losses of a batch, computed in parts.

    Returns that sum and the number of tokens, of this process.
    """
    loss, tokens = 0.0, 0
    for i, batch in enumerate(parts, 1):
        with accumulating(module, last=i == len(parts)):
            losses = token_losses(module, batch, stage, max_text_tokens)
            losses.sum().backward()
        loss += losses.sum().item()
        tokens += len(losses)
    return loss, tokens


def train(model, loader, recipe, stage, run, evaluation, fsdp=False, optimizer_bits=32):
    """Train the parameters of recipe.mode. training/run.py says what is written.

    loader: of training.data.batches, from step run.first on. Raises SystemExit after SIGTERM or
    Ctrl-C, when all is saved; ValueError when the loss is not finite in many steps in a row.
    """
    model.freeze(recipe.mode)
    module = spread(model, fsdp)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer_for(parameters, recipe, optimizer_bits)
    with run.begin(model, optimizer, stage):
        for step, parts in run.steps(loader):
            rate = learning_rate(step - 1, recipe)
            set_rate(optimizer, rate)
            loss, tokens = backward(module, parts, stage, recipe.max_text_tokens)
            loss, tokens = run.totals(loss, tokens, parts)
            mean_over_tokens(parameters, tokens)
            norm = clip_gradients(parameters, recipe.max_grad_norm)
            if run.is_finite(loss, norm):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step == 1:
                warn_if_untrained(loss / tokens, model.config.llama.vocab_size)
            entry = run.measured(loss / tokens, tokens, rate, norm)
            if run.evaluates:
                entry |= evaluation.losses(module)
            run.log(entry)
            if run.saves:
                run.save(evaluation.draw)
            run.end_step()


def load_model(args, initial, device):
    """The model to train. initial: what --init names, or None for an untrained adapter."""
    dtype, place = getattr(torch, args.dtype), "cpu" if args.fsdp else device
    model = load_folder(args.weights, place, dtype, adapter=False, int8=args.int8,
                        vision_int8=args.vision_int8)
    if initial:
        load_initial(model, initial)
    if args.checkpointing:
        recompute_blocks(model.llama)
    if args.compile:
        compile_blocks(model, device)
    return model


def compile_blocks(model, device):
    """Raises ValueError if torch.compile cannot run: no compiler, no Python headers, ..."""
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--compile: torch.compile cannot run here ({reason}); leave it out, or "
                         "install a C++ compiler") from None
    for block in (*model.vit.blocks, *model.llama.blocks):
        block.compile(dynamic=True)


def run_stage(args, recipe, out, device):
    """One run as the flags say, in one of its processes, on its device."""
    resume = can_resume(out, args.resume, args.overwrite)
    initial = None if resume else first_adapter(args)          # a checkpoint holds its own
    torch.manual_seed(recipe.seed)
    if device.startswith("cuda"):                              # on a CPU they always are
        torch.use_deterministic_algorithms(True, warn_only=True)
    model = load_model(args, initial, device)
    check_room(model, recipe, args, device, out)
    with rank_0_first():
        source = open_source(args.data, out.parent / "index", args.pictures)
        if args.cache_vision:
            source = cached_vision(model, source, out.parent / "vision", args.workers, device)
        source, left_out = usable(source)
        checksum = f"{len(source)} pairs, checksum {source.fingerprint():08x}"
        source, val = split(source, args.val, recipe.seed, WORLD)
        pictures = sample_pictures(val or source) if args.data else painted(held_out(SEEN_PAIRS, 8))
    if left_out:
        say(left_out)
    recipe = recipe.for_pairs(len(source))
    identity = {"stage": args.stage, "val": args.val, "data": checksum, "window": args.window,
                **asdict(recipe), "dtype": args.dtype, "int8": args.int8,
                "vision_int8": args.vision_int8, "optimizer_bits": args.optimizer_bits,
                "cache_vision": args.cache_vision, "weights": frozen_checksum(model)}
    evaluation = Evaluation(model, args.stage, recipe, pictures, val, args.workers)
    if args.cache_vision:
        evaluation.keep_features(to_score=not args.data)
        release_vision(model)
    share = share_of_machine(model, recipe.mode, torch.device(device), getattr(torch, args.dtype),
                             args.checkpointing)
    run = Run(out, identity, recipe, len(source), resume, args.save_every, args.patience,
              args.max_bad, share)
    run.describe(model)
    loader = batches(
        source, args.stage, model.config.image_size, recipe.batch_size, recipe.steps, recipe.seed,
        recipe.min_crop_area, args.workers, run.first, RANK, WORLD, args.accumulate, args.window)
    train(model, loader, recipe, args.stage, run, evaluation, args.fsdp, args.optimizer_bits)
    run.conclude()
    if not args.data:
        evaluation.score(out / "score.json")


def main(args):
    recipe = chosen_recipe(args, RECIPES)
    out = args.out or Path("runs") / f"stage{args.stage}"
    with processes(args.device) as device, rank_0_holds(locked(out)):
        run_stage(args, recipe, out, device)


def command_line():
    run_command(main, train_parser(__doc__, RECIPES))


if __name__ == "__main__":
    command_line()
