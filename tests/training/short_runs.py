"""Short runs of training on the shipped weights, in this process."""
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

import train
from artgpt4 import ArtGPT4
from gallery import score
from gallery.album import painted
from gallery.scenes import SEEN_PAIRS
from training import validation
from training.data import Gallery, batches
from training.recomputation import recompute_blocks
from training.report import sample_pictures
from training.run import Run
from training.validation import Evaluation

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "weights" / "tiny"


def short_recipe(stage, mode, changes):
    """Six steps of eight pairs, evaluated every three."""
    recipe = replace(train.RECIPES["tiny", stage], batch_size=8, steps=6,
                     warmup_steps=2, mode=mode, eval_every=3)
    return replace(recipe, **changes)


def short_run(out, source, stage=1, mode="artgpt4", resume=False, dtype=torch.float32, int8=False,
              checkpointing=False, loss=None, changes=(), val=None, save_every=None, accumulate=1,
              optimizer_bits=32, patience=None, max_bad=0.05, weights=None):
    """A run in the folder `out`. Returns the trained model, and its state before the run.

    loss: called with the per-token losses of each forward in training; may return others.
    weights: called with the model before the run.
    """
    recipe = short_recipe(stage, mode, dict(changes))
    torch.manual_seed(recipe.seed)
    model = ArtGPT4.from_pretrained(TINY, dtype=dtype, adapter=False, int8=int8)
    if checkpointing:
        recompute_blocks(model.llama)
    if loss:
        model.register_forward_hook(lambda module, arguments, losses: loss(losses))
    if weights:
        weights(model)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if isinstance(source, Gallery):
        pictures = painted(score.held_out(SEEN_PAIRS, 2))
    else:
        pictures = sample_pictures(source, 2)
    run = Run(out, asdict(recipe), recipe, len(source), resume, save_every, patience, max_bad)
    loader = batches(source, stage, model.config.image_size, recipe.batch_size, recipe.steps,
                     recipe.seed, recipe.min_crop_area, workers=0, first_step=run.first,
                     accumulate=accumulate)
    evaluation = Evaluation(model, stage, recipe, pictures, val, workers=0)
    train.train(model, loader, recipe, stage, run, evaluation, optimizer_bits=optimizer_bits)
    run.conclude()
    return model, start


def log_of(out):
    """The entries of a run's log."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def train_py(monkeypatch, *flags):
    """train.py with flags, in this process, without computing scores. Returns its exit code."""
    shares = {"seen pairs": dict.fromkeys((*score.ATTRIBUTES, "all"), 1)}
    monkeypatch.setattr(validation, "score", lambda *_: shares)
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, flags)])
    try:
        train.command_line()
    except SystemExit as end:
        return end.code
