"""The vision half of pre-training: ViT, ln_vision and Q-Former learn to see plain scenes.

They learn from unpainted scenes, photographed through all kinds of glass, weather and film
(effects.py), and never see a painting or a held-out pair of subject and style.

What they have seen is read by linear heads that are thrown away afterwards. Every query has a head,
and so work, of its own: TASKS. When heads read the mean over the queries instead, nothing keeps
the queries apart, and after a few hundred steps all are equal.
"""
import contextlib
import itertools
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from artgpt4 import PIXEL_MEAN, PIXEL_STD
from common.progress import Progress
from gallery.attention import watched
from gallery.effects import EFFECTS, photograph, roughness
from gallery.painting import draw, render
from gallery.scenes import COMPOSITIONS, SETTINGS_OF, SUBJECTS, THINGS, random_scenes

SHOWN = ("", *SUBJECTS, *THINGS)    # what a pixel may show; "" is scenery
SETTINGS = tuple(sorted({setting for settings in SETTINGS_OF.values() for setting in settings}))

# ---- What is learned


def shares_loss(logits, shares):
    """Cross entropy with shares that sum to one over the last dimension; (..., classes) both."""
    return F.cross_entropy(logits.flatten(0, -2), shares.flatten(0, -2))


@dataclass(frozen=True)
class Task:
    """What a linear head reads from some vectors, and how the loss weighs it."""
    reads: slice | None         # from these queries, each by itself; None: from each patch
    outputs: int
    loss: Callable              # (output, target) -> scalar
    weight: float


def query(number):
    return slice(number, number + 1)


GRID = 3                            # queries 7 to 15 describe the cells of a 3 x 3 grid
CELLS = slice(7, 7 + GRID**2)

TASKS = {
    "subject": Task(query(0), len(SUBJECTS), shares_loss, 1.5),
    "composition": Task(query(1), len(COMPOSITIONS), shares_loss, 0.5),
    "box": Task(query(1), 4, F.smooth_l1_loss, 9),           # the subject's centre and deviation
    "things": Task(query(2), len(THINGS), F.binary_cross_entropy_with_logits, 3),
    "setting": Task(query(3), len(SETTINGS), shares_loss, 0.3),
    "effects": Task(query(4), len(EFFECTS), shares_loss, 1),
    "colours": Task(query(5), 4**3, shares_loss, 0.5),       # a histogram
    "roughness": Task(query(6), 2 * 8, F.mse_loss, 1),       # its mean and deviation
    "cell shows": Task(CELLS, len(SHOWN), shares_loss, 1),
    "cell colours": Task(CELLS, 3 * 4 * 4, F.mse_loss, 3),   # of 4 x 4 fields
    "cell roughness": Task(CELLS, 8 * 2 * 2, F.mse_loss, 1),
    "patch shows": Task(None, len(SHOWN), shares_loss, 3),
    "patch looks": Task(None, 3 + 8, F.mse_loss, 1),         # its colour and roughness
}

POINTING = 0.3                      # the weight of `pointing_loss`


def vision_heads(config):
    """{task: its head}, a Linear each."""
    def width(task):
        return config.vit.width if task.reads is None else config.qformer.width
    return nn.ModuleDict({name: nn.Linear(width(task), task.outputs)
                          for name, task in TASKS.items()})


def task_losses(heads, patches, queries, targets):
    """{task: its loss, unweighted} for the tasks that have a head, and the logits of the subject
    (B, 1, subjects), None without its head.

    patches (B, P - 1, Dv), queries (B, Q, D); targets of `targets_of`.
    """
    losses, subject = {}, None
    for name, head in heads.items():
        task = TASKS[name]
        source = patches if task.reads is None else queries[:, task.reads]
        output = head(source)
        losses[name] = task.loss(output, targets[name])
        if name == "subject":
            subject = output
    return losses, subject


def weighted(losses):
    """The sum of what task_losses returns first, with the weights of TASKS."""
    return sum(TASKS[name].weight * loss for name, loss in losses.items())


def pointing_loss(attention, subject_shares):
    """-log of the attention of query 0 to the patches that show the subject.

    attention (B, Q, P) of `watched`; subject_shares (B, P - 1), how much of a patch is the subject.
    """
    shows_subject = (subject_shares > 0.15).float()
    mass = (attention[:, 0, 1:] * shows_subject).sum(dim=1)             # 0 is the class token
    visible = shows_subject.sum(dim=1) > 0
    return -(mass.clamp(min=1e-4).log() * visible).mean()


# ---- What is to be seen in a photograph


def cells_of(fields):
    """(B, C, n, n) -> (B, GRID^2, C * (n / GRID)^2): the fields of each cell of the grid."""
    side = fields.shape[-1] // GRID
    cells = fields.unfold(2, side, side).unfold(3, side, side)          # (B, C, GRID, GRID, s, s)
    return cells.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def histogram(x):
    """The shares of 4 x 4 x 4 colours in pixels (B, 3, S, S) in 0 .. 1 -> (B, 1, 64)."""
    levels = (F.adaptive_avg_pool2d(x, 28) * 3.999).long()              # (B, 3, 28, 28), 0 to 3
    red, green, blue = levels.unbind(dim=1)
    bins = F.one_hot(red * 16 + green * 4 + blue, 64)
    return bins.float().mean(dim=(1, 2))[:, None]


def box_of(subject):
    """Where a subject stands: shares (B, n, n) -> (B, 1, 4).

    Its centre x, y and standard deviation x, y, in units of the picture.
    """
    axis = (torch.arange(subject.shape[-1]) + 0.5) / subject.shape[-1]
    mass = subject.sum(dim=(1, 2)).clamp(min=1e-3)[:, None]
    across, down = subject.sum(dim=1) / mass, subject.sum(dim=2) / mass
    centres, deviations = [], []
    for shares in (across, down):
        centre = (shares * axis).sum(dim=1, keepdim=True)
        centres.append(centre)
        deviations.append((shares * (axis - centre) ** 2).sum(dim=1, keepdim=True).sqrt())
    return torch.stack((*centres, *deviations), dim=2)


def targets_of(x, shown, labels, patches_across):
    """What each head should say.

    Args:
        x: pixels (B, 3, S, S) in 0 .. 1.
        shown: (B, S, S), what each pixel shows, numbers of SHOWN.
        labels: what is known of the scenes, by task: each (B, 1, outputs).
        patches_across: the square root of P - 1.

    Returns:
        (targets by task, the share of each patch that is the subject (B, P - 1))
    """
    shown = F.one_hot(shown[:, ::2, ::2].long(), len(SHOWN))            # every other pixel will do
    shown = shown.permute(0, 3, 1, 2).float()
    shares = F.adaptive_avg_pool2d(shown, patches_across)               # (B, SHOWN, n, n)
    subject = shares[:, 1:1 + len(SUBJECTS)].sum(dim=1)
    rough = roughness(x, patches_across)
    looks = torch.cat((F.adaptive_avg_pool2d(x, patches_across), rough), dim=1)
    rough = roughness(x, 2 * GRID)
    rough_statistics = torch.cat((rough.mean(dim=(2, 3)), rough.std(dim=(2, 3))), dim=1)
    return labels | {
        "box": box_of(subject),
        "colours": histogram(x),
        "roughness": rough_statistics[:, None],
        "cell shows": cells_of(F.adaptive_avg_pool2d(shares, GRID)),
        "cell colours": cells_of(F.adaptive_avg_pool2d(x, 4 * GRID)),
        "cell roughness": cells_of(rough),
        "patch shows": shares.flatten(2).transpose(1, 2),
        "patch looks": looks.flatten(2).transpose(1, 2),
    }, subject.flatten(1)


# ---- The scenes


def plain(scene, size):
    """A scene unpainted, uint8 (size, size, 3), and what each pixel shows.

    The latter is (size, size), numbers of SHOWN.
    """
    shown = render(scene, size).per_shape(lambda shape: SHOWN.index(shape.name))
    return np.asarray(draw(scene, size)), shown.astype(np.uint8)


def draw_plain(scenes, size, processes=1):
    """What `plain` returns, of all scenes: uint8 (N, size, size, 3) and (N, size, size)."""
    progress = Progress("drawing plain scenes", len(scenes), "pictures")
    drawn = np.empty((len(scenes), size, size, 3), dtype=np.uint8)
    shown = np.empty((len(scenes), size, size), dtype=np.uint8)
    with contextlib.ExitStack() as stack:
        in_turn = map
        if processes > 1:
            pool = stack.enter_context(ProcessPoolExecutor(processes))
            in_turn = partial(pool.map, chunksize=16)
        for i, pair in enumerate(in_turn(plain, scenes, itertools.repeat(size))):
            drawn[i], shown[i] = pair
            progress.show(i + 1)
    return drawn, shown


def one_hot(values, choices):
    """(N, 1, choices) of N values."""
    numbers = torch.tensor([choices.index(value) for value in values])
    return F.one_hot(numbers, len(choices)).float()[:, None]


class PlainScenes(Dataset):
    """Plain scenes, drawn once with a margin around what a batch crops, and their labels.

    processes: so many draw them.

    Item `step` is the batch of that step of a training: a pure function of seed and step, for any
    number of processes that make them.
    """

    MARGIN = 16

    def __init__(self, count, size, seed, steps, batch, processes=1):
        self.scenes = scenes = random_scenes(count, f"plain {seed}")
        self.size, self.seed, self.steps, self.batch = size, seed, steps, batch
        self.drawn, self.shown = draw_plain(scenes, size + self.MARGIN, processes)
        things = [[float(thing in scene.things) for thing in THINGS] for scene in scenes]
        self.labels = {
            "subject": one_hot([scene.subject for scene in scenes], SUBJECTS),
            "composition": one_hot([scene.composition for scene in scenes], COMPOSITIONS),
            "setting": one_hot([scene.setting for scene in scenes], SETTINGS),
            "things": torch.tensor(things)[:, None]}

    def __len__(self):
        return self.steps

    def chosen(self, step):
        """The numbers of the scenes of a step; every epoch has its own order."""
        numbers = []
        for at in range(step * self.batch, (step + 1) * self.batch):
            epoch, place = divmod(at, len(self.drawn))
            numbers.append(order_of(len(self.drawn), f"{self.seed} {epoch}")[place])
        return numbers

    def __getitem__(self, step):
        """Photographs of a batch of scenes: at first plain ones, from half the steps on all with
        effects; see `photograph`.

        Returns:
            (pixels (B, 3, S, S) in 0 .. 1, what each shows (B, S, S), the labels by task)
        """
        rng = random.Random(f"{self.seed} {step}")
        top, left = rng.randrange(self.MARGIN + 1), rng.randrange(self.MARGIN + 1)
        chosen = self.chosen(step)
        window = (chosen, slice(top, top + self.size), slice(left, left + self.size))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.randrange(2**63))
            x, effects = photograph(self.drawn[window], rng, share=min(1, 2 * step / self.steps))
        labels = {name: label[chosen] for name, label in self.labels.items()}
        labels["effects"] = F.one_hot(effects, len(EFFECTS)).float().mean(dim=1, keepdim=True)
        return x, torch.from_numpy(self.shown[window]), labels


@lru_cache(2)
def order_of(count, seed):
    return random.Random(seed).sample(range(count), count)


class Lessons(Dataset):
    """Item `step` is a batch with all that its heads should say; see `targets_of`.

    (pixels (B, 3, S, S) as the ViT takes them, targets by task, subject shares (B, P - 1))
    """

    def __init__(self, scenes, patches_across):
        self.scenes, self.patches_across = scenes, patches_across

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, step):
        x, shown, labels = self.scenes[step]
        targets, subject_shares = targets_of(x, shown, labels, self.patches_across)
        mean, std = torch.tensor(PIXEL_MEAN)[:, None, None], torch.tensor(PIXEL_STD)[:, None, None]
        return (x - mean) / std, targets, subject_shares


def lessons_in_turn(lessons, workers):
    """The items of Lessons one after another, made by so many processes; 0: by this one."""
    return iter(DataLoader(lessons, batch_size=None, num_workers=workers,
                           multiprocessing_context="fork" if workers else None,
                           generator=torch.Generator()))


# ---- The objective


def shrink_outputs(model):
    """Make the matrices that end a residual branch small, so that every layer adds little at first.

    They become smaller by 1 / sqrt(2 layers) in the ViT, and by 0.4 in the Q-Former, whose
    self-attention else adds several times its input and averages the queries away. The queries
    start with deviation 1.
    """
    for block in model.vit.blocks:
        for linear in (block.attn.proj, block.fc2):
            linear.weight.data *= (2 * len(model.vit.blocks)) ** -0.5
    for layer in model.qformer.layers:
        linears = [layer.self_attn.out, layer.fc2]
        if layer.cross_attn is not None:
            linears.append(layer.cross_attn.out)
        for linear in linears:
            linear.weight.data *= 0.4
    nn.init.normal_(model.qformer.queries)


def vision_objective(model, steps, batch, pictures, seed, workers=0):
    """Pre-training of model.vit, ln_vision and qformer on `pictures` plain scenes, on the device
    of the model. workers: processes that make the photographs; 0: this one.

    Returns:
        (the parameters to train, loss_of_step(step) -> (loss, a note for the progress line))
    """
    device = model.vit.pos_embed.device
    scenes = PlainScenes(pictures, model.config.image_size, seed, steps, batch)
    patches_across = model.config.image_size // model.config.vit.patch_size
    batches = lessons_in_turn(Lessons(scenes, patches_across), workers)
    heads = vision_heads(model.config).to(device)
    named_rightly = 0.0                                                 # a running mean

    def loss_of_step(step):
        nonlocal named_rightly
        pixels, targets, subject_shares = next(batches)
        targets = {name: target.to(device) for name, target in targets.items()}
        patches = model.ln_vision(model.vit(pixels.to(device)))         # (B, P, Dv)
        queries, attention = watched(model.qformer, patches)            # (B, Q, D), (B, Q, P)
        patches = patches[:, 1:]                                        # without the class token
        losses, subject = task_losses(heads, patches, queries, targets)
        loss = POINTING * pointing_loss(attention, subject_shares.to(device))
        loss = loss + weighted(losses)
        right = (subject.argmax(dim=-1) == targets["subject"].argmax(dim=-1)).float().mean().item()
        named_rightly += 0.02 * (right - named_rightly)
        return loss, f", subject {named_rightly:.0%}"

    modules = nn.ModuleList((model.vit, model.ln_vision, model.qformer, heads))
    return list(modules.parameters()), loss_of_step
