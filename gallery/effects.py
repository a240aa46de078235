"""What makes a plain picture look like a photograph taken through glass, weather or an old film.

Each of EFFECTS is a function (pixels, rng) -> pixels, both (B, 3, S, S). The pixels given are in
0 .. 1, those returned may lie a little outside. `rng` is a random.Random; finer chance, such as the
place of each grain, comes from torch's own generator. `photograph` applies them to a batch.
"""
import math

import torch
import torch.nn.functional as F

# ---- What several effects share


def gray(x):
    """The mean over the colours of pixels (B, 3, S, S), in the same shape."""
    return x.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)


def blur(x, sigma):
    """A Gaussian blur of pixels (B, 3, S, S); sigma in pixels."""
    reach = math.ceil(2 * sigma)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="reflect"), kernel, groups=3)
    x = F.pad(x, (0, 0, reach, reach), mode="reflect")
    return F.conv2d(x, kernel.transpose(2, 3), groups=3)


def waves(x, rng, low, high):
    """A grating of x's size, (1, 1, S, S) in -1 .. 1: period low to high pixels, any angle."""
    size = x.shape[-1]
    period, angle, phase = rng.uniform(low, high), rng.uniform(0, math.pi), rng.uniform(0, 6.3)
    at = torch.arange(size).float()
    along = at[None, :] * math.cos(angle) + at[:, None] * math.sin(angle)
    return torch.sin(2 * math.pi * along / period + phase)[None, None]


def shake(x, reach, patch):
    """Take every pixel from up to `reach` pixels away; neighbours within `patch` move together."""
    size = x.shape[-1]
    cells = max(2, size // patch)
    shift = torch.rand(1, 2, cells, cells) * 2 - 1
    shift = F.interpolate(shift, size=(size, size), mode="bilinear") * reach / size * 2
    grid = F.affine_grid(torch.eye(2, 3)[None], (1, 3, size, size), align_corners=False)
    grid = grid + shift.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode="reflection",
                         align_corners=False)


# ---- The effects


def plain(x, rng):
    return x


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


def mosaic(x, rng):
    """Square cells of one colour each."""
    size, cell = x.shape[-1], rng.choice((3, 4, 5, 6, 7))
    cells = F.avg_pool2d(x, cell, ceil_mode=True)
    return F.interpolate(cells, scale_factor=cell)[..., :size, :size]


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
    drops = (torch.rand(1, 1, *x.shape[2:]) < 0.02).float().expand(1, 3, -1, -1)
    kernel = torch.eye(9) if rng.random() < 0.5 else torch.eye(9).flip(0)
    streaks = F.conv2d(drops, kernel.expand(3, 1, 9, 9), padding=4, groups=3).clamp(max=1)
    return x + (rng.choice((0.1, 0.95)) - x) * streaks * rng.uniform(0.3, 0.8)


def outlined(x, rng):
    """Sharpened until every edge has a dark line."""
    smooth = blur(x, rng.uniform(0.6, 2.0))
    return x - (x - smooth).abs().mean(dim=1, keepdim=True) * rng.uniform(3, 8)


def confetti(x, rng):
    """Small cells, each a little off in its colour."""
    cells = x.shape[-1] // rng.choice((2, 3, 4, 5))
    off = torch.randn(len(x), 3, cells, cells) * rng.uniform(0.06, 0.2)
    return x + F.interpolate(off, size=x.shape[2:], mode=rng.choice(("nearest", "bicubic")))


def brushed(x, rng):
    """Fine streaks of light and dark along one direction that bends a little: brushed metal."""
    length, size = rng.choice((7, 9, 13)), x.shape[-1]
    streaks = F.pad(torch.randn(1, 1, size, size), (length // 2, length // 2, 0, 0))
    streaks = F.conv2d(streaks, torch.ones(1, 1, 1, length) / length**0.5)
    angle = rng.uniform(0, math.pi)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0],
                         [math.sin(angle), math.cos(angle), 0]])
    grid = F.affine_grid(turn[None], streaks.shape, align_corners=False)
    streaks = F.grid_sample(streaks, grid, padding_mode="reflection", align_corners=False)
    streaks = shake(streaks.expand(1, 3, -1, -1), rng.uniform(0, 6), 24)
    return x + streaks * rng.uniform(0.06, 0.2)


def faded(x, rng):
    """With little of its colour left."""
    return gray(x) + (x - gray(x)) * rng.uniform(0, 0.4)


# Pre-training is reproducible: the order is part of what a seed means.
EFFECTS = {"plain": plain, "soft": soft, "grain": grain, "blotches": blotches, "mosaic": mosaic,
           "grille": grille, "halftone": halftone, "scanlines": scanlines,
           "rippled glass": rippled_glass, "posterised": posterised, "fog": fog, "rain": rain,
           "outlined": outlined, "confetti": confetti, "brushed": brushed, "faded": faded}

# ---- A batch of photographs


def photograph(pictures, rng, share, groups=16):
    """Photographs of pictures, uint8 (B, S, S, 3), and the effects in them.

    All vary in exposure and tint. A share `share` gets one or two of EFFECTS, drawn for each of
    `groups` groups of neighbours.

    Returns:
        pixels (B, 3, S, S) in 0 .. 1, and labels (B, 2), two numbers of EFFECTS for each picture.
    """
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    negative = torch.rand(len(x)) < 0.2 * share               # shapes must do where colours mislead
    x[negative] = 1 - x[negative]
    x = x * (0.7 + 0.6 * torch.rand(len(x), 3, 1, 1)) + 0.2 * torch.rand(len(x), 3, 1, 1) - 0.1
    x = x.clamp(0, 1)
    names = list(EFFECTS)
    labels = torch.zeros(len(x), 2, dtype=torch.long)
    for group in torch.arange(len(x)).chunk(groups):
        if rng.random() > share:
            continue
        for which in range(rng.choice((1, 2))):
            effect = rng.randrange(len(names))
            x[group] = EFFECTS[names[effect]](x[group], rng).clamp(0, 1)
            labels[group, which] = effect
    return x, labels


def roughness(x, fields):
    """How rough each field of a picture is: pixels (B, 3, S, S) -> (B, 8, fields, fields).

    The eight kinds: differences in four directions, at three scales, and in colour. Outside the
    picture the last four see zeros, so its edge reads as rough.
    """
    y = x.mean(dim=1, keepdim=True)
    z = F.pad(y, (1, 1, 1, 1), mode="replicate")
    neighbours = (z[..., 1:-1, 2:], z[..., 2:, 1:-1], z[..., 2:, 2:], z[..., 2:, :-2])
    kinds = [(y - neighbour).abs() for neighbour in neighbours]
    for scale in (1, 2, 4):
        z = F.avg_pool2d(y, scale)
        kinds.append(F.interpolate((z - F.avg_pool2d(z, 3, 1, 1)).abs(), size=y.shape[2:]))
    kinds.append((x - y - F.avg_pool2d(x - y, 3, 1, 1)).abs().sum(dim=1, keepdim=True))
    return F.adaptive_avg_pool2d(torch.cat(kinds, dim=1), fields) * 15
