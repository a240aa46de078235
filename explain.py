"""One HTML page that walks a picture through the model, with the numbers that the model computed.

    python explain.py                            samples/couple.png -> runs/explain.html
    python explain.py picture.jpg --out page.html
    python explain.py --prompt "What is the mood of this painting?"

Each chapter shows what the model computed, and the lines of artgpt4.py that ran. The page needs no
network and runs no script. (docs/explain.html is that of samples/couple.png.)
"""
import os
import shlex
import sys
from html import escape
from pathlib import Path

import torch

from common.command_line import command_parser, printable, run_command
from common.files import is_picture, open_image, written_beside
from common.models import SAMPLES, describe, load, model_flags
from explanation.chapters import chapters, counts
from explanation.figures import STYLE, drawings, framed, page, paragraph, picture_style
from explanation.recording import Tour
from gallery.familiarity import read_measure, unfamiliar

COUPLE, LIGHTHOUSE = SAMPLES / "couple.png", SAMPLES / "lighthouse.png"
QUESTION = "Describe this image in detail."


def introduction(tour, links):
    """The head of the page: question and answer, links to the chapters, the model drawn."""
    args, config, warning = tour.args, tour.model.config, ""
    parameters = counts(config)["together"][0]
    about = f"{args.weights.resolve().name}, {parameters:,} parameters, {describe(tour.model)}"
    if unfamiliar(tour.model, read_measure(args.weights, args.adapter), tour.image_embeds[0]):
        warning = ('<p class="warning">This picture looks like no painting that the model knows; '
                   "its answers may be wrong.</p>")
    return (
        '<p>A picture goes in, words about it come out. This page follows one picture '
        "through the model, from its pixels to the last word of the answer. Every number and every "
        "figure was computed for this picture; the code is the code that ran.</p>"
        f'<div class="drawings">{framed("", "The picture", printable(args.image))}<div>'
        f"<h3>The question</h3>{paragraph(args.prompt)}<h3>The answer</h3>"
        f'{paragraph(tour.text or "(nothing)")}{warning}<p class="faint">{escape(about)}. At each '
        f'step the likeliest word was taken.</p></div></div>{links}<div class="drawings">'
        f'{"".join(drawings(config))}</div>')


@torch.no_grad()
def main(args):
    if is_picture(args.out):
        raise ValueError(f"--out {args.out}: the page is no picture; name it FILE.html")
    image = open_image(args.image)
    other = open_image(LIGHTHOUSE if COUPLE.samefile(args.image) else COUPLE)
    tour = Tour(args, load(args), (image, other))
    links, parts = chapters(tour)
    command = escape(printable(shlex.join(["python", *sys.argv])))
    footer = f"<footer><p>Made by <code>{command}</code>.</p></footer>"
    html = page("ArtGPT-4, explained on one picture", introduction(tour, links) + parts + footer,
                STYLE + picture_style(image))
    with written_beside(args.out) as path:
        path.write_text(html, encoding="utf-8")
    print(printable(args.out))


def command_line():
    parser = command_parser("explain.py", __doc__)
    parser.add_argument("image", nargs="?", type=Path, default=Path(os.path.relpath(COUPLE)),
                        help="a picture; default: samples/couple.png")
    parser.add_argument("--out", type=Path, default=Path("runs/explain.html"), metavar="FILE",
                        help="the page to write; default: %(default)s")
    parser.add_argument("--prompt", default=QUESTION, metavar="TEXT",
                        help=f'what the model is asked; default: "{QUESTION}"')
    parser.add_argument("--surgery", action="store_true",
                        help="the chapter on what each image vector says, which takes minutes with "
                             "a large model; a small one always has it")
    model_flags(parser)
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
