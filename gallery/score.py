"""How well a model sees the gallery, on fresh paintings: `python -m gallery.score`.

1,000 paintings of seen pairs of subject and style, and 1,000 of unseen ones, which nobody had seen
when the recipes were made. It prints what a model's texts have right, with 95 % intervals over
pairs; how much the queries of one picture differ, and whether they look at the subject; and what
is still named when the image vectors are replaced. Plain talk, all that MiniGPT-4 is taught, names
no mood: what it is asked for are the rows without one.
"""
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from artgpt4 import IMAGE_MARK, IMAGE_SLOT, INSTRUCTIONS, chat_prompt, preprocess
from common.command_line import Progress, command_parser, markdown_table, run_command
from common.files import written_beside
from common.models import answers, load, model_flags
from common.paired import paired_difference
from gallery.album import contact_sheet, painted
from gallery.attention import watched
from gallery.painting import render
from gallery.scenes import COMPOSITIONS, SEEN_PAIRS, THINGS, UNSEEN_PAIRS, random_scenes
from gallery.words import mentioned, named

ATTRIBUTES, MEAN = ("subject", "style", "palette", "mood"), "mean of the four"
PAIRS = {"seen pairs": SEEN_PAIRS, "unseen pairs": UNSEEN_PAIRS}
BATCH = 50                                                    # pictures that are worked on at once

# ---- What a model says

def held_out(pairs, count=100):
    """Scenes that no training sees, but that were in sight when the recipes were made."""
    return random_scenes(count, "held out", pairs)


@torch.inference_mode()
def seen(model, pictures):
    """Pictures, uint8 (N, S, S, 3) -> their queries (N, Q, D of the Q-Former), and where these look
    (N, Q, P); see `watched`."""
    parts, size = [], model.config.image_size
    for start in range(0, len(pictures), BATCH):
        pixels = torch.stack([preprocess(Image.fromarray(picture), size)
                              for picture in pictures[start:start + BATCH]])
        patches = model.vit(pixels.to(model.vit.pos_embed.device, model.vit.pos_embed.dtype))
        parts.append(watched(model.qformer, model.ln_vision(patches.to(model.qformer.queries))))
    return [torch.cat(part) for part in zip(*parts, strict=True)]


@torch.inference_mode()
def tell(model, queries, stage, what=None):
    """What a model says of pictures, by their queries (N, Q, D of the Q-Former), at temperature 0:
    N captions of stage 1, or descriptions of stage 2. what: the name of the progress line."""
    prompt, longest = IMAGE_MARK, 40
    if stage == 2:
        question = f"{IMAGE_SLOT} {INSTRUCTIONS[0]}"
        prompt, longest = chat_prompt([question], model.config.prompt), 160
    texts, ids = [], model.prompt_ids(prompt)
    progress = Progress(what, len(queries), "pictures")
    for batch in queries.split(BATCH):
        vectors = model.proj(batch).to(model.llama.embed.weight)
        embeds = model.embed_ids([ids] * len(batch), vectors)
        texts += answers(model, embeds, longest, temperature=0)
        if what:
            progress.show(len(texts))
    return texts if stage == 2 else [text.partition("\n")[0] for text in texts]


def describe(model, pictures, stage):
    """What a model says of pictures, uint8 (N, S, S, 3), at temperature 0: N texts; see `tell`."""
    return tell(model, seen(model, pictures)[0], stage)


# ---- What is right in it

def rightly(scenes, texts):
    """{what: 0 or 1, whether each text has it right, (N,)}: the four attributes, their mean, all
    four at once, and all but the mood, which plain talk does not name; the place of the subject;
    all and only the things shown, NaN where none are; that there are none, NaN where some are. A
    caption of stage 1 need not name the place."""
    pairs = [(scene, text, named(text)) for scene, text in zip(scenes, texts, strict=True)]
    right = {name: np.array([found[name] == scene.attributes[name] for scene, _, found in pairs],
                            dtype=float) for name in ATTRIBUTES}
    right |= {MEAN: sum(right.values()) / 4, "all four": np.prod(list(right.values()), axis=0),
              "the first three": right["subject"] * right["style"] * right["palette"]}
    right["place"] = np.array([mentioned(text, COMPOSITIONS) == {scene.composition}
                               for scene, text, _ in pairs], dtype=float)
    things = np.array([mentioned(text, THINGS) == set(scene.things) for scene, text, _ in pairs])
    some = np.array([len(scene.things) > 0 for scene in scenes])
    return right | {"things, where some are shown": np.where(some, things, np.nan),
                    "no things, where none are": np.where(some, np.nan, things)}


def score(model, stage):
    """{pairs: {what: the share of texts that have it right}} of the held-out paintings."""
    shares = {}
    for name, pairs in PAIRS.items():
        scenes = held_out(pairs)
        queries, _ = seen(model, painted(scenes))
        right = rightly(scenes, tell(model, queries, stage, f"describing {name}"))
        shares[name] = {what: float(np.nanmean(values)) for what, values in right.items()}
    return shares


def over_pairs(scenes, values):
    """The mean of values (N,) over pairs of subject and style, with its interval, as a text."""
    known = ~np.isnan(values)
    names = np.array([f"{scene.subject} {scene.style}" for scene in scenes])[known]
    _, place, sizes = np.unique(names, return_inverse=True, return_counts=True)
    means = [100 * np.bincount(place, values[known]) / sizes]
    mean, low, high, *_ = paired_difference(means, [np.zeros(len(sizes))])
    return f"{mean:.1f} %" if low is None else f"{mean:.1f} % ({low:.1f} to {min(100, high):.1f})"


def chance(scenes):
    """The share of attributes that a perfect description of a random other painting has right."""
    same = [count * (count - 1) for name in ATTRIBUTES
            for count in Counter(scene.attributes[name] for scene in scenes).values()]
    return sum(same) / (4 * len(scenes) * (len(scenes) - 1))


# ---- How the queries see

def mean_cosine(queries):
    """The mean cosine of two different queries of one picture; queries (N, Q, D)."""
    unit, count = F.normalize(queries, dim=-1), queries.shape[1]
    return ((unit @ unit.mT).mean().item() * count - 1) / (count - 1)    # none with itself


def subject_cells(scenes, across, size=112):
    """Which patches show the subject, bool (N, across^2): those it covers by more than 15 %."""
    outlines = [render(scene, size).per_shape(lambda shape, own=scene.subject: shape.name == own)
                for scene in scenes]
    covered = F.adaptive_avg_pool2d(torch.from_numpy(np.stack(outlines)).float(), across)
    return covered.flatten(1) > 0.15


def pointing(attention, cells):
    """How often the strongest patch of query 0 shows the subject, and how often the one patch does
    that shows it most often. attention (N, Q, P), cells (N, P - 1) of subject_cells."""
    strongest = attention[:, 0, 1:].argmax(dim=1, keepdim=True).cpu()    # 0 is the class token
    return cells.gather(1, strongest).float().mean().item(), cells.float().mean(dim=0).max().item()


# ---- The tables

def table(columns, title="named rightly"):
    """{column: {row: a share or a text}} as a Markdown table."""
    def cell(value):
        return value if isinstance(value, str) else f"{100 * value:.1f} %"
    rows = next(iter(columns.values()))
    return markdown_table((title, *columns), ([row, *(cell(column[row]) for column in
                                                      columns.values())] for row in rows))


def sheet(args):
    """Write a sheet of held-out paintings, each with what ArtGPT-4 and MiniGPT-4 say of it."""
    scenes = held_out(SEEN_PAIRS, 4) + held_out(UNSEEN_PAIRS, 4)
    pictures, texts = painted(scenes), [""] * len(scenes)
    for name, adapter in (("ArtGPT-4", args.adapter),
                          ("MiniGPT-4", args.weights / "minigpt4.safetensors")):
        args.adapter = adapter
        said = describe(load(args), pictures, args.stage)
        texts = [f"{text}{name}: {one}\n\n" for text, one in zip(texts, said, strict=True)]
    with written_beside(args.sheet) as path:
        contact_sheet(pictures, 4, captions=texts).save(path, format="JPEG", quality=85)


def main(args):
    if args.sheet:
        sheet(args)
        return
    model, right, replaced, looks = load(args), {}, {}, {}
    for name, pairs in PAIRS.items():
        scenes = [scene for number in range(5)
                  for scene in random_scenes(200, f"exhibition {number}", pairs)]
        queries, attention = seen(model, painted(scenes))
        found = rightly(scenes, tell(model, queries, args.stage, f"describing {name}"))
        right[name] = {what: over_pairs(scenes, values) for what, values in found.items()}

        across = model.config.image_size // model.config.patch_size
        hits, best = pointing(attention, subject_cells(scenes, across))
        looks[name] = {"mean cosine of two": f"{mean_cosine(queries):.3f}",
                       "the strongest patch of the first shows the subject": hits,
                       "the best fixed patch does": best}

        few, replaced[name] = queries[:200], {}
        order = torch.randperm(len(few), generator=torch.Generator().manual_seed(0))
        for what, vectors in (("their mean", few.mean(dim=1, keepdim=True).expand_as(few)),
                              ("those of a random other", few[order.roll(1)[order.argsort()]])):
            found = rightly(scenes[:200], tell(model, vectors, args.stage, f"{name}, {what}"))
            replaced[name][what] = found[MEAN].mean()
        replaced[name]["(a random other's truth)"] = chance(scenes)
    print(table(right), table(looks, "queries"),
          table(replaced, f"{MEAN}, the vectors replaced by"), sep="\n\n")


if __name__ == "__main__":
    parser = command_parser("python -m gallery.score", __doc__)
    model_flags(parser)
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2,
                        help="1: its captions; 2: its descriptions (default: %(default)s)")
    parser.add_argument("--sheet", type=Path, metavar="FILE",
                        help="write a JPEG of eight paintings instead, each with what this "
                             "model and the folder's minigpt4.safetensors say of it")
    run_command(main, parser)
