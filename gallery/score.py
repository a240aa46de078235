"""How many attributes of held-out paintings a model names rightly: `python -m gallery.score`."""
from common.command_line import run_command, start_command

if __name__ == "__main__":
    start_command()                                           # first: Ctrl-C during the imports

import argparse
from pathlib import Path

import torch
from PIL import Image

from artgpt4 import IMAGE_MARK, IMAGE_SLOT, INSTRUCTIONS, chat_prompt, preprocess
from common.answering import answers
from common.loading import load_adapter, load_folder
from common.progress import Progress
from gallery import words
from gallery.album import painted
from gallery.scenes import SEEN_PAIRS, UNSEEN_PAIRS, random_scenes

ATTRIBUTES = ("subject", "style", "palette", "mood")


def held_out(pairs, count=200):
    """Scenes that no training sees: new pictures, and with UNSEEN_PAIRS new pairs too."""
    return random_scenes(count, "held out", pairs)


def describe(model, pictures, stage, what=None):
    """What the model says of each picture at temperature 0.

    Args:
        pictures: uint8 (N, S, S, 3).
        stage: 1 for a caption, 2 for a description.
        what: the name of the progress line; None shows none.

    Returns:
        N strings.
    """
    if stage == 1:
        prompt, max_new_tokens = IMAGE_MARK, 40
    else:
        prompt, max_new_tokens = chat_prompt([f"{IMAGE_SLOT} {INSTRUCTIONS[0]}"]), 160
    progress = Progress(what, len(pictures), "pictures") if what else None
    texts = []
    for start in range(0, len(pictures), 50):
        pixels = [preprocess(Image.fromarray(picture), model.config.image_size)
                  for picture in pictures[start:start + 50]]
        with torch.inference_mode():
            image_embeds = model.encode_image(torch.stack(pixels))
            embeds = torch.cat([model.embed_prompt(prompt, image[None]) for image in image_embeds])
        texts += answers(model, embeds, max_new_tokens=max_new_tokens, temperature=0)
        if progress:
            progress.show(len(texts))
    if stage == 1:                                            # a caption is the first line
        return [text.partition("\n")[0] for text in texts]
    return texts


def named_rightly(scenes, texts):
    """{attribute: the share of texts that name it rightly}, and the mean of those as "all"."""
    shares = {}
    for attribute in ATTRIBUTES:
        right = [words.named(text)[attribute] == scene.attributes[attribute]
                 for scene, text in zip(scenes, texts, strict=True)]
        shares[attribute] = sum(right) / len(right)
    return shares | {"all": sum(shares.values()) / len(shares)}


def score(model, stage):
    """{"seen pairs": shares, "unseen pairs": shares} on 200 held-out paintings each.

    The shares are those of named_rightly.
    """
    shares = {}
    for name, pairs in (("seen pairs", SEEN_PAIRS), ("unseen pairs", UNSEEN_PAIRS)):
        scenes = held_out(pairs)
        what = f"describing held-out paintings, {name}"
        shares[name] = named_rightly(scenes, describe(model, painted(scenes), stage, what))
    return shares


def table(shares):
    """The shares that `score` returns as a Markdown table."""
    columns = [*ATTRIBUTES, "all"]
    lines = [f"| named rightly | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in shares.items():
        cells = [f"{100 * row[column]:.1f} %" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(args):
    model = load_folder(args.weights, dtype=torch.float32)
    if args.adapter:
        load_adapter(model, args.adapter)
    print(table(score(model, args.stage)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gallery.score", description=__doc__)
    folder = Path(__file__).parent.parent / "weights" / "tiny"
    parser.add_argument("--weights", default=folder, help="weights folder (default: weights/tiny)")
    parser.add_argument("--adapter", help="an adapter.safetensors in place of the folder's own")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2,
                        help="1: its captions; 2: its descriptions (default: %(default)s)")
    run_command(main, parser)
