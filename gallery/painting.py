"""Draws and paints gallery scenes with Pillow and NumPy; a Scene decides every pixel.

`compose` turns a scene into a list of shapes: first the scenery, then the subject. Each shape has a
colour role of the palette. `render` turns the shapes into a Plate: a softly shaded colour image and
a map of which shape is visible where. `draw` returns that image; each style of `paint` is one
function from a Plate to a painting.

Positions are in units of the picture, x to the right and y down, until they become pixels. A
subject is drawn in its own frame: u across with 0 in the middle, v up with the foot at 0 and the
top at 1, lit from the left.
"""
import functools
import itertools
import random
from dataclasses import dataclass, replace
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter

from gallery.scenes import COMPOSITIONS, PALETTES, STYLES

# Of what a style paints, in pixels: strokes and dots are sized for it.
SIZE = 224

@dataclass(frozen=True)
class Shape:
    """Polygons of one colour that make one region."""
    parts: list               # polygons, each a list of (x, y)
    role: str                 # one of ROLES, its colour
    light: float = 0.0        # -1: the palette's dark, 0: the role's colour, 1: the highlight
    shading: float = 0.16     # how much lighter the lit side is, and how much darker the other
    towards: tuple = (1, 0.5) # the direction of the shading, from light to dark
    name: str = ""            # of SUBJECTS or THINGS; empty for scenery
    fine: bool = False        # too thin to be cut in glass

    @property
    def is_sky(self):
        return self.role == "sky" and not self.name

@dataclass(frozen=True)
class Plate:
    """A rendered scene, from which every style starts."""
    image: np.ndarray    # (n, n, 3) in 0 .. 1
    labels: np.ndarray   # (n, n): the index in shapes of the one visible at each pixel
    shapes: list
    colours: dict        # role -> (3,) in 0 .. 1, varied a little by the scene's seed
    sun: tuple           # x, y of the light in the picture

    def per_shape(self, value):
        """(n, n) map of value(shape), a number or several, for the visible shape."""
        return np.array([value(shape) for shape in self.shapes], np.float32)[self.labels]

def function_of(name):
    """The function of this file for a subject, a thing or a style of scenes.py."""
    return globals()[name.replace(" ", "_")]

# ---- geometry ----

def box(u0, v0, u1, v1):
    return [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]

WHOLE, UPPER, LOWER = (0, 2 * pi), (0, pi), (pi, 2 * pi)     # arcs of an oval

def oval(u, v, ru, rv=None, arc=WHOLE, steps=24):
    rv, (start, stop) = ru if rv is None else rv, arc
    angles = [start + (stop - start) * i / steps for i in range(steps + 1)]
    return [(u + ru * cos(a), v + rv * sin(a)) for a in angles]

def taper(v0, half0, v1, half1):
    """A tower's trapezium: half the width at height v0 and at height v1."""
    return [(-half0, v0), (half0, v0), (half1, v1), (-half1, v1)]

def line(u0, v0, u1, v1, width):
    length = ((u1 - u0) ** 2 + (v1 - v0) ** 2) ** 0.5
    du, dv = (v0 - v1) / length * width / 2, (u1 - u0) / length * width / 2
    return [(u0 + du, v0 + dv), (u1 + du, v1 + dv), (u1 - du, v1 - dv), (u0 - du, v0 - dv)]

def tower(u, half, top, v, height, teeth):
    """A wall up to v, and battlements; half the width of the one and of the others."""
    left, right = u - top, u + top
    step = (right - left) / (2 * teeth - 1)
    return [box(u - half, 0, u + half, v)] + [
        box(left + 2 * i * step, v, left + (2 * i + 1) * step, v + height) for i in range(teeth)]

# ---- subjects: each function gives shapes in the subject's own frame ----

def mountain(rng):
    sides = rng.choice([(-1,), (1,), (-1, 1), (1, -1)])
    peaks = [(side * rng.uniform(0.36, 0.5), rng.uniform(0.5, 0.7)) for side in sides]
    for u, top in [*peaks, (0, 1)]:
        half, snow = top * rng.uniform(0.5, 0.62), rng.uniform(0.3, 0.42)
        left, right = ([(u + side * half * t + rng.uniform(-0.02, 0.02), top * (1 - t))
                        for t in (0.22, 0.5, 0.75)] for side in (-1, 1))
        ridge = [(u + rng.uniform(-0.03, 0.08) * top, top * (1 - t)) for t in (0.3, 0.55, 0.8)]
        ridge.append((u + 0.1 * half, 0))
        yield Shape([[(u, top), *left, (u - half, 0), *ridge[::-1]]], "main", 0.12)
        yield Shape([[(u, top), *right, (u + half, 0), *ridge[::-1]]], "main", -0.4, 0.1)
        edge = [(u + half * snow * across, top * (1 - snow * down)) for across, down in (
            (-1, 1), (-0.55, 1.15), (-0.25, 0.75), (0.3, 0.8), (0.62, 1.15), (1, 1))]
        edge.insert(3, (u + 0.03, top * (1 - snow * 1.3)))
        yield Shape([[(u, top), *edge[:4]]], "accent", 0.5, 0.1)
        yield Shape([[(u, top), *edge[3:]]], "accent", -0.2, 0.1)

def lighthouse(rng):
    foot, top, stripes = rng.uniform(0.13, 0.16), rng.uniform(0.08, 0.095), rng.randint(4, 6)
    rock = [(-0.36, 0), (-0.29, 0.07), (-0.2, 0.09), (-0.13, 0.14), (0.14, 0.13), (0.2, 0.08),
            (0.32, 0.05), (0.4, 0)]
    rock = [(u * rng.uniform(0.9, 1.15), v * rng.uniform(0.9, 1.1)) for u, v in rock]
    levels = [(0.1 + 0.63 * i / stripes, foot + (top - foot) * i / stripes)
              for i in range(stripes + 1)]
    bands = [taper(*low, *high) for low, high in itertools.pairwise(levels)]
    return [Shape([[(-0.05, 0.83), (-1.6, 1.04), (-1.6, 0.7)]], "sky", 0.45, 0.0, fine=True),
            Shape([rock], "dark", 0.18),
            Shape(bands[1::2], "accent", 0.25, 0.22, (1, 0)),
            Shape(bands[0::2], "main", -0.05, 0.25, (1, 0)),
            Shape([box(-top * 1.5, 0.73, top * 1.5, 0.76)], "dark", 0.05),
            Shape([box(-top * 0.85, 0.76, top * 0.85, 0.87)], "accent", 0.4),
            Shape([line(0, 0.76, 0, 0.87, 0.02)], "dark", fine=True),
            Shape([oval(0, 0.87, top * 1.1, 0.085, UPPER), line(0, 0.94, 0, 1, 0.02)], "dark", 0.1),
            Shape([oval(0, 0.17, 0.035, 0.07, UPPER) + [(-0.035, 0.1), (0.035, 0.1)]], "dark")]

def sailing_boat(rng):
    mast, reach, lean = rng.uniform(-0.06, 0.04), rng.uniform(0.36, 0.46), rng.uniform(0.02, 0.08)
    deck = rng.uniform(0.15, 0.19)
    hull = [(-0.46, deck + 0.03), (-0.36, 0.03), (-0.28, 0), (0.3, 0), (0.4, 0.05), (0.46, deck)]
    big = [(mast + 0.02, 0.25)]
    for t in (1, 0.75, 0.5, 0.25, 0):
        big.append((mast + 0.02 + reach * t + lean * sin(pi * t), 0.25 + 0.7 * (1 - t) - 0.04 * t))
    jib = [(mast - 0.03 - 0.38 * t - lean * sin(pi * t), 0.88 - 0.62 * t)
           for t in (0, 0.25, 0.5, 0.75, 1)] + [(mast - 0.06, 0.25)]
    yield Shape([line(mast, deck, mast, 1, 0.022)], "dark")
    yield Shape([big], "accent", 0.3, 0.25, (1, 0))
    yield Shape([jib], rng.choice(["accent", "main"]), 0.1, 0.2)
    if rng.random() < 0.5:
        stripe = ((0.04, 0.5), (0.56, 0.5), (0.74, 0.37), (0.04, 0.37))
        yield Shape([[(mast + 0.03 + reach * t, v) for t, v in stripe]], "main", 0.0)
    yield Shape([[(mast, 1), (mast + 0.15, 0.97), (mast, 0.93)]], "main", -0.1)
    yield Shape([hull], "main", -0.35, 0.2, (0, 1))
    gunwale = [(-0.46, deck + 0.03), (0.46, deck), (0.44, deck - 0.04), (-0.43, deck - 0.015)]
    yield Shape([gunwale], "accent", 0.0)

def windmill(rng):
    foot, turn, hub = rng.uniform(0.19, 0.23), rng.uniform(0.15, 1.4), 0.62
    sail = [(0.09, 0.0), (0.4, 0.0), (0.4, 0.125), (0.09, 0.1)]
    spars = [line(0, 0, 0.42, 0, 0.03)]
    spars += [line(r, 0, r, 0.12, 0.013) for r in (0.1, 0.2, 0.3, 0.395)]

    def four(parts):
        return [[(u * cos(a) - v * sin(a), hub + u * sin(a) + v * cos(a)) for u, v in part]
                for a in (turn + quarter * pi / 2 for quarter in range(4)) for part in parts]
    return [Shape([taper(0, foot, 0.58, 0.115)], "main", 0.08, 0.3, (1, 0)),
            Shape([taper(0.27, 0.172, 0.31, 0.168)], "dark", 0.25),
            Shape([oval(0, 0.58, 0.135, 0.14, UPPER)], "dark", 0.15),
            Shape([oval(0, 0.13, 0.05, 0.06, UPPER) + [(-0.05, 0), (0.05, 0)]], "dark"),
            Shape([box(-0.035, 0.38, 0.035, 0.45)], "accent", 0.1),
            Shape(four([sail]), "accent", 0.2, 0.1),
            Shape(four(spars), "dark", 0.0, 0.0, fine=True), Shape([oval(0, hub, 0.035)], "dark")]

def cottage(rng):
    wall, ridge, front = rng.uniform(0.4, 0.47), rng.uniform(0.8, 0.88), rng.uniform(0.34, 0.4)
    left, right, middle = -0.56, 0.58, -0.56 + front * 0.62
    gable_right = left + front * 1.24
    chimney = rng.uniform(0.28, 0.4)
    smoke = [oval(chimney + 0.05 * i + 0.02 * i * i, 1.0 + 0.055 * i, 0.035 + 0.014 * i, steps=14)
             for i in range(4)]
    windows = [(0.1, 0.24)]
    if rng.random() < 0.7:
        windows.append((0.34, 0.48))
    panes = [box(u0, 0.16, u1, 0.33) for u0, u1 in windows]
    bars = [line((u0 + u1) / 2, 0.16, (u0 + u1) / 2, 0.33, 0.018) for u0, u1 in windows]
    bars += [line(u0, 0.245, u1, 0.245, 0.018) for u0, u1 in windows]
    return [Shape(smoke, "sky", 0.4, 0.05),
            Shape([box(chimney - 0.06, 0.6, chimney + 0.06, 1.0)], "dark", 0.3),
            Shape([box(left + 0.1, 0, right, wall)], "accent", -0.28, 0.08),
            Shape([[(left, 0), (gable_right, 0), (gable_right, wall), (middle, ridge - 0.02),
                    (left, wall)]], "accent", 0.1, 0.1),
            Shape([[(middle, ridge), (right - 0.08, ridge), (right + 0.07, wall - 0.05),
                    (gable_right + 0.03, wall - 0.05)]], "main", -0.05, 0.2, (0, 1)),
            Shape([line(left - 0.06, wall - 0.07, middle, ridge, 0.06)], "main", -0.45, 0.0),
            Shape([line(middle, ridge, gable_right + 0.05, wall - 0.07, 0.06)], "main", -0.45, 0.0),
            Shape([box(middle - 0.075, 0, middle + 0.075, 0.27)], "dark", 0.08),
            Shape([oval(middle, 0.5, 0.05)], "dark", 0.2),
            Shape(panes, "accent" if rng.random() < 0.4 else "dark", 0.2),
            Shape(bars, "dark", 0.0, 0.0, fine=True)]

def tree(rng):
    lobes = [(0, 0.68, 0.3)]
    for i in range(6):
        a = i * pi / 3 + rng.uniform(-0.2, 0.2)
        lobes.append((0.3 * cos(a), 0.66 + 0.2 * sin(a), rng.uniform(0.13, 0.19)))
    trunk = [(-0.11, 0), (-0.05, 0.08), (-0.045, 0.4), (-0.2, 0.56), (-0.14, 0.58), (0, 0.47),
             (0.12, 0.6), (0.17, 0.57), (0.05, 0.4), (0.05, 0.08), (0.12, 0)]

    def foliage(du, dv, scale):
        return [oval(u * scale + du, (v - 0.66) * scale + 0.66 + dv, r * scale, steps=18)
                for u, v, r in lobes]
    yield Shape([trunk], "dark", 0.15)
    yield Shape(foliage(0, 0, 1), "main", -0.4, 0.12)
    yield Shape(foliage(-0.05, 0.04, 0.78), "main", 0.0, 0.15)
    yield Shape(foliage(-0.1, 0.09, 0.45), "main", 0.3, 0.1)
    if rng.random() < 0.5:
        fruit = [(rng.uniform(0.05, 0.34), rng.uniform(0, 2 * pi))
                 for _ in range(rng.randint(6, 11))]
        yield Shape([oval(r * cos(a), 0.65 + 0.85 * r * sin(a), 0.028, steps=12)
                     for r, a in fruit], "accent")

def bridge(rng):
    arches, reach, hump = rng.choice([1, 2, 3, 3, 4]), 0.86, rng.uniform(0.05, 0.14)
    deck = [(-reach + 2 * reach * i / 16, 0.9 - hump + hump * sin(pi * i / 16)) for i in range(17)]
    pitch, pier = 2 * reach / arches, 0.05 if arches > 2 else 0.08
    wall = [(-reach, 0), *deck, (reach, 0)]
    for i in reversed(range(arches)):
        middle, half = -reach + pitch * (i + 0.5), pitch / 2 - pier
        crown = 0.72 - hump + hump * sin(pi * (i + 0.5) / arches)
        spring = max(0.1, crown - half)
        wall += [(middle + half, 0), *oval(middle, spring, half, crown - spring, UPPER, 16),
                 (middle - half, 0)]
    rail = [(u, v + 0.1) for u, v in deck]
    posts = [box(u - 0.018, v + 0.06, u + 0.018, v + 0.14) for u, v in deck[1::2]]
    banks = [oval(side * 0.95, 0, 0.3, 0.2, UPPER) for side in (-1, 1)]
    return [Shape([[(u + 0.05, v + 0.02) for u, v in wall]], "dark", 0.2, 0.05),
            Shape([wall], "main", 0.1, 0.2, (0.4, 1)),
            Shape([deck + rail[::-1]], "main", 0.35, 0.1),
            Shape([deck + [(u, v - 0.025) for u, v in deck[::-1]]], "dark", 0.1, 0.0),
            Shape(posts, "accent", 0.0, 0.1), Shape(banks, "ground", -0.4, 0.15, (0, 1))]

def vase_of_flowers(rng):
    belly, neck = rng.uniform(0.17, 0.22), rng.uniform(0.07, 0.1)
    profile = [(0.1, 0), (belly * 0.85, 0.07), (belly, 0.16), (belly * 0.85, 0.25), (neck, 0.34),
               (neck, 0.38), (neck * 1.4, 0.42)]
    count = rng.randint(6, 9)
    heads = []
    for i in range(count - 1):
        a = 2 * pi * i / (count - 1) + rng.uniform(0.0, 0.5)
        heads.append((0.32 * cos(a) * rng.uniform(0.85, 1.1),
                      0.68 + 0.2 * sin(a) * rng.uniform(0.9, 1.1)))
    heads.append((0.0, 0.7))
    yield Shape([line(u * 0.15, 0.4, u, v, 0.02) for u, v in heads], "dark", 0.2, 0.0)
    leaves = [(side * rng.uniform(0.13, 0.25), rng.uniform(0.46, 0.56)) for side in (-1, 1, -1, 1)]
    yield Shape([[(0, 0.41), (u * 0.6, v + 0.04), (u * 1.5, v + 0.05), (u, v - 0.05)]
                 for u, v in leaves], "ground", -0.45)
    for i, (u, v) in enumerate(heads):
        size, petals, turn = rng.uniform(0.1, 0.135), rng.choice([5, 6, 7]), rng.uniform(0, pi)
        role, heart = ("accent", "main") if i % 3 == 1 else ("main", "accent")
        blossom = [oval(u + size * 0.6 * cos(a), v + size * 0.6 * sin(a), size * 0.5, steps=12)
                   for a in (turn + 2 * pi * k / petals for k in range(petals))]
        yield Shape(blossom, role, rng.uniform(-0.05, 0.3), 0.15)
        yield Shape([oval(u, v, size * 0.34, steps=14)], heart, -0.1)
    yield Shape([[(-u, v) for u, v in profile] + profile[::-1]], "dark", 0.35, 0.35, (1, 0.2))
    yield Shape([box(-belly * 0.98, 0.13, belly * 0.98, 0.19)], "accent", 0.0, 0.3, (1, 0))

def cat(rng):
    role, light = rng.choice([("dark", 0.12), ("main", -0.3), ("main", -0.1)])
    head, swing = rng.uniform(0.68, 0.72), rng.uniform(0.9, 1.15)
    path = [(0.2 + 0.34 * swing * sin(pi * t * 0.85), 0.05 + 0.5 * t * t)
            for t in (i / 10 for i in range(11))]
    tail = [line(*a, *b, 0.085) for a, b in itertools.pairwise(path)]
    tail += [oval(u, v, 0.043, steps=10) for u, v in path]
    body = oval(0, 0.2, 0.29, 0.2, LOWER)
    body += [(0.25, 0.34), (0.17, 0.56), (-0.17, 0.56), (-0.25, 0.34)]
    ears = [[(s * 0.215, head + 0.07), (s * 0.19, 1.0), (s * 0.03, head + 0.17)] for s in (-1, 1)]
    inner = [[(u * 0.78 + s * 0.025, v * 0.8 + 0.165) for u, v in ear]
             for ear, s in zip(ears, (-1, 1), strict=True)]
    eyes = [oval(s * 0.09, head + 0.03, 0.048, 0.04, steps=14) for s in (-1, 1)]
    pupils = [oval(s * 0.09, head + 0.03, 0.015, 0.038, steps=10) for s in (-1, 1)]
    face = [[(-0.025, head - 0.045), (0.025, head - 0.045), (0, head - 0.08)]]
    whiskers = [line(s * 0.07, head - 0.07, s * 0.3, head - 0.07 + d, 0.009) for s in (-1, 1)
                for d in (-0.05, 0.02)]
    return [Shape(tail, role, light - 0.08, 0.05), Shape([body], role, light, 0.14),
            Shape([oval(0, 0.38, 0.1, 0.16)], "accent", -0.15, 0.1),
            Shape([oval(s * 0.1, 0.035, 0.085, 0.04, steps=14) for s in (-1, 1)],
                  role, light + 0.15, 0.08),
            Shape([*ears, oval(0, head, 0.235, 0.19)], role, light + 0.05, 0.14),
            Shape(inner, "accent", -0.35, 0.05),
            Shape(eyes, "accent", 0.1, 0.0), Shape(pupils + face, "dark", -0.3, 0.0),
            Shape(whiskers, "accent", 0.2, 0.0, fine=True)]

def castle(rng):
    wall, keep, tall = rng.uniform(0.34, 0.42), rng.uniform(0.7, 0.78), rng.uniform(0.52, 0.64)
    cones = rng.random() < 0.5
    yield Shape(tower(0, 0.17, 0.19, keep, 0.06, 4), "main", -0.2, 0.15, (1, 0))
    yield Shape([line(0, keep, 0, 1, 0.018)], "dark")
    yield Shape([[(0, 1), (0.22, 0.96), (0, 0.9)]], "accent", 0.0)
    yield Shape(tower(0, 0.42, 0.42, wall, 0.05, 8), "main", 0.05, 0.15)
    for side in (-1, 1):
        middle, height = side * 0.45, tall * rng.uniform(0.9, 1.1)
        yield Shape(tower(middle, 0.11, 0.13, height, 0.06, 3), "main", 0.18, 0.3, (1, 0))
        if cones:
            cone = [(middle - 0.14, height), (middle + 0.14, height), (middle, height + 0.26)]
            yield Shape([cone], "dark", 0.25, 0.15, (1, 0))
        yield Shape([box(middle - 0.022, height * 0.6, middle + 0.022, height * 0.78)], "dark")
    windows = [box(u - 0.018, keep - 0.19, u + 0.018, keep - 0.1) for u in (-0.09, 0, 0.09)]
    yield Shape(windows, "accent", 0.0)
    yield Shape([oval(0, 0.16, 0.1, 0.1, UPPER) + [(-0.1, 0), (0.1, 0)]], "dark", 0.0)

# ---- figures ----

def limb(width, *points):
    """A bent limb, round at its joints."""
    return ([line(*a, *b, width) for a, b in itertools.pairwise(points)]
            + [oval(u, v, width / 2, steps=10) for u, v in points])

def head(u, v, size, towards=1, bun=False):
    """A head with hair, of radius `size`; it looks right (towards = 1) or left (-1)."""
    hair = [oval(u - towards * 0.3 * size, v + 0.22 * size, size * 1.06, size * 1.02, steps=18)]
    if bun:
        hair.append(oval(u - towards * 1.3 * size, v + 0.35 * size, size * 0.55, steps=12))
    face = oval(u + towards * 0.22 * size, v - 0.12 * size, size * 0.86, size * 0.9, steps=18)
    return [Shape(hair, "dark", 0.02, 0.05), Shape([face], "accent", 0.25, 0.1)]

def dancer(rng):
    swing, kick, low = rng.uniform(-0.04, 0.04), rng.uniform(0.3, 0.4), rng.uniform(0.3, 0.34)
    hem = [(0.3 + swing, low), (0.2 + swing, low - 0.06), (0.08 + swing, low - 0.02),
           (-0.06 + swing, low - 0.07), (-0.18 + swing, low - 0.02), (-0.28 + swing, low + 0.03)]
    legs = (limb(0.062, (0.02, 0.36), (0.0, 0.18), (-0.02, 0.02))
            + limb(0.062, (0.08, 0.36), (0.24, 0.24), (kick, 0.1)))
    left, right = (limb(0.058, (s * 0.08, 0.7), (s * 0.24, 0.8), (s * 0.3, 0.97)) for s in (-1, 1))
    shoes = [oval(0.02, 0.015, 0.06, 0.025, steps=10),
             oval(kick + 0.02, 0.1, 0.05, 0.035, steps=10)]
    return [Shape(legs, "accent", 0.05, 0.1), Shape(shoes, "dark", 0.1),
            Shape(left + right, "accent", 0.2, 0.1),
            Shape([[(-0.11, 0.72), (0.11, 0.72), (0.08, 0.5), *hem, (-0.08, 0.5)]],
                  "main", 0.0, 0.25, (1, 0.3)),
            Shape([box(-0.085, 0.48, 0.085, 0.53)], "dark", 0.2, 0.0),
            Shape([box(-0.03, 0.7, 0.03, 0.78)], "accent", 0.1, 0.0),
            *head(0.01, 0.85, 0.088, rng.choice((-1, 1)), True)]

def mourner(rng):
    """A man who sits on a block, bent over, with his face in his hands."""
    back, down = rng.uniform(0.6, 0.66), rng.uniform(0.02, 0.06)
    role = rng.choice(["main", "main", "dark"])
    trunk = [(-0.3, 0.24), (-0.34, 0.44), (-0.24, back), (-0.02, back + 0.12), (0.14, back + 0.06),
             (0.14, back - 0.1), (0.0, 0.42), (0.04, 0.25)]
    thigh = limb(0.15, (-0.14, 0.34), (0.22, 0.4)) + limb(0.11, (0.22, 0.4), (0.2, 0.06))
    return [Shape([[(-0.4, 0), (-0.36, 0.26), (0.06, 0.27), (0.09, 0)]], "ground", -0.5, 0.2),
            Shape(thigh, "dark", 0.22 if role == "dark" else 0.08, 0.1),
            Shape([oval(0.25, 0.035, 0.1, 0.04, steps=12)], "dark", 0.0),
            Shape([trunk], role, 0.05, 0.22, (1, 0.4)), *head(0.22, back - down, 0.125),
            Shape(limb(0.085, (0.04, back - 0.02), (0.2, 0.42)), role, -0.3, 0.1),
            Shape(limb(0.075, (0.2, 0.43), (0.31, back - 0.12)), "accent", 0.1, 0.1)]

def wanderer(rng):
    """A man with a hat, walking with long steps, a staff in his hand and a bundle on his back."""
    step, lean = rng.uniform(0.19, 0.24), rng.uniform(0.02, 0.05)
    coat = [(-0.09, 0.76), (0.11 + lean, 0.77), (0.14, 0.55), (0.15, 0.34), (-0.17, 0.32),
            (-0.11, 0.55)]
    shoes = [oval(-step + 0.03, 0.025, 0.065, 0.03, steps=10),
             oval(step + 0.04, 0.025, 0.07, 0.03, steps=10)]
    brim = box(lean - 0.14, 0.88, lean + 0.19, 0.915)
    crown = [(lean - 0.075, 0.905), (lean + 0.115, 0.905), (lean + 0.085, 1.0), (lean - 0.045, 1.0)]
    return [Shape([line(0.33, 0, 0.27, 0.86, 0.028)], "dark", 0.1, 0.0),
            Shape(limb(0.085, (-0.03, 0.4), (-0.07, 0.2), (-step, 0.03)), "dark", 0.28, 0.1),
            Shape(limb(0.085, (0.04, 0.4), (0.13, 0.22), (step, 0.03)), "dark", 0.12, 0.1),
            Shape(shoes, "dark", -0.1, 0.0),
            Shape([oval(-0.18, 0.63, 0.12, 0.13, steps=18)], "accent", -0.3, 0.2),
            Shape([coat], "main", 0.05, 0.25, (1, 0.2)), *head(lean + 0.02, 0.835, 0.085),
            Shape([brim, crown], "dark", 0.12, 0.1),
            Shape(limb(0.075, (0.02, 0.71), (0.09, 0.54), (0.25, 0.56)), "main", -0.3, 0.1),
            Shape([oval(0.285, 0.565, 0.04, steps=10)], "accent", 0.2)]

def couple(rng):
    """Two people who hold each other, face to face."""
    tall = rng.uniform(0.87, 0.9)
    dress = [(0.03, 0.68), (0.17, 0.68), (0.18, 0.5), (0.3, 0.07), (0.18, 0.03), (0.0, 0.06),
             (0.05, 0.48)]
    coat = [(-0.2, 0.75), (-0.01, 0.75), (0.0, 0.55), (-0.02, 0.34), (-0.22, 0.34), (-0.23, 0.55)]
    legs = limb(0.085, (-0.16, 0.36), (-0.17, 0.03)) + limb(0.085, (-0.07, 0.36), (-0.06, 0.03))
    shoes = [oval(-0.15, 0.025, 0.07, 0.028, steps=10), oval(-0.03, 0.025, 0.07, 0.028, steps=10)]
    return [Shape(legs, "dark", 0.15, 0.1), Shape(shoes, "dark", -0.1),
            Shape([coat], "dark", 0.3, 0.2, (1, 0)),
            Shape([dress], "main", 0.1, 0.25, (1, 0.2)),
            *head(-0.09, tall, 0.088), *head(0.075, tall - 0.095, 0.083, -1, True),
            Shape(limb(0.066, (0.13, 0.64), (0.0, 0.57), (-0.17, 0.66)), "accent", 0.1, 0.1),
            Shape(limb(0.072, (-0.16, 0.7), (-0.08, 0.52), (0.13, 0.49)), "dark", 0.42, 0.1),
            Shape([oval(0.16, 0.49, 0.035, steps=10)], "accent", 0.25)]

# ---- things around the subject ----

def birds(rng):
    wings = []
    for u, v, s in ((-0.5, 0.3, 0.3), (0.0, 0.75, 0.36), (0.55, 0.4, 0.32), (0.2, 0.05, 0.25)):
        u += rng.uniform(-0.08, 0.08)
        v += rng.uniform(-0.08, 0.08)
        lift = rng.uniform(0.4, 0.65) * s
        wings += [[(u, v - 0.1 * s), (u + side * 0.5 * s, v + lift), (u + side * s, v + 0.5 * lift),
                   (u + side * 0.5 * s, v + lift - 0.3 * s), (u, v - 0.38 * s)] for side in (-1, 1)]
    return [Shape(wings, "dark", 0.0, 0.0)]

def balloon(rng):
    r, middle = rng.uniform(0.34, 0.38), 0.64
    up = [i * pi / 12 - pi / 2 for i in range(13)]

    def meridian(bulge, angles):
        return [(bulge * r * cos(a), middle + r * sin(a)) for a in angles]
    stripes = [meridian(left, up) + meridian(right, up[::-1])
               for left, right in ((-1, -0.55), (-0.2, 0.2), (0.55, 1))]
    below = [(-0.8 * r, middle - 0.6 * r), (0.8 * r, middle - 0.6 * r), (0.09, 0.18), (-0.09, 0.18)]
    return [Shape([oval(0, middle, r), below], "accent", 0.1, 0.2),
            Shape(stripes, "main", -0.05, 0.2), Shape([box(-0.09, 0, 0.09, 0.13)], "dark", 0.15),
            Shape([line(s * 0.08, 0.13, s * 0.08, 0.2, 0.02) for s in (-1, 1)],
                  "dark", 0.0, 0.0, fine=True)]

def rainbow(rng):
    colours = (("main", 0.1), ("accent", 0.35), ("ground", 0.1), ("accent", 0.6))
    for i, (role, light) in enumerate(colours):
        outer = oval(0, 0, 1 - i * 0.075, arc=UPPER, steps=40)
        inner = oval(0, 0, 0.925 - i * 0.075, arc=(pi, 0), steps=40)
        yield Shape([outer + inner], role, light, 0.0)

def firs(rng):
    for u, tall in ((-0.2, rng.uniform(0.7, 0.8)), (0.14, 1.0)):
        yield Shape([box(u - 0.035, 0, u + 0.035, 0.16)], "dark", 0.1)
        for i in range(3):
            low, half = tall * (0.12 + 0.26 * i), tall * (0.27 - 0.06 * i)
            tier = [(u - half, low), (u + half, low), (u, min(tall, low + 0.45 * tall))]
            yield Shape([tier], "main", -0.5 + 0.1 * i, 0.15, (1, 0))

def fence(rng):
    posts = [[(u - 0.022, 0), (u + 0.022, 0), (u + 0.022, 0.125), (u, 0.155), (u - 0.022, 0.125)]
             for u in (-0.5 + 1 / 9 * (i + 0.5) + rng.uniform(-0.01, 0.01) for i in range(9))]
    rails = [line(-0.6, v, 0.6, v + rng.uniform(-0.005, 0.005), 0.02) for v in (0.045, 0.1)]
    return [Shape(rails, "dark", 0.3, 0.1), Shape(posts, "accent", 0.1, 0.1)]

def rowboat(rng):
    oar = rng.uniform(0.6, 0.75)
    hull = [(-0.62, 0.42), (-0.5, 0.1), (-0.38, 0), (0.38, 0), (0.5, 0.1), (0.62, 0.42),
            (0.4, 0.33), (-0.4, 0.33)]
    inside = [(-0.6, 0.42), (-0.4, 0.33), (0.4, 0.33), (0.6, 0.42), (0.3, 0.46), (-0.3, 0.46)]
    return [Shape([inside], "dark", 0.0, 0.0), Shape([hull], "main", 0.05, 0.25, (0, 1)),
            Shape([line(-0.1, 0.55, -oar, -0.05, 0.055), line(0.1, 0.55, oar, -0.05, 0.055)],
                  "accent", 0.1, 0.0),
            Shape([line(-0.5, 0.2, 0.5, 0.2, 0.05)], "accent", 0.2, 0.0)]

def candle(rng):
    top = rng.uniform(0.62, 0.7)
    flame = [(0, 1), (0.07, top + 0.15), (0.05, top + 0.05), (0, top + 0.02), (-0.05, top + 0.05),
             (-0.07, top + 0.15)]
    return [Shape([oval(0, top + 0.14, 0.2, 0.24)], "accent", 0.1, 0.0),
            Shape([oval(0, 0.05, 0.26, 0.06), box(-0.11, 0.04, 0.11, 0.14)], "dark", 0.2, 0.1),
            Shape([box(-0.075, 0.1, 0.075, top)], "accent", 0.5, 0.3, (1, 0)),
            Shape([flame], "main", 0.2, 0.0),
            Shape([line(0, top, 0, top + 0.06, 0.025)], "dark", 0.0, 0.0)]

def apples(rng):
    for u, v in ((-0.36, 0.3), (0.36, 0.3), (0.0, 0.34), (0.02, 0.8)):
        yield Shape([oval(u, v, 0.32, 0.3)], "main", rng.uniform(-0.15, 0.2), 0.35)
        yield Shape([line(u, v + 0.24, u + 0.06, v + 0.42, 0.05)], "dark", 0.0, 0.0)
        yield Shape([oval(u - 0.1, v + 0.1, 0.07, 0.06, steps=10)], "accent", 0.5, 0.0)

def placed(name, rng, x, y, height, side):
    """The shapes of a subject or thing in the picture: middle at x, foot at y, `height` tall. They
    are mirrored when the light comes from the right (side = 1)."""
    for shape in function_of(name)(rng):
        across, down = shape.towards
        parts = [[(x - u * side * height, y - v * height) for u, v in part] for part in shape.parts]
        yield replace(shape, name=name, towards=(-side * across, down), parts=parts)

def thing_places(x, foot, horizon, side, taken):
    """thing -> (x, foot, height), for a subject at x, in the middle or across from the sun, which
    is on `side`. `taken` is half the subject's width; beyond it there is room."""
    if abs(x - 0.5) < 0.1:
        near, other = x - side * taken, x + side * taken
    else:
        near, other = x + side * taken, x + side * (taken + 0.27)
    near, other = (min(max(place, 0.15), 0.85) for place in (near, other))
    return {"balloon": (0.5 - side * 0.31, 0.35, 0.28),
            "birds": (0.5 - side * 0.02, 0.21, 0.165),
            "rainbow": (0.5 - side * 0.12, horizon + 0.02, 0.58),
            "firs": (near, foot - 0.015, 0.34),
            "fence": (0.5, 0.985, 1),
            "rowboat": (other, 0.95, 0.21),
            "candle": (near, foot + 0.02, 0.32),
            "apples": (other, foot + 0.035, 0.14)}

# ---- scenery and composition ----

def rolling(rng, y, height, phase_step=4.0):
    """A hilly strip from its top edge near y down to the picture's foot."""
    phase, pace = rng.uniform(0, 2 * pi), rng.uniform(0.8, 1.2) * phase_step
    top = [(i / 20, y + height * sin(phase + pace * i / 20)) for i in range(21)]
    return [*top, (1, 1), (0, 1)]

def cloud(rng, x, y, size):
    puffs = ((-0.6, 0.3), (-0.15, rng.uniform(0.4, 0.55)), (0.35, rng.uniform(0.3, 0.45)),
             (0.75, 0.22))
    return [oval(x + size * d, y - size * r * 0.35, size * r * 1.15, size * r * 0.62, steps=16)
            for d, r in puffs]

def scenery(rng, setting, horizon, sun, night):
    """The shapes behind the subject, from the sky or the wall to the ground or the table."""
    down = (0, 1)
    sun_x, sun_y = sun
    if setting == "room":
        away = 1 if sun_x < 0.5 else -1
        yield Shape([box(0, 0, 1, 1)], "sky", 0.0, 0.16, (away, 0.4))
        if rng.random() < 0.6:
            x, w = sun_x, rng.uniform(0.15, 0.18)
            yield Shape([box(x - w, 0.08, x + w, 0.5)], "dark", 0.15, 0.0)
            yield Shape([box(x - w + 0.02, 0.1, x + w - 0.02, 0.48)], "sky", 0.55, -0.15, down)
            yield Shape([oval(x + 0.03, 0.24, 0.055)], "accent", 0.2, 0.0)
            bars = [line(x, 0.1, x, 0.48, 0.016), line(x - w, 0.29, x + w, 0.29, 0.016)]
            yield Shape(bars, "dark", 0.15, 0.0)
        yield Shape([box(0, horizon, 1, 1)], "ground", 0.05, 0.18, down)
        yield Shape([box(0, 0.95, 1, 1)], "ground", -0.4, 0.05, down)
        return
    yield Shape([box(0, 0, 1, 1)], "sky", 0.08, -0.22, down)
    if night:
        stars = [oval(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.003, 0.007), steps=8)
                 for _ in range(24)]
        yield Shape(stars, "accent", 0.0, 0.0, fine=True)
    if rng.random() < 0.8:
        yield Shape([oval(sun_x, sun_y, rng.uniform(0.06, 0.09), steps=36)], "accent", 0.25, 0.05)
    for _ in range(rng.choice([0, 1, 2, 2])):
        x, y, size = rng.uniform(0.05, 0.95), rng.uniform(0.1, 0.35), rng.uniform(0.12, 0.2)
        yield Shape(cloud(rng, x, y, size), "sky", 0.5, 0.1, down)
    for i in range(rng.choice([0, 1, 2])):
        hill = rolling(rng, horizon - 0.06 + 0.035 * i, 0.035)
        yield Shape([hill], "ground", 0.25 - 0.2 * i, 0.1, down)
    if setting == "water":
        yield Shape([box(0, horizon, 1, 1)], "ground", 0.1, 0.24, down)
        ripples = [oval(rng.random(), rng.uniform(horizon + 0.03, 1), rng.uniform(0.05, 0.13),
                        0.004, steps=10) for _ in range(9)]
        yield Shape(ripples, "ground", 0.25, 0.0, fine=True)
        rows = [horizon + 0.02 + i * 0.025 for i in range(int((1 - horizon) / 0.025))]
        glitter = [oval(sun_x + rng.uniform(-0.5, 0.5) * (y - horizon + 0.06), y,
                        rng.uniform(0.02, 0.06), 0.005, steps=10) for y in rows]
        yield Shape(glitter, "accent", 0.0, 0.0, fine=True)
    else:
        yield Shape([rolling(rng, horizon, 0.012)], "ground", 0.15, 0.2, down)
        yield Shape([rolling(rng, horizon + 0.11, 0.025, 3)], "ground", -0.08, 0.15, down)

def compose(scene):
    """(shapes from back to front, sun (x, y), the subject's foot y)."""
    rng = random.Random(scene.seed)
    far = scene.composition == "far away"
    free_side = {"to the left": 1, "to the right": -1}.get(scene.composition, 0)
    x = 0.5 - 0.2 * free_side + rng.uniform(-0.03, 0.03)
    height = rng.uniform(0.355, 0.4) if far else rng.uniform(0.58, 0.7)
    if scene.things and not far:
        height *= 0.88
    foot = rng.uniform(0.8, 0.84) if far else rng.uniform(0.85, 0.9)
    horizon = foot - (rng.uniform(0.04, 0.09) if far else rng.uniform(0.12, 0.2))
    side = free_side or rng.choice([-1, 1])
    sun = (0.5 + side * rng.uniform(0.2, 0.34), rng.uniform(0.14, 0.27))
    shapes = [*scenery(rng, scene.setting, horizon, sun, night=scene.palette == "moonlight")]
    places = thing_places(x, foot, horizon, side, taken=0.38 if not far else 0.29)
    around = {thing: list(placed(thing, rng, *places[thing], side)) for thing in scene.things}
    for thing in ("rainbow", "balloon", "birds", "firs"):     # behind the subject
        shapes += around.pop(thing, ())
    if scene.setting != "water":
        shadow = oval(x - side * height * 0.12, foot, height * 0.5, height * 0.045)
        shapes.append(Shape([shadow], "ground", -0.45, 0.1, fine=True))
    shapes += placed(scene.subject, rng, x, foot, height, side)
    return shapes + [shape for thing in around.values() for shape in thing], sun, foot

def scene_colours(scene):
    """role -> (3,) RGB in 0 .. 1: the palette's colours, varied a little by the seed."""
    rng = random.Random(scene.seed + 1)
    colours = {}
    for role, colour in PALETTES[scene.palette].items():
        rgb = np.array(ImageColor.getrgb(colour)) / 255
        shift = np.array([rng.uniform(-0.025, 0.025) for _ in range(3)])
        colours[role] = np.clip(rgb + (shift + rng.uniform(-0.025, 0.025)), 0, 1)
    return colours

def render(scene, n, fine=True):
    """The scene as a Plate of n x n pixels, not anti-aliased; fine=False: without thin shapes."""
    shapes, sun, foot = compose(scene)
    shapes = [shape for shape in shapes if fine or not shape.fine]
    colours = scene_colours(scene)
    canvas = Image.new("L", (n, n))
    pen = ImageDraw.Draw(canvas)
    # A shape has 32 colours from its lit to its shaded edge, with step = slope . (x, y, 1)
    highlight = 0.55 * colours["accent"] + 0.45
    steps, slopes = [], []
    for label, shape in enumerate(shapes):
        for part in shape.parts:
            pen.polygon([(x * n, y * n) for x, y in part], fill=label)
        light = shape.light + shape.shading * np.linspace(1, -1, 32)[:, None]
        end = np.where(light > 0, highlight, colours["dark"])
        steps.append(mix(colours[shape.role], end, np.abs(light)))
        dx, dy = shape.towards
        along = [x * dx + y * dy for part in shape.parts for x, y in part]
        first, last = min(along), max(along)
        slopes.append(np.array([dx, dy, -first]) * (31.99 / max(last - first, 1e-6)))
    labels, grid = np.asarray(canvas), (np.arange(n, dtype=np.float32) + 0.5) / n
    across, down, start = np.take(np.float32(slopes).T, labels, axis=1)
    step = np.clip(across * grid + down * grid[:, None] + start, 0, 31).astype(np.int32)
    image = np.take(np.reshape(np.float32(steps), (-1, 3)), labels * np.int32(32) + step, axis=0)

    plate = Plate(image, labels, shapes, colours, sun)
    glow_x, glow_y = (np.exp((grid - place) ** 2 / -0.05) for place in sun)
    glow = plate.per_shape(lambda s: 0.6 * s.is_sky) * (glow_x * glow_y[:, None])
    image += glow[..., None] * (highlight.astype(np.float32) - image)
    if scene.setting == "water":
        add_reflection(image, plate.per_shape(lambda s: bool(s.name)) > 0, int(foot * n))
    return plate

def add_reflection(image, is_subject, foot):
    """Mirror the subject, where the map (n, n) has it, in rippled water under row `foot`."""
    n = len(image)
    below = np.arange(foot, n)
    ripple = np.sin(below * 400 / n) * (below - foot) * 0.05
    rows = np.maximum(2 * foot - 1 - below, 0)[:, None]
    columns = np.clip(np.arange(n) + ripple[:, None], 0, n - 1).astype(np.intp)
    mirrored = is_subject[rows, columns] & ~is_subject[below]
    strength = 0.5 * mirrored * np.linspace(1, 0.4, len(below))[:, None]
    reflected = image[rows, columns] * 0.85
    image[below] += strength[..., None].astype(np.float32) * (reflected - image[below])

# ---- what the styles share ----

def to_image(array):
    return Image.fromarray((np.clip(array, 0, 1) * 255 + 0.5).astype(np.uint8))

def blur(array, radius):
    return np.asarray(to_image(array).filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255

def noise(rng, cells, n=SIZE):
    """(n, n) smooth noise, about normally distributed, with blobs of n / cells pixels."""
    coarse = Image.fromarray(rng.standard_normal((cells + 2, cells + 2), np.float32))
    window = (0.5, 0.5, cells + 1.5, cells + 1.5)
    return np.asarray(coarse.resize((n, n), Image.Resampling.BICUBIC, window))

def smoothstep(low, high, x):
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)

def luma(rgb):
    return rgb @ np.array([0.3, 0.59, 0.11], np.float32)

def saturate(rgb, amount):
    grey = luma(rgb)[..., None]
    return grey + (rgb - grey) * amount

def mix(a, b, t):
    return a + (b - a) * t

def borders(labels, weight=None):
    """(n, n): nonzero where the label differs from the one to the right or below. The value is 1,
    or the larger of the two sides' weights."""
    weight = np.ones(labels.shape, np.float32) if weight is None else weight
    after = np.minimum(np.arange(len(labels)) + 1, len(labels) - 1)
    right = (labels != labels[:, after]) * np.maximum(weight, weight[:, after])
    down = (labels != labels[after]) * np.maximum(weight, weight[after])
    return np.maximum(right, down)

PIXELS = np.flip(np.indices((SIZE, SIZE), np.float32), 0)     # (2, SIZE, SIZE): x and y of each

@functools.cache
def paper_grain():
    """(SIZE, SIZE): the fine grain of paper, mean 0, about -1 .. 1."""
    rng = np.random.default_rng(7)
    coarse = noise(rng, SIZE // 2) + 0.8 * noise(rng, SIZE // 4)
    return (coarse + 0.5 * rng.standard_normal((SIZE, SIZE), np.float32)) * 0.5

def stamp(top, first, centres, brush):
    """Lay S stamps over each other, numbered from `first` on, in `top` (n, n), which has the number
    of the topmost at each pixel, or 0. centres: (S, 2) as x, y. brush: the stamps' pixels relative
    to these, one after the other; each is (2,), or (S, 2) where the stamps differ. Returns the
    number after the last."""
    order = np.arange(first, first + len(centres), dtype=np.int32)
    for offset in brush:
        x, y = np.clip((centres + offset).astype(np.int32), 0, len(top) - 1).T
        top[y, x] = np.maximum(top[y, x], order)
    return first + len(centres)

def jittered_grid(rng, spacing, jitter=0.5):
    """(S, 2) points x, y in shuffled order, about `spacing` pixels apart."""
    count = int(SIZE / spacing) + 1
    points = np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1).reshape(-1, 2) + 0.5
    points = (points + rng.uniform(-jitter, jitter, points.shape)) * (SIZE / count)
    return np.clip(rng.permutation(points), 0, SIZE - 1).astype(np.float32)

# ---- styles: of a plate of SIZE x SIZE pixels ----

def ink_wash(plate, rng):
    """A few soft tones of diluted ink, a brush contour, a seal, and much empty paper."""
    c = plate.colours
    ink_of = {"sky": 0.03 + 0.3 * (1 - luma(c["sky"])), "ground": 0.28, "main": 0.6,
              "accent": 0.08, "dark": 1.0}
    tone = plate.per_shape(lambda s: ink_of[s.role] - s.light * (0.2 if s.role == "sky" else 0.45))
    tone += 0.6 * (plate.per_shape(lambda s: luma(c[s.role])) - luma(plate.image))
    is_subject = plate.per_shape(lambda s: bool(s.name))
    down = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None]
    mist = smoothstep(1.0, 0.78, down + 0.07 * noise(rng, 3))
    tone = np.clip(tone, 0, 1) * mix(mist, 1, 0.7 * is_subject)
    flatness = plate.per_shape(lambda s: 0.2 if s.role == "sky" else 0.6)
    tone = mix(tone, np.round(tone * 4) / 4, flatness)
    tone = mix(blur(tone, 3.5), blur(tone, 1), 0.4 + 0.4 * is_subject)
    tone *= 1 + 0.2 * noise(rng, 6) + 0.08 * noise(rng, 24) + 0.08 * paper_grain()
    pigment = {role: np.clip(saturate(mix(colour, c["main"], 0.5), 0.62), 0.04, 0.9)
               for role, colour in c.items()}
    absorbed = plate.per_shape(lambda s: -np.log(pigment[s.role]))
    absorbed = 3.3 * blur(absorbed / 3.3, 2) * (1.35 * tone)[..., None]
    # The wash does not quite keep to the contour.
    absorbed = np.pad(absorbed, ((2, 0), (2, 0), (0, 0)), "edge")[:SIZE, :SIZE]

    drawn = plate.per_shape(lambda s: 0 if s.fine and s.role != "dark"
                            else max(bool(s.name), 0.45 * (s.role != "sky")))
    pressure = np.clip(0.17 + 0.13 * noise(rng, 7), 0.06, 0.42) + 0.02 * noise(rng, 60)
    contour = smoothstep(pressure, pressure + 0.08, blur(borders(plate.labels, drawn), 1.3))
    contour *= np.maximum(mist, is_subject) * np.clip(0.85 + 0.2 * noise(rng, 5), 0.4, 1)
    absorbed -= np.log(np.clip(c["dark"], 0.05, 1) * 0.8) * (0.85 * contour)[..., None]
    paper = mix(np.array([0.97, 0.95, 0.91]), c["sky"] / c["sky"].max(), 0.27)
    painting = paper * np.exp(-absorbed) * (1 + 0.02 * paper_grain()[..., None])

    sun_x, _ = plate.sun                                      # the seal is on the light's side
    x = 197 if sun_x > 0.5 else 13
    seal = saturate(c["main"], 1.5) * np.ones((13, 13, 1))
    seal[3:-4:3, 3:-4] = paper
    painting[192:205, x:x + 13] *= mix(1, seal, 0.9)
    return painting

def pointillism(plate, rng):
    """Round dots of pure colour on a toned ground, smaller along the outlines."""
    scale = 2
    outline = blur(borders(plate.labels), 1.5)
    crowd = jittered_grid(rng, 3.4, 0.4)
    crowd = crowd[outline[tuple(crowd.astype(int).T[::-1])] > 0.1]
    coarse, fine = jittered_grid(rng, 6.8, 0.3), jittered_grid(rng, 7.2, 0.4)
    layers = [(coarse, 3.6), (fine, 2.7), (crowd, 1.8)]
    points = np.concatenate([points for points, _ in layers])
    x, y = points.astype(int).T
    colour = saturate(plate.image[y, x], 1.35)
    colour *= 1 + rng.normal(0, 0.12, (len(colour), 1))
    colour += rng.normal(0, 0.06, colour.shape)
    pure = np.stack([saturate(colour, 1.3) for colour in plate.colours.values()])
    nearest = np.argsort(((colour[:, None] - pure) ** 2).sum(-1), 1)[:, 1]
    colour = mix(colour, pure[nearest], 0.5 * (rng.random(len(colour)) < 0.25)[:, None])
    colour[0] = mix(plate.image.mean((0, 1)), plate.colours["dark"], 0.15)
    top, first = np.zeros((SIZE * scale, SIZE * scale), np.int32), 0
    for centres, radius in layers:
        reach = radius * scale
        offsets = np.arange(-int(reach), int(reach) + 1)
        disc = np.stack(np.meshgrid(offsets, offsets), -1).reshape(-1, 2)
        first = stamp(top, first, centres * scale, disc[(disc ** 2).sum(-1) <= reach ** 2])
    return np.take(colour.astype(np.float32), top, axis=0)

def stained_glass(plate, rng):
    """Pieces of luminous glass, cut so that they respect the shapes, in black lead."""
    seeds = jittered_grid(rng, 30, 0.42)
    seed_label = plate.labels[tuple(seeds.astype(int).T[::-1])]
    piece = plate.labels.astype(np.int32)
    for label in np.unique(seed_label):
        own, where = seeds[seed_label == label], plate.labels == label
        parts = np.array_split(2 * PIXELS[:, where], 32, axis=1)         # small: BLAS in one thread
        nearest = [np.argmin((own ** 2).sum(1) - part.T @ own.T, 1) for part in parts]
        piece[where] = 256 * (1 + np.concatenate(nearest)) + label
    _, piece, area = np.unique(piece, return_inverse=True, return_counts=True)
    sums = [np.bincount(piece.ravel(), plate.image[..., i].ravel()) for i in range(3)]
    glass = saturate(np.stack(sums, -1) / area[:, None] * 0.92, 1.6)
    glass = glass * rng.uniform(0.8, 1.1, (len(glass), 1)) + rng.normal(0, 0.02, glass.shape)
    lead = blur(np.maximum(0.75 * borders(piece), borders(plate.labels)), 1.5)
    shine = 1.12 - 0.6 * blur(lead, 5) + 0.05 * noise(rng, 10) + 0.03 * noise(rng, 50)
    away = PIXELS / SIZE - np.reshape(plate.sun, (2, 1, 1))
    shine += 0.1 * np.exp((away ** 2).sum(0) / -0.06)
    image = np.clip(glass, 0.03, 0.93).astype(np.float32)[piece] * shine[..., None]
    return mix(image, plate.colours["dark"] * 0.25, smoothstep(0.13, 0.22, lead)[..., None])

def woodcut(plate, rng):
    """Carved dark lines swell with the tone, over flat tints; in the sky they ring the light."""
    c = plate.colours
    angle = plate.per_shape(lambda s: rng.choice([0.5, 0.9, 2.3, 2.7]) if s.name else pi / 2)
    x, y = PIXELS
    across = np.cos(angle) * x + np.sin(angle) * y
    sun_x, sun_y = plate.sun
    rings = np.hypot(x - sun_x * SIZE, y - sun_y * SIZE)
    across = np.where(plate.per_shape(lambda s: s.is_sky) > 0, rings * 0.85, across)
    across += 1.6 * noise(rng, 6) + 0.3 * noise(rng, 30)
    ridge = np.abs(across / 5.2 % 1 - 0.5) * 2
    ink_of = {"sky": 0.2 + 0.4 * max(0, 0.5 - luma(c["sky"])), "ground": 0.42, "main": 0.5,
              "accent": 0.0, "dark": 1.0}
    tone = plate.per_shape(lambda s: ink_of[s.role] - 0.5 * s.light)
    shade = plate.per_shape(lambda s: luma(c[s.role])) - luma(plate.image)
    tone += 1.6 * shade + 0.05 * noise(rng, 20)
    ink = smoothstep(-0.16, 0.16, np.clip(tone, -0.2, 1.2) - ridge)
    outline = blur(borders(plate.labels, plate.per_shape(lambda s: 1 if s.name else 0.6)), 1.2)
    ink = np.maximum(ink, smoothstep(0.2, 0.3, outline))
    lift = {role: np.clip(0.5 - luma(c[role]), 0, 0.35) * 2 for role in c}
    tint_of = {role: mix(mix(c[role], c["main"], lift[role]), c["accent"], 0.12) for role in c}
    tint = plate.per_shape(lambda s: tint_of["ground" if s.role == "dark" else s.role])
    return mix(tint, c["dark"] * 0.8, ink[..., None])

def stroke_flow(image, rng, cells):
    """(cells, cells): the angle of strokes that follow the outlines, from the structure tensor.
    Where there is no outline, the angle drifts."""
    box, smooth = Image.Resampling.BOX, Image.Resampling.BICUBIC
    small = np.asarray(to_image(luma(image)).resize((cells, cells), box), np.float32) / 255
    gy, gx = np.gradient(small)
    drift = noise(rng, 3, cells) * 0.9
    tensor = [gy * gy - gx * gx + 4e-4 * np.cos(drift), -2 * gx * gy + 4e-4 * np.sin(drift)]
    coarse = [Image.fromarray(part).resize((cells // 3, cells // 3), box) for part in tensor]
    double_cos, double_sin = (np.asarray(part.resize((cells, cells), smooth)) for part in coarse)
    return 0.5 * np.arctan2(double_sin, double_cos)

def oil(plate, rng):
    """Short loaded strokes along the shapes, finer at outlines; ridges of paint catch the light."""
    outline = blur(borders(plate.labels), 2)
    is_subject = plate.per_shape(lambda s: bool(s.name))
    layers = []   # the strokes' centres, half their length, half their width
    sizes = ((7, 14, 4.6, 1), (6, 9, 3, 0.3 + is_subject), (2.5, 3.2, 1.3, 9 * outline))
    for spacing, length, half, wanted in sizes:
        points = jittered_grid(rng, spacing)
        wanted = np.broadcast_to(wanted, (SIZE, SIZE))[tuple(points.astype(int).T[::-1])]
        layers.append((points[wanted > rng.random(len(points))], length, half))
    centres = np.concatenate([points for points, _, _ in layers])
    x, y = centres.astype(int).T
    angle = stroke_flow(plate.image, rng, 84)[y * 84 // SIZE, x * 84 // SIZE]
    angle = angle + rng.normal(0, 0.13, len(x))
    angle += pi * (rng.random(len(x)) < 0.5)
    along = np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)
    across = np.stack([-along[:, 1], along[:, 0]], -1)
    bend = rng.normal(0, 0.012, len(x)).astype(np.float32)
    top, first = np.zeros((SIZE, SIZE), np.int32), 0
    for points, length, half in layers:
        own = slice(first, first + len(points))
        u, v = np.meshgrid(np.arange(-length, length + 0.1, 0.75),
                           np.arange(-half, half + 0.1, 0.75))
        lifted = length * (1 - rng.uniform(0, 0.5, len(v)) - 0.3 * (v[:, 0] / half) ** 2)
        touching = (u < lifted[:, None]) & (u > 0.9 * half - length * (1 - 0.3 * (v / half) ** 2))
        uv = np.stack([u[touching], v[touching]], -1).astype(np.float32)
        brush = (u * along[own] + (v + u * u * bend[own, None]) * across[own] for u, v in uv)
        first = stamp(top, first, points, brush)
    from_centre = PIXELS - np.take(centres.T, top, axis=1)
    u, v = ((from_centre * np.take(axis.T, top, axis=1)).sum(0) for axis in (along, across))
    v -= np.take(bend, top) * u * u
    phase = np.take(rng.uniform(0, 2 * pi, len(x)).astype(np.float32), top)
    bristles = np.sin(v * 1.9 + phase) + 0.5 * np.sin(v * 3.1 + 2 * phase)
    height = blur(0.5 + 0.1 * bristles - 0.13 * borders(top), 0.6)
    relief = (height - np.roll(height, (1, 1), (0, 1)))[..., None]
    weave = 0.02 * np.sin(PIXELS * (pi / 1.5)).prod(0)[..., None]
    colour = saturate(plate.image[y, x], 1.25) * rng.normal(1, 0.06, (len(x), 1))
    colour = colour + rng.normal(0, 0.015, (len(x), 3))
    layer = blur(np.take(colour.astype(np.float32), top, axis=0), 0.4)
    layer = layer * (1 + 0.025 * bristles[..., None])
    return layer * (1 + 0.75 * relief + weave) + 0.25 * relief

def watercolour(plate, rng):
    """Transparent washes that pool at their edges, run together and leave paper between them."""
    grid = np.arange(SIZE)
    columns = np.clip(grid + noise(rng, 14) * 1.5, 0, SIZE - 1).astype(int)
    rows = np.clip(grid[:, None] + noise(rng, 14) * 1.5, 0, SIZE - 1).astype(int)
    labels, image = plate.labels[rows, columns], plate.image[rows, columns]
    is_subject = plate.per_shape(lambda s: bool(s.name))[rows, columns]
    wetness = smoothstep(-0.2, 1.5, noise(rng, 5)) * (1 - 0.5 * is_subject)
    image = mix(blur(image, 0.7), blur(image, 6), 0.8 * wetness[..., None])
    rim = blur(borders(labels), 1.3)
    density = 0.58 + 0.14 * noise(rng, 4) + 0.05 * noise(rng, 16) + 0.07 * paper_grain()
    density += 0.14 * is_subject + 0.8 * rim * (1 - wetness)
    bloom = noise(rng, 4) + 0.12 * noise(rng, 20) - 1.25
    ring = np.exp(-(np.minimum(bloom, 0) / 0.12) ** 2) * (bloom < 0)
    density += 0.16 * ring - 0.16 * smoothstep(0, 0.1, bloom)
    gap = smoothstep(0.22, 0.36, rim) * smoothstep(0.3, 0.8, noise(rng, 9))
    margin = np.minimum(grid, SIZE - 1 - grid)
    wander = 9 + 2.5 * noise(rng, 7) + noise(rng, 25)
    margin = np.minimum(margin, margin[:, None]) - wander
    density += 0.3 * np.exp(-((margin / 2.5) ** 2))
    density = np.maximum(density, 0.12) * (1 - 0.9 * gap) * smoothstep(-0.8, 0.8, margin)
    paper = np.array([0.99, 0.98, 0.955], np.float32) * (1 + 0.012 * paper_grain()[..., None])
    return paper * np.exp(density[..., None] * np.log(np.clip(saturate(image, 1.2), 0.03, 1)))

# ---- public functions ----

def draw(scene, size=224):
    """The scene in no style: softly shaded shapes, as a PIL RGB image of size x size pixels."""
    return to_image(render(scene, 2 * size).image).reduce(2)

def paint(scene, size=224):
    """The scene painted in its style, reduced from SIZE to size x size pixels: a PIL RGB image."""
    seed = [scene.seed, STYLES.index(scene.style), COMPOSITIONS.index(scene.composition)]
    rng = np.random.default_rng(seed)
    plate = render(scene, SIZE, fine=scene.style != "stained glass")
    painting = to_image(function_of(scene.style)(plate, rng))
    return painting.resize((size, size), Image.Resampling.BOX)
