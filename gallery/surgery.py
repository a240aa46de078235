"""What each image vector says: `python -m gallery.surgery`.

Two paintings A and B whose truth is known. The model describes A with one image vector replaced by
B's, and what is counted is how often an attribute becomes B's: of the pairs that differ in it, and
of which the model names both rightly. Beside it stand all vectors at once; groups that were found
greedily on the first quarter of the pairs and are counted on the others; and a placebo, the vector
of another painting with all of A's attributes, after which the attribute is no longer A's.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from common.command_line import number, run_command
from common.files import written_beside
from common.models import load, model_flags
from common.page import markdown_table
from gallery.album import painted
from gallery.scenes import COMPOSITIONS, THINGS, random_scenes
from gallery.score import seen, tell
from gallery.words import mentioned, named

ATTRIBUTES = ("subject", "style", "palette", "mood", "place", "things")
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
        lists = (mentioned(text, values) for values in (COMPOSITIONS, THINGS))
        rows.append([*map(str, named(text).values()), *(", ".join(sorted(each)) for each in lists)])
    return np.array(rows)


class Pairs:
    """`count` pairs of paintings, as a model sees them: `first`, `other`, and `double`, another
    painting with the first one's attributes. `truth`, of the first, and `wanted`, of the other:
    (count, attributes). `usable`, bool: where these differ, and both are told rightly."""

    def __init__(self, model, count):
        scenes = random_scenes(2 * count, "surgery")
        scenes += [replace(scene, seed=scene.seed ^ 1) for scene in scenes[:count]]
        vectors, _ = seen(model, painted(scenes))
        self.model, (self.first, self.other, self.double) = model, vectors.split(count)
        truth = said(", ".join((*scene.attributes.values(), scene.composition, *scene.things))
                     for scene in scenes)
        self.truth, self.wanted, _ = np.split(truth, 3)
        right = said(tell(model, vectors, 2, "paintings")) == truth
        self.usable = right[:count] & right[count:2 * count] & (self.truth != self.wanted)

    def told(self, group, donor, some):
        """What the first of some pairs are told to be with a group of the donor's vectors."""
        rows = [transplanted(self.first[i], donor[i], [group]) for i in some]
        return said(tell(self.model, torch.cat(rows), 2, f"vectors {group}"))

    def moved(self, group, some):
        """Whether a group of vectors makes attributes the other's: (pairs, attributes), bool."""
        return self.told(group, self.other, some) == self.wanted[some]


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
    centre, spread = k + z * z / 2, z * (k * (n - k) / max(n, 1) + z * z / 4) ** 0.5
    low, high = (100 * (centre + sign * spread) / (n + z * z) for sign in (-1, 1))
    return f"{100 * k / max(n, 1):.0f} % ({low:.0f} to {high:.0f})"


def tables(model, count):
    """(rows of texts, shares (Q, attributes)): what each vector moves in `count` pairs."""
    pairs, every, columns = Pairs(model, count), np.arange(count), range(len(ATTRIBUTES))
    queries, usable = list(range(model.config.queries)), pairs.usable
    tuned, rest = every[:count // 4], every[count // 4:]
    singles = np.stack([pairs.moved([i], every) for i in queries])      # (Q, pairs, attributes)
    placebo = np.stack([pairs.told([i], pairs.double, every) != pairs.truth for i in queries])

    def means(hits, some):                                    # -> (Q, attributes)
        return (hits & usable)[:, some].sum(axis=1) / usable[some].sum(axis=0).clip(1)

    hits = {f"vector {i}": singles[i] for i in queries}
    hits["all at once"] = pairs.moved(queries, every)
    rows = [[name, *(share_text(each[:, a], usable[:, a]) for a in columns)]
            for name, each in hits.items()]
    groups = [greedy_group(pairs, a, means(singles, tuned)[:, a], tuned) for a in columns]
    rows.append(["a group", *(
        f"{group}: {share_text(pairs.moved(group, rest)[:, a], usable[rest, a])}"
        for a, group in enumerate(groups))])
    worst = means(placebo, every).argmax(axis=0)
    rows.append(["placebo, the largest of all", *(
        share_text(placebo[worst[a]][:, a], usable[:, a]) for a in columns)])
    return [*rows, ["pairs counted", *usable.sum(axis=0)]], means(singles, every)


def heat_map(shares):
    """Shares (Q, attributes) as a PIL image, with the percent in each cell."""
    image, texts = Image.new("RGB", (80 + 80 * len(ATTRIBUTES), 26 + 22 * len(shares)), "white"), {}
    draw = ImageDraw.Draw(image)
    for (row, column), share in np.ndenumerate(shares):
        x, y = 80 + 80 * column, 24 + 22 * row
        draw.rectangle((x, y, x + 78, y + 20), tuple(int(255 - share * c) for c in (215, 151, 87)))
        texts |= {(x + 40, y + 10): f"{100 * share:.0f}", (x + 40, 12): ATTRIBUTES[column],
                  (40, y + 10): f"vector {row}"}
    for place, text in texts.items():
        draw.text(place, text, "black", anchor="mm")
    return image


def main(args):
    rows, shares = tables(load(args), args.pairs)
    print(markdown_table(["B's instead", *ATTRIBUTES], rows))
    if args.map:
        with written_beside(args.map) as path:
            heat_map(shares).save(path, format="PNG")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gallery.surgery",
                                     description=__doc__.partition("\n\n")[2])
    model_flags(parser)
    parser.add_argument("--pairs", type=number(int, 4, 10000), default=200, help="default: 200")
    parser.add_argument("--map", type=Path, metavar="FILE.png", help="draw the table too")
    run_command(main, parser)
