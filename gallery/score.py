"""How many attributes of held-out paintings a model names rightly: `python -m gallery.score`."""
import argparse
from pathlib import Path

import torch
from PIL import Image

from artgpt4 import IMAGE_MARK, IMAGE_SLOT, INSTRUCTIONS, ArtGPT4, chat_prompt, preprocess
from common.command_line import run_command
from common.progress import Progress
from gallery.album import painted
from gallery import words
from gallery.scenes import SEEN_PAIRS, UNSEEN_PAIRS, random_scenes

ATTRIBUTES = ("subject", "style", "palette", "mood")


def held_out(pairs, count=200):
    """Scenes that no training sees: of SEEN_PAIRS other pictures, of UNSEEN_PAIRS other pairs too."""
    return random_scenes(count, "held out", pairs)


def describe(model, pictures, stage, what=None):
    """What the model says of each picture, without sampling: a caption after stage 1, a description after stage 2."""
    prompt = IMAGE_MARK if stage == 1 else chat_prompt([f"{IMAGE_SLOT} {INSTRUCTIONS[0]}"])
    progress = Progress(what, len(pictures), "pictures") if what else None
    texts = []
    for start in range(0, len(pictures), 50):
        pixels = [preprocess(Image.fromarray(p), model.config.image_size) for p in pictures[start:start + 50]]
        with torch.inference_mode():
            image_embeds = model.encode_image(torch.stack(pixels))
            embeds = torch.cat([model.embed_prompt(prompt, image[None]) for image in image_embeds])
        texts += model.answers(embeds, max_new_tokens=40 if stage == 1 else 160, temperature=0)
        if progress:
            progress.show(len(texts))
    return [text.partition("\n")[0] if stage == 1 else text for text in texts]


def named_rightly(scenes, texts):
    """The share of texts that name each attribute of their scene rightly, and its mean as "all"."""
    shares = {}
    for attribute in ATTRIBUTES:
        right = [words.named(text)[attribute] == scene.attributes[attribute]
                 for scene, text in zip(scenes, texts, strict=True)]
        shares[attribute] = sum(right) / len(right)
    return shares | {"all": sum(shares.values()) / len(shares)}


def score(model, stage):
    """{"seen pairs": shares, "unseen pairs": shares} on 200 held-out paintings each; shares as of named_rightly."""
    shares = {}
    for name, pairs in (("seen pairs", SEEN_PAIRS), ("unseen pairs", UNSEEN_PAIRS)):
        scenes = held_out(pairs)
        texts = describe(model, painted(scenes), stage, f"describing held-out paintings, {name}")
        shares[name] = named_rightly(scenes, texts)
    return shares


def table(shares):
    """Rows of shares as a Markdown table."""
    head = [*ATTRIBUTES, "all"]
    lines = ["| named rightly | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{100 * row[h]:.1f} %" for h in head) + " |" for name, row in shares.items()]
    return "\n".join(lines)


def main(args):
    model = ArtGPT4.from_pretrained(args.weights, dtype=torch.float32)
    if args.adapter:
        model.load_adapter(args.adapter)
    print(table(score(model, args.stage)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gallery.score", description=__doc__)
    folder = Path(__file__).parent.parent / "weights" / "tiny"
    parser.add_argument("--weights", default=folder, help="weights folder (default: weights/tiny)")
    parser.add_argument("--adapter", help="an adapter.safetensors in place of the folder's own")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2, help="1: its captions; 2: its descriptions")
    run_command(main, parser)
