"""What each image vector says: `python -m gallery.surgery`.

Two paintings A and B whose truth is known. The model describes A with one image vector replaced by
B's, and what is counted is how often an attribute becomes B's: of the pairs that differ in it, and
of which the model names both rightly. Beside it stand a placebo (the vector of another painting
with all of A's attributes, and the attribute named is no longer A's), all vectors at once, and
groups that were found greedily on the first quarter of the pairs and are counted on the others.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from artgpt4 import IMAGE_SLOT, INSTRUCTIONS, chat_prompt, preprocess
from common.command_line import Progress, number, run_command
from common.files import written_beside
from common.models import answers, load, model_flags
from common.page import markdown_table
from gallery.album import painted
from gallery.scenes import COMPOSITIONS, THINGS, random_scenes
from gallery.words import mentioned, named

ATTRIBUTES = ("subject", "style", "palette", "mood", "place", "things")
LONGEST = 100                                                 # tokens of a description
BATCH = 64
GAIN = 0.05                                                   # a vector adds to a group, at least


def transplanted(vectors, other, groups):
    """Image vectors (Q, D) of two pictures -> (len(groups), Q, D): those of the first, in which
    each group of numbers is replaced by the other's."""
    rows = vectors.repeat(len(groups), 1, 1)
    for row, group in zip(rows, groups, strict=True):
        row[group] = other[group]
    return rows


def said(texts):
    """What N texts name, as texts that can be compared: numpy (N, attributes)."""
    rows = []
    for text in texts:
        found = [str(value) for value in named(text).values()]
        rows.append([*found, *(", ".join(sorted(mentioned(text, values)))
                               for values in (COMPOSITIONS, THINGS))])
    return np.array(rows)


class Pairs:
    """`count` pairs of paintings as a model sees and tells them. usable, bool (count, attributes):
    where a pair differs, and both are named rightly."""

    def __init__(self, model, count):
        scenes = random_scenes(2 * count, "surgery")
        doubles = [replace(scene, seed=scene.seed ^ 1) for scene in scenes[:count]]
        prompt = chat_prompt([f"{IMAGE_SLOT} {INSTRUCTIONS[0]}"], model.config.prompt)
        self.model, self.ids = model, model.prompt_ids(prompt)
        self.first, self.other, self.double = (
            self.encode(part) for part in (scenes[:count], scenes[count:], doubles))
        truth = said(", ".join((*scene.attributes.values(), scene.composition, *scene.things))
                     for scene in scenes)
        right = self.describe(torch.cat((self.first, self.other)), "paintings") == truth
        self.truth, self.wanted = truth[:count], truth[count:]
        self.usable = right[:count] & right[count:] & (self.truth != self.wanted)

    @torch.inference_mode()
    def encode(self, scenes):
        size = self.model.config.image_size
        pixels = torch.stack([preprocess(Image.fromarray(picture), size)
                              for picture in painted(scenes)])
        return torch.cat([self.model.encode_image(part) for part in pixels.split(BATCH)])

    @torch.inference_mode()
    def describe(self, vectors, what):
        """Image vectors (N, Q, D) -> what the answers name, of said()."""
        texts, progress = [], Progress(what, len(vectors), "descriptions")
        for part in vectors.split(BATCH):
            embeds = self.model.embed_ids([self.ids] * len(part), part)
            texts += answers(self.model, embeds, LONGEST, temperature=0)
            progress.show(len(texts))
        return said(texts)

    def moved(self, group, pairs):
        """Whether a group of vectors makes the attributes of some pairs the other painting's: bool
        (pairs, attributes)."""
        rows = [transplanted(self.first[i], self.other[i], [group]) for i in pairs]
        return self.describe(torch.cat(rows), f"vectors {group}") == self.wanted[pairs]

    def disturbed(self, vector):
        """Whether the double's vector makes the attributes others than they are."""
        rows = [transplanted(a, b, [[vector]]) for a, b in zip(self.first, self.double, strict=True)]
        return self.describe(torch.cat(rows), f"placebo {vector}") != self.truth


def greedy_group(pairs, column, shares, tuned):
    """The vectors that move an attribute (a column) together, on the pairs `tuned`: one is added
    while that gains GAIN. shares (Q,): what each moves alone; the best five are tried."""
    best, usable = np.argsort(-shares)[:5].tolist(), pairs.usable[tuned, column]
    group, share = best[:1], shares[best[0]]
    while len(group) < len(best) and usable.any():
        tried = {i: pairs.moved([*group, i], tuned)[usable, column].mean()
                 for i in best if i not in group}
        added = max(tried, key=tried.get)
        if tried[added] < share + GAIN:
            break
        group, share = [*group, added], tried[added]
    return sorted(group)


def share_text(hits, usable):
    """The share of the usable that hit, with Wilson's interval of 95 %, as a text."""
    n, k, z = int(usable.sum()), int((hits & usable).sum()), 1.96
    if n == 0:
        return "no pair"
    centre, spread = k + z * z / 2, z * (k * (n - k) / n + z * z / 4) ** 0.5
    low, high = ((centre + sign * spread) / (n + z * z) for sign in (-1, 1))
    return f"{100 * k / n:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def tables(model, count):
    """(rows of texts, shares (Q, attributes)): what each vector moves in `count` pairs."""
    pairs, every, columns = Pairs(model, count), np.arange(count), range(len(ATTRIBUTES))
    queries, usable = list(range(model.config.queries)), pairs.usable
    singles = np.stack([pairs.moved([i], every) for i in queries])
    placebo = np.stack([pairs.disturbed(i) for i in queries])
    at_once = pairs.moved(queries, every)
    tuned, rest, group_cells = every[:count // 4], every[count // 4:], []

    def means(hits, some=every):                              # (Q, pairs, attributes) -> (Q, ...)
        return (hits & usable)[:, some].sum(axis=1) / usable[some].sum(axis=0).clip(1)

    for a in columns:
        group = greedy_group(pairs, a, means(singles, tuned)[:, a], tuned)
        share = share_text(pairs.moved(group, rest)[:, a], usable[rest, a])
        group_cells.append(f"{', '.join(map(str, group))}: {share}")
    rows = [[f"vector {i}", *(share_text(singles[i][:, a], usable[:, a]) for a in columns)]
            for i in queries]
    rows.append(["all at once", *(share_text(at_once[:, a], usable[:, a]) for a in columns)])
    rows.append(["a group", *group_cells])
    rows.append(["placebo, mean (largest)", *(
        f"{100 * means(placebo)[:, a].mean():.1f} % ({100 * means(placebo)[:, a].max():.1f})"
        for a in columns)])
    return [*rows, ["pairs counted", *usable.sum(axis=0)]], means(singles)


def heat_map(shares):
    """Shares (Q, attributes) as a PIL image, with the percent in each cell."""
    image = Image.new("RGB", (80 + 80 * len(ATTRIBUTES), 26 + 22 * len(shares)), "white")
    draw = ImageDraw.Draw(image)
    for (row, column), share in np.ndenumerate(shares):
        x, y = 80 + 80 * column, 24 + 22 * row
        colour = tuple(int(255 - share * (255 - c)) for c in (40, 104, 168))
        draw.rectangle((x, y, x + 78, y + 20), colour)
        draw.text((x + 40, y + 10), f"{100 * share:.0f}", "black", anchor="mm")
        draw.text((x + 40, 12), ATTRIBUTES[column], "black", anchor="mm")
        draw.text((8, y + 10), f"vector {row}", "black", anchor="lm")
    return image


def main(args):
    rows, shares = tables(load(args), args.pairs)
    print(markdown_table(["B's instead", *ATTRIBUTES], rows))
    if args.map:
        with written_beside(args.map) as path:
            heat_map(shares).save(path, format="PNG", optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gallery.surgery",
                                     description=__doc__.partition("\n\n")[2])
    model_flags(parser)
    parser.add_argument("--pairs", type=number(int, 4, 10000), default=200, metavar="N",
                        help="pairs of paintings; default: %(default)s")
    parser.add_argument("--map", type=Path, metavar="FILE.png", help="draw the table too")
    run_command(main, parser)
