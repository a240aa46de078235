"""What keeps the queries of a Q-Former apart: `python -m gallery.cures`.

Vision sides of the tiny model's sizes are pre-trained, each by one of VARIANTS, all at once: every
variant computes every batch, and all begin with the same weights, or with those after
vision.shrink_outputs ("small start"). In all of them the patches have heads of their own, which
stand in for the pre-training of the ViT; what differs is what the queries are asked.

Measured on held-out paintings: the mean cosine of two queries of a picture, and what a linear
classifier (logistic regression, trained on 3,000 paintings) reads from all queries, and from their
mean. The numbers go to docs/cures.json; --table prints its tables again.
"""
from common.start import start_command

if __name__ == "__main__":
    start_command()                                           # before the slow imports

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from artgpt4 import ArtGPT4
from common.command_line import number, run_command
from common.files import read_json, written_beside
from common.loading import device
from common.page import markdown_table
from common.progress import Progress
from gallery.attention import watched
from gallery.blip2 import Blip2, ids_of, text_of
from gallery.effects import EFFECTS
from gallery.pretrain import TINY, initialise, updates
from gallery.probes import FEATURES, READ, measured
from gallery.score import PAIRS
from gallery.vision import (
    POINTING, TASKS, Lessons, PlainScenes, lessons_in_turn, pointing_loss, shrink_outputs,
    task_losses, vision_heads, weighted,
)

PEAK_LR = 1e-3

# ---- Batches


class Batch(NamedTuple):
    """What every variant is given at a step."""
    pixels: torch.Tensor            # (B, 3, S, S)
    targets: dict                   # of vision.targets_of
    subject_shares: torch.Tensor    # (B, P - 1)
    ids: torch.Tensor               # (B, T), the words about each scene
    ids_with_effects: torch.Tensor  # (B, T), and about the effects in its photograph

    def to(self, device):
        targets = {name: target.to(device) for name, target in self.targets.items()}
        tensors = {name: tensor.to(device) for name, tensor in self._asdict().items()
                   if name != "targets"}
        return Batch(targets=targets, **tensors)


def batches(scenes, workers):
    """A Batch for each step of PlainScenes, made by so many processes; 0: by this one."""
    patches_across = TINY.image_size // TINY.vit.patch_size
    lessons = lessons_in_turn(Lessons(scenes, patches_across), workers)
    names = list(EFFECTS)
    for step, (pixels, targets, subject_shares) in enumerate(lessons):
        shown = [scenes.scenes[chosen] for chosen in scenes.chosen(step)]
        effects = [[names[number] for number in row.nonzero().flatten().tolist()]
                   for row in targets["effects"][:, 0]]
        yield Batch(pixels, targets, subject_shares, ids_of([text_of(scene) for scene in shown]),
                    ids_of(list(map(text_of, shown, effects))))


# ---- Objectives: what is computed from patches and queries, with heads that are thrown away


class OnTheMean(nn.Module):
    """Heads for the tasks of vision.TASKS that all read the mean over the queries.

    apart: the weight of a term against equal queries, the mean squared cosine of two of them.
    """

    def __init__(self, config, apart=0.0):
        super().__init__()
        self.apart = apart
        self.heads = vision_heads(config)
        for name, task in TASKS.items():
            if task.reads is not None:
                count = len(range(config.qformer.queries)[task.reads])
                self.heads[name] = nn.Sequential(             # (B, 1, D) -> (B, count, outputs)
                    nn.Linear(config.qformer.width, count * task.outputs), nn.Flatten(1),
                    nn.Unflatten(1, (count, task.outputs)))

    def forward(self, qformer, patches, batch):
        queries = qformer(patches)
        mean = queries.mean(dim=1, keepdim=True)
        total = 0
        for name, head in self.heads.items():
            task = TASKS[name]
            output = head(patches[:, 1:] if task.reads is None else mean)
            total = total + task.weight * task.loss(output, batch.targets[name])
        if self.apart:
            total = total + self.apart * mean_squared_cosine(queries)
        return total


def mean_squared_cosine(queries):
    """Of two different queries of one picture; queries (B, Q, D)."""
    unit = F.normalize(queries, dim=-1)
    count = queries.shape[1]
    total = (unit @ unit.mT).square().sum(dim=(1, 2)) - count             # without each with itself
    return (total / (count * (count - 1))).mean()


class TaskForEach(nn.Module):
    """The objective of the included model: every query has heads of its own, those of vision.TASKS.

    pointing: the weight of vision.pointing_loss.
    """

    def __init__(self, config, pointing=0.0):
        super().__init__()
        self.pointing = pointing
        self.heads = vision_heads(config)

    def forward(self, qformer, patches, batch):
        queries, attention = watched(qformer, patches)
        losses, _ = task_losses(self.heads, patches[:, 1:], queries, batch.targets)
        return weighted(losses) + self.pointing * pointing_loss(attention, batch.subject_shares)


class OfBlip2(nn.Module):
    """BLIP-2's three objectives with equal weights, as there; heads for the patches alone.

    texts: "ids" or "ids_with_effects", which of a Batch's texts is used.
    """

    def __init__(self, config, texts):
        super().__init__()
        self.texts = texts
        self.heads = vision_heads(config)
        for name, task in TASKS.items():
            if task.reads is not None:
                del self.heads[name]
        self.blip2 = Blip2(config.qformer)

    def forward(self, qformer, patches, batch):
        losses, _ = task_losses(self.heads, patches[:, 1:], None, batch.targets)
        objectives = self.blip2(qformer, patches, getattr(batch, self.texts))
        return weighted(losses) + sum(objectives.values())


# ---- Variants


@dataclass(frozen=True)
class Variant:
    """label: for tables. objective: OnTheMean, TaskForEach or OfBlip2, with these settings.
    small_start: begin after vision.shrink_outputs."""
    label: str
    objective: type
    small_start: bool = True
    settings: dict = field(default_factory=dict)


VARIANTS = {
    "mean": Variant("heads on the mean, plain start", OnTheMean, False),
    "mean-small": Variant("heads on the mean, small start", OnTheMean),
    "mean-apart": Variant("heads on the mean, small start, a term against equal queries", OnTheMean,
                          settings={"apart": 1.0}),
    "tasks": Variant("a task for each query, plain start", TaskForEach, False),
    "tasks-small": Variant("a task for each query, small start", TaskForEach),
    "tasks-pointing": Variant("a task for each query, small start, and one points (as in the "
                              "included model)", TaskForEach, settings={"pointing": POINTING}),
    "blip2": Variant("BLIP-2's three objectives, small start", OfBlip2,
                     settings={"texts": "ids"}),
    "blip2-effects": Variant("BLIP-2's three objectives, small start, texts that name the effects "
                             "too", OfBlip2, settings={"texts": "ids_with_effects"}),
}


def start_of(seed, small):
    """A model of the tiny model's sizes whose vision side is as pre-training begins with it."""
    torch.manual_seed(seed)
    model = ArtGPT4(TINY, None)
    torch.manual_seed(seed)
    for part in (model.vit, model.qformer):
        initialise(part)
    if small:
        shrink_outputs(model)
    return model


def learner(model, objective, steps):
    """learn(step, batch) -> the loss, after a step of a model's vision side."""
    modules = nn.ModuleList((model.vit, model.ln_vision, model.qformer, objective))
    update = updates(list(modules.parameters()), steps, PEAK_LR)

    def learn(step, batch):
        patches = model.ln_vision(model.vit(batch.pixels))    # (B, P, Dv)
        loss = objective(model.qformer, patches, batch)
        update(step, loss)
        return loss.detach()

    return learn


def trained(args):
    """{name of a variant: its model}, and {name: the mean loss of its last steps}."""
    models, learners, losses = {}, {}, {name: [] for name in args.variants}
    for name in args.variants:
        variant = VARIANTS[name]
        models[name] = start_of(args.seed, variant.small_start).to(args.device)
        torch.manual_seed(args.seed)
        objective = variant.objective(TINY, **variant.settings).to(args.device)
        learners[name] = learner(models[name], objective, args.steps)
    scenes = PlainScenes(args.pictures, TINY.image_size, args.seed, args.steps, args.batch,
                         processes=min(16, os.cpu_count()))
    progress = Progress(f"{len(models)} variants", args.steps, "steps")
    for step, batch in enumerate(batches(scenes, args.workers)):
        batch = batch.to(args.device)
        for name, learn in learners.items():
            losses[name].append(learn(step, batch))
        progress.show(step + 1)
    return models, {name: torch.stack(row[-50:]).mean().item() for name, row in losses.items()}


# ---- The tables


def tables(found):
    """Markdown: a table for each of FEATURES from what `measured` returns."""
    parts = []
    for of in FEATURES:
        rows = []
        for name, numbers in found.items():
            read = numbers["read"][of]
            cells = [" / ".join(f"{100 * read[pairs][attribute]:.0f} %" for pairs in PAIRS)
                     for attribute in READ]
            cosine = f"{numbers['cosine']['seen pairs']:.5f}"
            rows.append([VARIANTS[name].label, cosine, *cells])
        parts.append(f"Read from {of}, seen pairs / unseen pairs\n\n"
                     + markdown_table(["vision side", "mean cosine", *READ], rows))
    return "\n\n".join(parts)


def main(args):
    if not args.table:
        start = time.monotonic()
        models, losses = trained(args)
        found = measured(models, args.paintings, args.held_out, args.device)
        settings = {"steps": args.steps, "batch": args.batch, "pictures": args.pictures,
                    "paintings": args.paintings, "held_out": args.held_out, "seed": args.seed,
                    "device": args.device, "seconds": round(time.monotonic() - start)}
        numbers = {"settings": settings, "last losses": losses, "variants": found}
        with written_beside(args.scores) as path:
            path.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    print(tables(read_json(args.scores)["variants"]))


def command_line():
    parser = argparse.ArgumentParser(prog="python -m gallery.cures", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    count = number(int, 1, 10**6)
    for flag, default, what in (
            ("--steps", 700, "of pre-training"), ("--batch", 48, "pictures of a step"),
            ("--pictures", 10000, "plain scenes to draw"),
            ("--paintings", 3000, "that the classifiers learn from"),
            ("--held-out", 200, "paintings to measure on, of each kind of pairs")):
        parser.add_argument(flag, type=count, default=default,
                            help=f"{what} (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS),
                        help="default: all")
    parser.add_argument("--seed", type=int, default=42, help="(default: %(default)s)")
    parser.add_argument("--device", type=device, default="cpu", help="(default: %(default)s)")
    parser.add_argument("--workers", type=number(int, 0, 1000), default=0,
                        help="processes that make the batches (default: none but this one)")
    parser.add_argument("--scores", type=Path, default=Path("docs/cures.json"), metavar="FILE",
                        help="the numbers (default: %(default)s)")
    parser.add_argument("--table", action="store_true",
                        help="train nothing; print the tables of --scores")
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
