"""The vision half of pre-training: ViT, ln_vision and Q-Former learn to see plain scenes.

They learn from unpainted scenes, photographed through all kinds of glass, weather and film, and
never see a painting or a held-out pair of subject and style.

Three linear heads, thrown away afterwards, read what they have seen: the labels of a scene from the
mean over the queries; from each query what its part of the picture shows and how that looks; and
the same from each patch.
"""
import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from artgpt4 import normalise
from common.command_line import Progress
from gallery.attention import watched
from gallery.painting import draw, render
from gallery.scenes import COMPOSITIONS, SETTINGS_OF, SUBJECTS, THINGS, random_scenes

SHOWN = ("", *SUBJECTS, *THINGS)    # what a pixel may show; "" is scenery
LABELS = (*SUBJECTS, *COMPOSITIONS, *sorted(set().union(*SETTINGS_OF.values())), *THINGS)

# ---- Effects: functions (pixels, rng) -> pixels, both (B, 3, S, S). Those given are in 0 .. 1,
# those returned may lie a little outside. rng: a random.Random; fine chance is torch's own

def convolved(x, kernel):
    """x with every channel convolved by one kernel (n, n), n odd; mirrored at the borders."""
    channels, x = x.shape[1], F.pad(x, [len(kernel) // 2] * 4, mode="reflect")
    return F.conv2d(x, (kernel / kernel.sum()).expand(channels, 1, -1, -1), groups=channels)

def blur(x, sigma):
    """A Gaussian blur; sigma in pixels."""
    reach = math.ceil(2 * sigma)
    bell = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2))
    return convolved(x, bell[:, None] * bell)

def waves(x, rng):
    """A grating of x's size, (1, 1, S, S) in -1 .. 1, at any angle."""
    period, angle, phase = rng.uniform(3.5, 9), rng.uniform(0, math.pi), rng.uniform(0, 6.3)
    at = torch.arange(x.shape[-1]).float()
    along = at[None, :] * math.cos(angle) + at[:, None] * math.sin(angle)
    return torch.sin(2 * math.pi * along / period + phase)[None, None]

def spots(x, cell, channels=3, mode="bilinear"):
    """Normal noise for x in spots of `cell` pixels: (B, channels, S, S)."""
    cells = max(2, round(x.shape[-1] / cell))
    return F.interpolate(torch.randn(len(x), channels, cells, cells), size=x.shape[2:], mode=mode)

def shake(x, reach, patch):
    """Take every pixel from about `reach` pixels away; neighbours within `patch` move together."""
    size = x.shape[-1]
    shift = spots(x, patch, 2).permute(0, 2, 3, 1) * reach / size
    grid = F.affine_grid(torch.eye(2, 3)[None], (1, 3, size, size), align_corners=False)
    return F.grid_sample(x, grid + shift, padding_mode="reflection", align_corners=False)

def soft(x, rng):
    """Out of focus."""
    return blur(x, rng.uniform(0.7, 2.5))

def speckled(x, rng):
    """Noise: grain, confetti or blotches, gray or coloured."""
    mode = rng.choice(("nearest", "bicubic"))
    return x + spots(x, rng.uniform(1, 6), rng.choice((1, 3)), mode) * rng.uniform(0.05, 0.15)

def fog(x, rng):
    """Thick here and thin there, dark or light."""
    haze = rng.choice((0, 0.85, 0.85)) + 0.15 * torch.rand(1, 3, 1, 1)
    return x + (haze - x) * (rng.uniform(0.3, 0.7) + 0.25 * spots(x, 30, 1)).clamp(0, 0.9)

def pieces(x, rng):
    """Pieces, square or not, off in colour or of one colour each, with or without joints."""
    flat, size = rng.random() < 0.4, x.shape[-1]
    count = round(size / rng.uniform(4, 8 if flat else 18))
    at, middles = torch.arange(size) + 0.5, (torch.arange(count) + 0.5) * size / count
    middles = torch.cartesian_prod(middles, middles)
    middles = middles + (torch.rand_like(middles) - 0.5) * rng.choice((0, 0.9)) * size / count
    piece = torch.cdist(torch.cartesian_prod(at, at), middles).argmin(dim=1).view(size, size)
    rows, columns = middles.long().T
    off = torch.randn(len(x), 3, count**2)[:, :, piece] * rng.uniform(0, 0.15)
    cut = (blur(x, 1)[:, :, rows, columns][:, :, piece] if flat else x) + off
    joints = F.pad(piece, (0, 1, 0, 1))
    joints = (joints[:-1, 1:] != piece) | (joints[1:, :-1] != piece)
    joints = blur(joints.float()[None, None], 0.7) * rng.uniform(0, 1.5)
    return cut + (rng.choice((0, 0.1, 0.9)) - cut) * joints.clamp(max=1)

def screened(x, rng):
    """Through lines or dots: a grille's, or those of a newspaper, thicker where it is darker."""
    screen, tone = waves(x, rng), x.mean(dim=1, keepdim=True) if rng.random() < 0.7 else x
    if rng.random() < 0.4:
        screen = (screen + waves(x, rng)) / 1.4
    screen = shake(screen, rng.uniform(0, 3), 16) + rng.uniform(0, 6) * (tone - 0.5)
    screen = ((screen + rng.uniform(0, 0.7)) * rng.uniform(2, 8)).sigmoid()
    under = x + (rng.choice((0, 0.9, 0.9)) - x) * rng.uniform(0, 0.9)
    over = x * rng.uniform(0, 0.6) + (0.4 if rng.random() < 0.1 else 0)
    return over + (under - over) * screen

def rippled(x, rng):
    """Through glass that bends, coarse or fine."""
    return shake(x, rng.uniform(1.5, 5), rng.choice((1, 3, 5, 8)))

def posterised(x, rng):
    """Few levels of each colour, cut softly."""
    levels = rng.choice((2, 3, 4))
    return (blur(x, rng.uniform(0.5, 1.5)) * levels).round() / levels

def solarised(x, rng):
    """Film that turns the light parts dark, or those between."""
    return 0.5 - 0.5 * torch.cos(math.pi * (rng.uniform(1, 2.2) * x + rng.uniform(-0.5, 0.5)))

def outlined(x, rng):
    """Every edge has a line, thin or thick; what lies between may be blurred, moved, faded."""
    edges = (x - blur(x, rng.uniform(0.6, 2.5))).abs().mean(dim=1, keepdim=True)
    edges = (edges * rng.uniform(5, 25) - rng.uniform(0, 0.3)).clamp(0, 1)
    fill = blur(x, rng.choice((0.4, 1.5, 3)))
    if rng.random() < 0.4:
        fill = fill + (rng.choice((0.1, 0.95, 0.95)) - fill) * rng.uniform(0.2, 0.8)
    fill = fill.roll((rng.randint(-2, 2), rng.randint(-2, 2)), dims=(2, 3))
    return fill + (rng.choice((0, 0.1, 0.1, 0.95)) - fill) * edges

def brushed(x, rng):
    """Dragged along one direction, with streaks."""
    reach, angle = rng.choice((2, 3, 4)), rng.uniform(0, math.pi)
    at = torch.arange(-reach, reach + 1).float()
    kernel = torch.exp(-(at * math.cos(angle) + at[:, None] * math.sin(angle)).square())
    streaks = torch.randn_like(x[:, :rng.choice((1, 3))]) * rng.uniform(0.1, 0.4)
    return convolved(shake(x, rng.uniform(0, 3), 2) + streaks, kernel)

# Pre-training is reproducible: the order is part of what a seed means.
EFFECTS = (soft, speckled, fog, pieces, screened, rippled, posterised, solarised, outlined, brushed)

def photograph(pictures, rng, share, groups=16):
    """Photographs of pictures, uint8 (B, S, S, 3) -> pixels (B, 3, S, S) in 0 .. 1, and which of
    EFFECTS each has, (B, EFFECTS) of 0 and 1. All vary in exposure and tint. A share `share` has
    other colours, and one or two effects, drawn for each of `groups` groups of neighbours."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    strange = (torch.rand(len(x), 1, 1) < 0.5 * share).float()    # shapes must do, without colours
    turned = torch.randn(len(x), 3, 3).mul(1.5).softmax(dim=2)
    turned = torch.lerp(torch.eye(3).expand_as(turned), turned, strange)
    x = (turned @ x.flatten(2)).view_as(x)
    negative = torch.rand(len(x)) < 0.2 * share
    x[negative] = 1 - x[negative]
    x = x * (0.7 + 0.6 * torch.rand(len(x), 3, 1, 1)) + 0.2 * torch.rand(len(x), 3, 1, 1) - 0.1
    x, found = x.clamp(0, 1), torch.zeros(len(x), len(EFFECTS))
    for group in torch.arange(len(x)).chunk(groups):
        count = rng.choice((1, 1, 2)) if rng.random() <= share else 0
        for which in rng.sample(range(len(EFFECTS)), count):
            x[group] = EFFECTS[which](x[group], rng).clamp(0, 1)
            found[group, which] = 1
    return x, found

# ---- What is to be seen in a photograph

PARTS = (3, 5)                      # rows and columns of what queries 1 to 15 describe; 0: all
SUBJECT = slice(1, 1 + len(SUBJECTS))                         # among SHOWN, and so fields
FIELDS = len(SHOWN) + 3 + 2 * 3

def fields_of(x, shown, across):
    """What each patch of pixels x (B, 3, S, S) in 0 .. 1 shows, which show (B, S, S) numbers of
    SHOWN, and how it looks: the shares of SHOWN, the mean colour, and the roughness down and across
    at three scales, all in 0 .. 1: (B, FIELDS, across, across)."""
    shown = shown[:, None, ::2, ::2] == torch.arange(len(SHOWN))[:, None, None]   # half will do
    fields = [F.adaptive_avg_pool2d(part, across) for part in (shown.float(), x)]
    for scale in (1, 2, 4):
        z = F.avg_pool2d(x.mean(dim=1, keepdim=True), scale)
        fields += [F.adaptive_avg_pool2d(z.diff(dim=dim).abs(), across) * 6 for dim in (2, 3)]
    return torch.cat(fields, dim=1).clamp(0, 1)

def parts_of(fields):
    """(B, FIELDS, n, n) -> (B, 16, FIELDS): the whole, then the PARTS row by row."""
    parts = [F.adaptive_avg_pool2d(fields, grid).flatten(2) for grid in (1, PARTS)]
    return torch.cat(parts, dim=2).mT

# ---- The scenes

MARGIN = 16                         # pixels around what a batch crops

class Photographs(Dataset):
    """Item `step` is the batch of that step of a training: a function of seed and step alone.
    (pixels (B, 3, S, S) as the ViT takes them, labels (B, LABELS + EFFECTS), fields (B, FIELDS, n,
    n) of the n x n patches). config: of the model; count: plain scenes, drawn once with a margin
    around what a batch crops."""

    def __init__(self, config, count, seed, steps, batch):
        self.config, self.seed, self.steps, self.batch = config, seed, steps, batch
        scenes, side = random_scenes(count, f"plain {seed}"), config.image_size + MARGIN
        self.drawn = np.empty((count, side, side, 3), dtype=np.uint8)
        self.shown = np.empty((count, side, side), dtype=np.uint8)
        progress = Progress("drawing plain scenes", count, "pictures")
        for i, scene in enumerate(scenes):
            self.drawn[i] = draw(scene, side)
            self.shown[i] = render(scene, side).per_shape(lambda shape: SHOWN.index(shape.name))
            progress.show(i + 1)
        self.labels = torch.tensor([[float(name in {scene.subject, scene.composition, scene.setting,
                                                    *scene.things}) for name in LABELS]
                                    for scene in scenes])

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        """At first plain photographs, from half the steps on all with effects."""
        rng, size = random.Random(f"{self.seed} {step}"), self.config.image_size
        top, left = rng.randrange(MARGIN + 1), rng.randrange(MARGIN + 1)
        chosen = rng.choices(range(len(self.drawn)), k=self.batch)
        window = (chosen, slice(top, top + size), slice(left, left + size))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.randrange(2**63))
            x, effects = photograph(self.drawn[window], rng, share=min(1, 2 * step / self.steps))
        fields = fields_of(x, torch.from_numpy(self.shown[window]), size // self.config.patch_size)
        labels = torch.cat((self.labels[chosen], effects), dim=1)
        return normalise(255 * x.movedim(1, -1)), labels, fields

# ---- The objective

LOOKS = 10.0    # the weight of colours and roughness, which else are hardly told
APART = 10      # the weight of the queries' mean squared cosine, without which all are soon alike

def pointing_loss(attention, subject_shares):
    """-log of the attention of query 0, (B, Q, P) of `watched`, to the patches that the subject
    covers by more than 15 %; subject_shares (B, P - 1)."""
    shows_subject = subject_shares > 0.15
    mass = (attention[:, 0, 1:] * shows_subject).sum(dim=1)             # 0 is the class token
    return -(mass.clamp(min=1e-4).log() * shows_subject.any(dim=1)).mean()

def shrink_outputs(model):
    """Make the matrices that end a residual branch small, so that every layer adds little at first:
    by 1 / sqrt(2 layers) in the ViT, and by 0.4 in the Q-Former, whose self-attention else adds
    several times its input and averages the queries away. These start with deviation 1."""
    for part, factor in ((model.vit, (2 * len(model.vit.blocks)) ** -0.5), (model.qformer, 0.4)):
        for name, parameter in part.named_parameters():
            if name.endswith((".out.weight", ".fc2.weight")):
                parameter.data *= factor
    nn.init.normal_(model.qformer.queries)

def vision_objective(model, photographs, workers=0):
    """Pre-training of model.vit, ln_vision and qformer on Photographs, on the device of the model.
    workers: processes that make these; 0: this one. Returns ({name: parameter} to train,
    loss_of_step(step) -> (loss, a note for the progress line))."""
    device, config = model.vit.pos_embed.device, model.config
    batches = iter(DataLoader(photographs, batch_size=None, num_workers=workers,
                              generator=torch.Generator()))
    told = nn.Linear(config.qformer_width, len(LABELS) + len(EFFECTS))
    described = nn.Linear(config.qformer_width, FIELDS)
    shown = nn.Linear(config.vit_width, FIELDS)
    weights = torch.tensor([1.0] * len(SHOWN) + [LOOKS] * (FIELDS - len(SHOWN)), device=device)
    modules = nn.ModuleList((model.vit, model.ln_vision, model.qformer, told, described, shown))

    def loss_of_step(step):
        pixels, labels, fields = (part.to(device) for part in next(batches))
        patches = model.ln_vision(model.vit(pixels))                    # (B, P, Dv)
        queries, attention = watched(model.qformer, patches)            # (B, Q, D), (B, Q, P)
        names = told(queries.mean(dim=1))
        loss = pointing_loss(attention, fields[:, SUBJECT].sum(dim=1).flatten(1))
        for outputs, targets, weight in ((names, labels, torch.tensor(2.0, device=device)),
                                         (described(queries), parts_of(fields), weights),
                                         (shown(patches[:, 1:]), fields.flatten(2).mT, weights)):
            losses = F.binary_cross_entropy_with_logits(outputs, targets, weight, reduction="none")
            loss = loss + losses.sum(dim=-1).mean()
        unit = F.normalize(queries, dim=-1)
        loss = loss + APART * (unit @ unit.mT).square().mean()
        first, truth = (part[:, :len(SUBJECTS)].argmax(dim=1) for part in (names, labels))
        return loss, f", subject {(first == truth).float().mean():.0%}"

    return dict(modules.to(device).named_parameters()), loss_of_step
