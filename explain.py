"""One HTML page that walks a picture through the model, with the numbers that the model computed.

    python explain.py                            one of samples/ -> runs/explain.html
    python explain.py picture.jpg --out page.html
    python explain.py --prompt "What is the mood of this painting?"
    python explain.py --caption "a woodcut of a castle"      the caption of the chapter on the loss

Each of ten chapters shows the lines of artgpt4.py that run, as they stand there when the page is
made, beside the tensors that they gave. The page needs no network and runs no script. The one in
docs/ is made by

    python explain.py samples/couple.png --out docs/explain.html
"""
from common.start import start_command

if __name__ == "__main__":
    start_command()                                           # before the slow imports

import argparse
import os
import random
import shlex
import sys
import warnings
from html import escape
from pathlib import Path

import torch

from common.command_line import number, run_command
from common.files import open_image, written_beside
from common.loading import device, load_model, precision
from common.page import page, paragraph
from explanation import learning, seeing, speaking
from explanation.figures import STYLE, gridded, picture_style
from explanation.tour import take
from gallery.__main__ import SAMPLES
from gallery.words import caption

HERE = Path(__file__).resolve().parent
TINY = HERE / "weights" / "tiny"
QUESTION = "Describe this image in detail."
CHAPTERS = (seeing.patches, seeing.vit, seeing.qformer, seeing.projection,
            speaking.prompt, speaking.adapter, speaking.next_word, speaking.looking,
            learning.loss, learning.bill)
LINKS = (("patches", "1 Patches"), ("vit", "2 ViT"), ("qformer", "3 Q-Former"),
         ("projection", "4 Projection"), ("prompt", "5 Prompt"), ("adapter", "6 Adapter"),
         ("next", "7 Next word"), ("looking", "8 Looking"), ("loss", "9 Loss"),
         ("costs", "10 Costs"))
TERMS = (
    ("vector", "a list of numbers. All that the model knows of a patch or a word at some point is "
     "in one vector. Two vectors that point in the same direction mean much the same."),
    ("token", "a word or a part of a word, as the language model reads and writes it."),
    ("parameter", "a number that training has found. They are the model's memory."),
    ("matrix", "a table of parameters that turns one vector into another."),
    ("block, layer", "one step of many equal ones; each has parameters of its own."),
    ("attention", "the step in which a vector looks at others and takes from each a share. The "
     "shares add up to 100 %."),
    ("head", "one of several attentions that run side by side."),
    ("norm", "a step that brings vectors to a common length. Of a gradient: its length."),
)


def sample_caption(file):
    """What the gallery says of a picture in samples/, as in stage 1; None for any other file."""
    for scene in SAMPLES:
        name = f"{scene.subject.replace(' ', '-')}.png"
        if file.resolve() == HERE / "samples" / name:
            return caption(scene, random.Random(0))
    return None


def introduction(tour, about):
    """The head of the page: the picture, the question, the answer, links to the chapters."""
    links = "".join(f'<a href="#{name}">{text}</a>' for name, text in LINKS)
    terms = "".join(f"<li><b>{escape(term)}</b>: {escape(text)}</li>" for term, text in TERMS)
    picture = gridded(tour.grid, "The picture that this page is about", tour.file)
    return (
        '<p class="lead">A picture goes in, words about it come out. This page follows one picture '
        "through the model, from its pixels to the last word of the answer. Every number and every "
        "figure was computed for this picture; the code beside it is the code that ran.</p>"
        f'<div class="start">{picture}<div><h3>The question</h3>{paragraph(tour.question)}'
        f"<h3>The answer</h3>{paragraph(tour.answer.text or '(nothing)')}"
        f'<p class="faint">{escape(about)}. At each step the likeliest word was taken.</p></div>'
        f"</div><nav>{links}</nav>"
        f"<details><summary>Eight words that the chapters use</summary><ul>{terms}</ul></details>")


def main(args):
    warnings.filterwarnings("ignore", module="PIL")
    file = args.image or sample()
    image = open_image(file)
    check_place(args.out)                                     # before the work, which may be long
    text = explained(args, file, image)
    with written_beside(args.out) as path:
        path.write_text(text, encoding="utf-8")
    print(args.out)


def check_place(file):
    """Raises an error that names the file if nothing can be written there. Makes its folder."""
    if file.is_dir():
        raise ValueError(f"{file}: this is a folder; name a file with --out FILE")
    file.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(file.parent, os.W_OK):
        raise ValueError(f"{file}: its folder cannot be written to; name another with --out FILE")


def explained(args, file, image):
    """The page, HTML, of a picture (PIL) from `file`."""
    model = load_model(args, train=True)                      # it shows gradients
    parameters = sum(p.numel() for p in model.parameters())
    about = f"{args.weights.resolve().name}, {parameters:,} parameters, {precision(model)}"
    weights = "" if args.weights.resolve() == TINY else str(args.weights)
    tour = take(model, image, args.prompt, args.caption or sample_caption(Path(file)), args.patch,
                args.max_new_tokens, args.weights, (str(file), weights))
    command = tour.command(flags=own_flags(args))
    body = (introduction(tour, about) + "".join(chapter(tour) for chapter in CHAPTERS)
            + f"<footer><p>This page was made by <code>{escape(command)}</code>.</p></footer>")
    return page("ArtGPT-4, explained on one picture", body, STYLE + picture_style(image))


def own_flags(args):
    """The flags about the page that were given, as they stand in a command."""
    flags = ["--out", str(args.out)]
    if args.prompt != QUESTION:
        flags += ["--prompt", args.prompt]
    if args.caption:
        flags += ["--caption", args.caption]
    if args.adapter:
        flags += ["--adapter", str(args.adapter)]
    return shlex.join(flags)


def sample():
    """The first picture in samples/, by a path that is short where it can be."""
    files = sorted((HERE / "samples").glob("*.png"))
    if not files:
        raise ValueError(f"no picture given, and none in {HERE / 'samples'}; "
                         "name one: python explain.py picture.jpg")
    print(f"no picture given: this is about {files[0]}", file=sys.stderr)
    inside = files[0].is_relative_to(Path.cwd())
    return files[0].relative_to(Path.cwd()) if inside else files[0]


def patch(text):
    """An argparse type: "ROW,COLUMN", both from 0."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not ROW,COLUMN, such as 3,4")
    return tuple(map(int, parts))


def words(text):
    """An argparse type: text that is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the text is empty")
    return text.strip()


def command_line():
    parser = argparse.ArgumentParser(
        prog="explain.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "image", nargs="?",
        help="a picture in any format that Pillow reads; default: one of samples/")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/explain.html"), metavar="FILE",
        help="the page to write; default: %(default)s")
    parser.add_argument(
        "--prompt", type=words, default=QUESTION, metavar="TEXT",
        help=f'what the model is asked; default: "{QUESTION}"')
    parser.add_argument(
        "--caption", type=words, metavar="TEXT",
        help="the caption whose loss is shown; default: of samples/ what the gallery says, else "
             "the first sentence of the answer")
    parser.add_argument(
        "--patch", type=patch, metavar="ROW,COLUMN",
        help="the patch with which the others are compared; default: in the middle")
    parser.add_argument(
        "--max-new-tokens", type=number(int, 1, 1000), default=120, metavar="N",
        help="tokens of the answer at most; default: %(default)s")
    parser.add_argument(
        "--weights", type=Path, default=TINY, metavar="FOLDER", help="default: weights/tiny")
    parser.add_argument(
        "--adapter", type=Path, metavar="FILE",
        help="another adapter.safetensors, as train.py writes it")
    parser.add_argument("--device", type=device,
                        default="cuda" if torch.cuda.is_available() else "cpu",
                        help="cuda, cuda:1, cpu, ...; default: cuda if there is one")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"),
        help="default: on a CPU float32 if half of its memory holds that, else as stored")
    parser.add_argument(
        "--int8", action="store_true",
        help="the language model's matrices as int8, a byte a weight")
    parser.add_argument("--vision-int8", action="store_true", help="the ViT's matrices as int8")
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
