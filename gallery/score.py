"""How well a model sees the gallery, on held-out paintings: `python -m gallery.score`.

It prints how many attributes the model's texts name rightly; what of that is left when the image
vectors are replaced; how much the queries of one picture differ; and whether the Q-Former looks at
the subject.
"""
import argparse

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from artgpt4 import IMAGE_MARK, IMAGE_SLOT, INSTRUCTIONS, chat_prompt, preprocess
from common.command_line import Progress, run_command
from common.models import answers, load, model_flags
from gallery import words
from gallery.album import painted
from gallery.attention import recorded_attention
from gallery.painting import render
from gallery.scenes import COMPOSITIONS, SEEN_PAIRS, THINGS, UNSEEN_PAIRS, random_scenes

ATTRIBUTES = ("subject", "style", "palette", "mood")
EXTRAS = ("composition", "things")
PAIRS = {"seen pairs": SEEN_PAIRS, "unseen pairs": UNSEEN_PAIRS}
BATCH = 50                                                    # pictures that are worked on at once

# ---- What a model says


def held_out(pairs, count=200):
    """Scenes that no training sees: new pictures, and with UNSEEN_PAIRS new pairs too."""
    return random_scenes(count, "held out", pairs)


def pixels_of(model, pictures):
    """uint8 (N, S, S, 3) -> what the model is given of them, batches of (B, 3, S, S)."""
    for start in range(0, len(pictures), BATCH):
        yield torch.stack([preprocess(Image.fromarray(picture), model.config.image_size)
                           for picture in pictures[start:start + BATCH]])


@torch.inference_mode()
def describe_vectors(model, image_embeds, stage, what=None):
    """What the model says at temperature 0 to image vectors (N, Q, D); see `describe`."""
    if stage == 1:
        prompt, max_new_tokens = IMAGE_MARK, 40
    else:
        prompt, max_new_tokens = chat_prompt([f"{IMAGE_SLOT} {INSTRUCTIONS[0]}"]), 160
    progress = Progress(what, len(image_embeds), "pictures") if what else None
    texts = []
    for batch in image_embeds.split(BATCH):
        embeds = torch.cat([model.embed_prompt(prompt, image[None]) for image in batch])
        texts += answers(model, embeds, max_new_tokens=max_new_tokens, temperature=0)
        if progress:
            progress.show(len(texts))
    if stage == 1:                                            # a caption is the first line
        return [text.partition("\n")[0] for text in texts]
    return texts


@torch.inference_mode()
def describe(model, pictures, stage, what=None):
    """What the model says of each picture at temperature 0.

    Args:
        pictures: uint8 (N, S, S, 3).
        stage: 1 for a caption, 2 for a description.
        what: the name of the progress line; None shows none.

    Returns:
        N strings.
    """
    image_embeds = torch.cat([model.encode_image(pixels) for pixels in pixels_of(model, pictures)])
    return describe_vectors(model, image_embeds, stage, what)


# ---- What is right in it


def named_rightly(scenes, texts):
    """{attribute: the share of texts that name it rightly}, and the mean of those as "all"."""
    shares = {}
    for attribute in ATTRIBUTES:
        right = [words.named(text)[attribute] == scene.attributes[attribute]
                 for scene, text in zip(scenes, texts, strict=True)]
        shares[attribute] = sum(right) / len(right)
    return shares | {"all": sum(shares.values()) / len(shares)}


def extras_rightly(scenes, texts):
    """The shares of texts that name the right place of the subject, and exactly the things shown.

    A caption of stage 1 need not name the place.
    """
    pairs = list(zip(scenes, texts, strict=True))
    places = [words.mentioned(text, COMPOSITIONS) == {scene.composition} for scene, text in pairs]
    things = [words.mentioned(text, THINGS) == set(scene.things) for scene, text in pairs]
    return {"composition": sum(places) / len(pairs), "things": sum(things) / len(pairs)}


def score(model, stage):
    """{"seen pairs": shares, "unseen pairs": shares} on 200 held-out paintings each.

    The shares are those of named_rightly and extras_rightly.
    """
    shares = {}
    for name, pairs in PAIRS.items():
        scenes = held_out(pairs)
        what = f"describing held-out paintings, {name}"
        texts = describe(model, painted(scenes), stage, what)
        shares[name] = named_rightly(scenes, texts) | extras_rightly(scenes, texts)
    return shares


# ---- How the queries see


def mean_cosine(queries):
    """The mean cosine of two different queries of one picture; queries (N, Q, D)."""
    unit = F.normalize(queries, dim=-1)
    count = queries.shape[1]
    total = (unit @ unit.mT).sum(dim=(1, 2)) - count          # without each with itself
    return (total / (count * (count - 1))).mean().item()


def subject_cells(scenes, patches_across, size=112):
    """Which patches show the subject, bool (N, P - 1): those it covers by more than 15 %."""
    outlines = [render(scene, size).per_shape(lambda shape: shape.subject) for scene in scenes]
    outlines = torch.from_numpy(np.stack(outlines)).float()
    return F.adaptive_avg_pool2d(outlines, patches_across).flatten(1) > 0.15


def pointing(attention, cells):
    """How often the strongest patch of query 0 shows the subject, and how often a random one does.

    attention (N, Q, P): of the last cross-attention layer, mean over heads; cells of subject_cells.
    """
    strongest = attention[:, 0, 1:].argmax(dim=1, keepdim=True).cpu()    # 0 is the class token
    return cells.gather(1, strongest).float().mean().item(), cells.float().mean().item()


@torch.inference_mode()
def seen_by(model, pictures):
    """The queries (N, Q, D) and the attention (N, Q, P) of pictures, uint8 (N, S, S, 3)."""
    queries, attention = [], []
    for pixels in pixels_of(model, pictures):
        pixels = pixels.to(model.vit.pos_embed.device)
        patches = model.ln_vision(model.vit(pixels))
        with recorded_attention() as weights:
            queries.append(model.qformer(patches))
        to_patches = [row for row in weights if row.shape[-1] == patches.shape[1]]
        attention.append(to_patches[-1].mean(dim=1))
    return torch.cat(queries), torch.cat(attention)


def replaced(image_embeds):
    """Image vectors (N, Q, D) replaced: by their mean over the queries; by the next picture's."""
    mean = image_embeds.mean(dim=1, keepdim=True).expand_as(image_embeds)
    return {"their mean": mean, "another painting's": image_embeds.roll(-1, dims=0)}


def shared(scenes):
    """Of named_rightly, what perfect descriptions of the next scene would reach: chance."""
    others = scenes[1:] + scenes[:1]
    return named_rightly(scenes, [", ".join(other.attributes.values()) for other in others])


def whole_score(model, stage):
    """(the shares of `score`, shares with replaced vectors, what the queries do), each by row."""
    shares, without, looks = {}, {}, {}
    for name, pairs in PAIRS.items():
        scenes = held_out(pairs)
        queries, attention = seen_by(model, painted(scenes))
        with torch.inference_mode():
            image_embeds = model.proj(queries)
        texts = describe_vectors(model, image_embeds, stage, f"describing {name}")
        shares[name] = named_rightly(scenes, texts) | extras_rightly(scenes, texts)
        for which, vectors in replaced(image_embeds).items():
            texts = describe_vectors(model, vectors, stage, f"{name}, {which}")
            without[f"{name}, {which}"] = named_rightly(scenes, texts)
        without[f"{name}, chance"] = shared(scenes)
        cells = subject_cells(scenes, model.config.image_size // model.config.patch_size)
        looks[name] = (mean_cosine(queries), *pointing(attention, cells))
    return shares, without, looks


# ---- The tables


def table(shares, title="named rightly"):
    """Shares by row and column, such as `score` returns, as a Markdown table."""
    columns = list(next(iter(shares.values())))
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in shares.items():
        cells = [f"{100 * row[column]:.1f} %" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def looks_table(looks):
    """What the queries do, as a Markdown table."""
    lines = ["| queries | mean cosine | look at the subject | by chance |", "|---|---|---|---|"]
    for name, (cosine, hits, chance) in looks.items():
        lines.append(f"| {name} | {cosine:.3f} | {100 * hits:.1f} % | {100 * chance:.1f} % |")
    return "\n".join(lines)


def main(args):
    model = load(args)
    shares, without, looks = whole_score(model, args.stage)
    print(table(shares))
    print()
    print(table(without, "named rightly, with the image vectors replaced by"))
    print()
    print(looks_table(looks))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gallery.score",
                                     description=__doc__.partition("\n")[0])
    model_flags(parser)
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2,
                        help="1: its captions; 2: its descriptions (default: %(default)s)")
    run_command(main, parser)
