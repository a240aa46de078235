"""The vision half of pre-training: ViT, ln_vision and Q-Former learn to see plain scenes.

The scenes are photographed through all kinds of glass, weather and film. What is seen is read by
linear heads that are thrown away afterwards. Every query has a head, and so work, of its own:
TASKS. When heads read the mean over the queries, all are equal after a few hundred steps.
"""
import itertools
import math
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from artgpt4 import normalise
from common.command_line import Progress
from gallery.attention import watched
from gallery.painting import draw, render
from gallery.scenes import COMPOSITIONS, SETTINGS_OF, SUBJECTS, THINGS, random_scenes

SHOWN = ("", *SUBJECTS, *THINGS)    # what a pixel may show; "" is scenery
SUBJECT = slice(1, 1 + len(SUBJECTS))                                 # of SHOWN
SETTINGS = tuple(sorted({setting for settings in SETTINGS_OF.values() for setting in settings}))

# ---- Effects: functions (pixels, rng) -> pixels, both (B, 3, S, S). Those given are in 0 .. 1,
# those returned may lie a little outside. rng: a random.Random; fine chance is torch's own

def gray(x):
    """The mean over the colours, in the same shape."""
    return x.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)

def blur(x, sigma):
    """A Gaussian blur; sigma in pixels."""
    reach = math.ceil(2 * sigma)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    x = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(x, kernel, groups=3), kernel.transpose(2, 3), groups=3)

def waves(x, rng, low, high):
    """A grating of x's size, (1, 1, S, S) in -1 .. 1: period low to high pixels, any angle."""
    period, angle, phase = rng.uniform(low, high), rng.uniform(0, math.pi), rng.uniform(0, 6.3)
    at = torch.arange(x.shape[-1]).float()
    along = at[None, :] * math.cos(angle) + at[:, None] * math.sin(angle)
    return torch.sin(2 * math.pi * along / period + phase)[None, None]

def shake(x, reach, patch):
    """Take every pixel from up to `reach` pixels away; neighbours within `patch` move together."""
    size = x.shape[-1]
    cells = max(2, size // patch)
    shift = torch.rand(1, 2, cells, cells) * 2 - 1
    shift = F.interpolate(shift, size=(size, size), mode="bilinear") * reach / size * 2
    grid = F.affine_grid(torch.eye(2, 3)[None], (1, 3, size, size), align_corners=False)
    grid = (grid + shift.permute(0, 2, 3, 1)).expand(len(x), -1, -1, -1)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

def soft(x, rng):
    return blur(x, rng.uniform(0.7, 2.5))

def grain(x, rng):
    """Noise in every pixel, gray or coloured."""
    like = x[:, :1] if rng.random() < 0.5 else x
    return x + torch.randn_like(like) * rng.uniform(0.05, 0.2)

def blotches(x, rng):
    """Large soft spots of other colours."""
    spots = torch.randn(len(x), 3, 28, 28)
    return x + F.interpolate(spots, size=x.shape[2:], mode="bilinear") * rng.uniform(0.05, 0.2)

def pieces(x, rng):
    """Pieces, square or not, off in colour or of one colour each, with or without joints."""
    flat, size = rng.random() < 0.4, x.shape[-1]
    count = round(size / rng.uniform(4, 8 if flat else 18))
    at, middles = torch.arange(size) + 0.5, (torch.arange(count) + 0.5) * size / count
    middles = torch.cartesian_prod(middles, middles)
    middles = middles + (torch.rand_like(middles) - 0.5) * rng.choice((0, 0.9)) * size / count
    piece = torch.cdist(torch.cartesian_prod(at, at), middles).argmin(dim=1).view(size, size)
    rows, columns = middles.long().T                          # of the pixel that gives its colour
    off = torch.randn(len(x), 3, count**2)[:, :, piece] * rng.uniform(0, 0.15)
    cut = (blur(x, 1)[:, :, rows, columns][:, :, piece] if flat else x) + off
    joints = F.pad(piece, (0, 1, 0, 1))
    joints = (joints[:-1, 1:] != piece) | (joints[1:, :-1] != piece)
    joints = blur(joints.float().expand(1, 3, -1, -1), 0.7) * rng.uniform(0, 1.5)
    return cut + (rng.choice((0, 0.1, 0.9)) - cut) * joints.clamp(max=1)

def grille(x, rng):
    """Behind bars, dark or light, of any width, straight or bent."""
    bars = torch.minimum(waves(x, rng, 12, 40).abs(), waves(x, rng, 12, 40).abs())
    bars = (bars < rng.uniform(0.1, 0.3)).float().expand(1, 3, -1, -1)
    bars = shake(bars, rng.uniform(0, 5), 16)
    return x * (1 - bars) + rng.choice((0.05, 0.1, 0.9)) * bars

def halftone(x, rng):
    """As printed in a newspaper: a grid of dots, gray or coloured, larger where it is darker."""
    period = rng.uniform(3.5, 7)
    screen = (waves(x, rng, period, period) + waves(x, rng, period, period)) / 4 + 0.5
    x = gray(x) if rng.random() < 0.5 else x
    return ((x - screen) * rng.uniform(3, 10)).sigmoid() * 0.5 + x * 0.5

def scanlines(x, rng):
    """The lines of a screen or a fax, thicker where it is darker."""
    lines = (gray(x) - 0.5) * 1.2 + 0.25 * waves(x, rng, 3.5, 8)
    lines = lines.mul(rng.uniform(6, 20)).sigmoid()
    return lines * (0.5 + 0.5 * x) if rng.random() < 0.7 else lines

def rippled_glass(x, rng):
    return shake(x, rng.uniform(2, 6), rng.choice((3, 5, 8)))

def posterised(x, rng):
    """Few levels of each colour."""
    levels = rng.choice((2, 3, 4))
    return (x * levels).round() / levels

def fog(x, rng):
    haze = torch.rand(1, 3, 1, 1) * 0.15 + 0.85
    return x + (haze - x) * rng.uniform(0.3, 0.7)

def rain(x, rng):
    """Slanting streaks, dark or light."""
    drops = (torch.rand(1, 1, *x.shape[2:]) < 0.02).float()
    kernel = torch.eye(9) if rng.random() < 0.5 else torch.eye(9).flip(0)
    streaks = F.conv2d(drops, kernel[None, None], padding=4).clamp(max=1)
    return x + (rng.choice((0.1, 0.95)) - x) * streaks * rng.uniform(0.3, 0.8)

def outlined(x, rng):
    """Every edge has a line, thin or thick; what lies between may be blurred, moved, faded."""
    edges = (x - blur(x, rng.uniform(0.6, 2.5))).abs().mean(dim=1, keepdim=True)
    edges = (edges * rng.uniform(5, 25) - rng.uniform(0, 0.3)).clamp(0, 1)
    fill = blur(x, rng.choice((0.4, 1.5, 3)))
    if rng.random() < 0.4:
        fill = fill + (rng.choice((0.1, 0.95, 0.95)) - fill) * rng.uniform(0.2, 0.8)
    fill = fill.roll((rng.randint(-2, 2), rng.randint(-2, 2)), dims=(2, 3))
    return fill + (rng.choice((0, 0.1, 0.1, 0.95)) - fill) * edges

def confetti(x, rng):
    """Small cells, each a little off in its colour."""
    cells = x.shape[-1] // rng.choice((2, 3, 4, 5))
    off = torch.randn(len(x), 3, cells, cells) * rng.uniform(0.06, 0.2)
    return x + F.interpolate(off, size=x.shape[2:], mode=rng.choice(("nearest", "bicubic")))

def brushed(x, rng):
    """Fine streaks of light and dark along one direction that bends a little: brushed metal."""
    length, size = rng.choice((7, 9, 13)), x.shape[-1]
    streaks = F.conv2d(torch.randn(1, 1, size, size), torch.ones(1, 1, 1, length) / length**0.5,
                       padding="same")
    angle = rng.uniform(0, math.pi)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0],
                         [math.sin(angle), math.cos(angle), 0]])
    grid = F.affine_grid(turn[None], streaks.shape, align_corners=False)
    streaks = F.grid_sample(streaks, grid, padding_mode="reflection", align_corners=False)
    return x + shake(streaks, rng.uniform(0, 6), 24) * rng.uniform(0.06, 0.2)

def faded(x, rng):
    """With little of its colour left."""
    return gray(x) + (x - gray(x)) * rng.uniform(0, 0.4)

# Pre-training is reproducible: the order is part of what a seed means. The first is none.
EFFECTS = (lambda x, rng: x, soft, grain, blotches, pieces, grille, halftone, scanlines,
           rippled_glass, posterised, fog, rain, outlined, confetti, brushed, faded)

def photograph(pictures, rng, share):
    """Photographs of pictures, uint8 (B, S, S, 3) -> pixels (B, 3, S, S) in 0 .. 1, and the shares
    of EFFECTS in them, (B, 1, EFFECTS). All vary in exposure and tint. A share `share` gets one or
    two of EFFECTS, drawn for each of 16 groups of neighbours; a third of it other colours."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    mixed = torch.randn(len(x), 3, 3).mul(1.5).softmax(dim=2)
    mixed[torch.rand(len(x)) >= 0.33 * share] = torch.eye(3)
    x = (mixed @ x.flatten(2)).view_as(x)                     # shapes must do where colours mislead
    negative = torch.rand(len(x)) < 0.2 * share
    x[negative] = 1 - x[negative]
    x = x * (0.7 + 0.6 * torch.rand(len(x), 3, 1, 1)) + 0.2 * torch.rand(len(x), 3, 1, 1) - 0.1
    x = x.clamp(0, 1)
    effects = torch.zeros(len(x), 1, len(EFFECTS))
    for group in torch.arange(len(x)).chunk(16):
        count = rng.choice((1, 2)) if rng.random() <= share else 0
        for which in range(2):
            effect = rng.randrange(len(EFFECTS)) if which < count else 0
            x[group] = EFFECTS[effect](x[group], rng).clamp(0, 1)
            effects[group, 0, effect] += 0.5
    return x, effects

# ---- What is learned

class Task(NamedTuple):
    """What a linear head reads, and how the loss weighs it."""
    reads: slice | None         # from these queries, each by itself; None: from each patch
    outputs: int
    loss: Callable              # (output, target), both (reads, outputs) -> scalar
    weight: float

GRID = 3                            # queries 7 to 15 describe the cells of a 3 x 3 grid
CELLS = slice(7, 7 + GRID**2)
TASKS = {
    "subject": Task(slice(0, 1), len(SUBJECTS), F.cross_entropy, 1.5),
    "composition": Task(slice(1, 2), len(COMPOSITIONS), F.cross_entropy, 0.5),
    "box": Task(slice(1, 2), 4, F.smooth_l1_loss, 9),        # the subject's centre and deviation
    "things": Task(slice(2, 3), len(THINGS), F.binary_cross_entropy_with_logits, 6),
    "setting": Task(slice(3, 4), len(SETTINGS), F.cross_entropy, 0.3),
    "effects": Task(slice(4, 5), len(EFFECTS), F.cross_entropy, 1),
    "colours": Task(slice(5, 6), 4**3, F.cross_entropy, 0.5),    # a histogram
    "roughness": Task(slice(6, 7), 2 * 8, F.mse_loss, 1),    # its mean and deviation
    "cell shows": Task(CELLS, len(SHOWN), F.cross_entropy, 1),
    "cell colours": Task(CELLS, 3 * 4 * 4, F.mse_loss, 3),   # of 4 x 4 fields
    "cell roughness": Task(CELLS, 8 * 2 * 2, F.mse_loss, 1),
    "patch shows": Task(None, len(SHOWN), F.cross_entropy, 3),
    "patch looks": Task(None, 3 + 8, F.mse_loss, 1),         # its colour and roughness
}
POINTING = 0.3                      # the weight of `pointing_loss`

def pointing_loss(attention, subject_shares):
    """-log of the attention of query 0, (B, Q, P) of `watched`, to the patches that the subject
    covers by more than 15 %; subject_shares (B, P - 1)."""
    shows_subject = (subject_shares > 0.15).float()
    mass = (attention[:, 0, 1:] * shows_subject).sum(dim=1)             # 0 is the class token
    visible = shows_subject.sum(dim=1) > 0
    return -(mass.clamp(min=1e-4).log() * visible).mean()

def task_heads(config):
    """A linear head for each of TASKS."""
    return nn.ModuleDict({
        name: nn.Linear(config.vit_width if task.reads is None else config.qformer_width,
                        task.outputs) for name, task in TASKS.items()})

def vision_loss(model, batch):
    """The loss of a batch of photographs(), a scalar. model.heads: of `task_heads`."""
    (pixels, targets), device = batch, model.vit.pos_embed.device
    with torch.autocast(device.type, torch.bfloat16):
        patches = model.vit(pixels.to(device))
    patches = model.ln_vision(patches.float())                          # (B, P, Dv)
    queries, attention = watched(model.qformer, patches)                # (B, Q, D), (B, Q, P)
    subject_shares = targets["patch shows"][..., SUBJECT].sum(dim=2)    # (B, P - 1)
    loss = POINTING * pointing_loss(attention, subject_shares.to(device))
    for name, task in TASKS.items():
        source = patches[:, 1:] if task.reads is None else queries[:, task.reads]
        output, target = model.heads[name](source), targets[name].to(device)
        loss = loss + task.weight * task.loss(output.flatten(0, -2), target.flatten(0, -2))
    return loss

# ---- What is to be seen in a photograph

def roughness(x, fields):
    """How rough each field of a picture is: pixels (B, 3, S, S) -> (B, 8, fields, fields): in four
    directions, at three scales, in colour. Outside the picture the last four see zeros."""
    y = x.mean(dim=1, keepdim=True)
    z = F.pad(y, (1, 1, 1, 1), mode="replicate")
    neighbours = (z[..., 1:-1, 2:], z[..., 2:, 1:-1], z[..., 2:, 2:], z[..., 2:, :-2])
    kinds = [(y - neighbour).abs() for neighbour in neighbours]
    for scale in (1, 2, 4):
        z = F.avg_pool2d(y, scale)
        kinds.append(F.interpolate((z - F.avg_pool2d(z, 3, 1, 1)).abs(), size=y.shape[2:]))
    kinds.append((x - y - F.avg_pool2d(x - y, 3, 1, 1)).abs().sum(dim=1, keepdim=True))
    return F.adaptive_avg_pool2d(torch.cat(kinds, dim=1), fields) * 15

def cells_of(fields):
    """(B, C, n, n) -> (B, GRID^2, C * (n / GRID)^2): the fields of each cell of the grid."""
    side = fields.shape[-1] // GRID
    return F.unfold(fields, side, stride=side).transpose(1, 2)

def histogram(x):
    """The shares of 4 x 4 x 4 colours in pixels (B, 3, S, S) in 0 .. 1 -> (B, 1, 64)."""
    red, green, blue = (F.adaptive_avg_pool2d(x, 28) * 3.999).long().unbind(dim=1)      # 0 to 3
    return F.one_hot(red * 16 + green * 4 + blue, 64).float().mean(dim=(1, 2))[:, None]

def box_of(subject):
    """Where a subject stands: shares (B, n, n) -> (B, 1, 4), its centre x, y and its standard
    deviation x, y, in units of the picture."""
    axis = (torch.arange(subject.shape[-1]) + 0.5) / subject.shape[-1]
    mass = subject.sum(dim=(1, 2)).clamp(min=1e-3)[:, None]
    shares = torch.stack((subject.sum(dim=1) / mass, subject.sum(dim=2) / mass), dim=1)
    centre = (shares * axis).sum(dim=2)                                 # (B, 2)
    variance = (shares * (axis - centre[..., None]) ** 2).sum(dim=2)
    return torch.cat((centre, variance.sqrt()), dim=1)[:, None]

def targets_of(x, shown, across):
    """What the heads should say of pixels x (B, 3, S, S) in 0 .. 1 that show (B, S, S) numbers of
    SHOWN, with `across` patches a side: {task: (B, reads, outputs)}."""
    shown = F.one_hot(shown[:, ::2, ::2].long(), len(SHOWN))            # every other pixel will do
    shares = F.adaptive_avg_pool2d(shown.permute(0, 3, 1, 2).float(), across)   # (B, SHOWN, n, n)
    looks = torch.cat((F.adaptive_avg_pool2d(x, across), roughness(x, across)), dim=1)
    rough = roughness(x, 2 * GRID)
    return {
        "box": box_of(shares[:, SUBJECT].sum(dim=1)),
        "colours": histogram(x),
        "roughness": torch.cat((rough.mean(dim=(2, 3)), rough.std(dim=(2, 3))), dim=1)[:, None],
        "cell shows": cells_of(F.adaptive_avg_pool2d(shares, GRID)),
        "cell colours": cells_of(F.adaptive_avg_pool2d(x, 4 * GRID)),
        "cell roughness": cells_of(rough),
        "patch shows": shares.flatten(2).transpose(1, 2),
        "patch looks": looks.flatten(2).transpose(1, 2),
    }

# ---- The scenes

MARGIN = 16                         # pixels around what a batch crops

def plain_scenes(count, seed, size):
    """Scenes, drawn once for a whole training: pictures, uint8 (count, side, side, 4), their pixels
    and at each the number of SHOWN; and labels by task, (count, 1, outputs). The side is `size` and
    a margin, out of which every batch crops."""
    scenes, side = random_scenes(count, f"plain {seed}"), size + MARGIN
    pictures = np.empty((count, side, side, 4), dtype=np.uint8)
    progress = Progress("drawing plain scenes", count, "pictures")
    for i, scene in enumerate(scenes):
        pictures[i, ..., :3] = draw(scene, side)
        pictures[i, ..., 3] = render(scene, side).per_shape(lambda shape: SHOWN.index(shape.name))
        progress.show(i + 1)
    told = [(scene.subject, scene.composition, scene.setting, *scene.things) for scene in scenes]
    return pictures, {
        task: torch.tensor([[[float(value in facts) for value in values]] for facts in told])
        for task, values in (("subject", SUBJECTS), ("composition", COMPOSITIONS),
                             ("setting", SETTINGS), ("things", THINGS))}

def photographs(scenes, config, seed, steps, batch):
    """Yield the batches of a training: pixels (B, 3, S, S) as the ViT takes them, targets by task.
    They are plain at first, from half the steps on all have effects. scenes: of plain_scenes;
    config: of the model."""
    (pictures, labels), size = scenes, config.image_size
    order = (i for epoch in itertools.count()
             for i in random.Random(f"{seed} {epoch}").sample(range(len(pictures)), len(pictures)))
    for step in range(steps):
        rng, chosen = random.Random(f"{seed} {step}"), list(itertools.islice(order, batch))
        top, left = rng.randrange(MARGIN + 1), rng.randrange(MARGIN + 1)
        crops = pictures[chosen, top:top + size, left:left + size]
        torch.manual_seed(rng.randrange(2**63))
        x, effects = photograph(crops[..., :3], rng, share=min(1, 2 * step / steps))
        targets = targets_of(x, torch.from_numpy(crops[..., 3]), size // config.patch_size)
        targets |= {name: label[chosen] for name, label in labels.items()}
        yield normalise(255 * x.movedim(1, -1)), targets | {"effects": effects}
