"""One HTML page that walks a picture through the model, with the numbers that the model computed.

    python explain.py                            one of samples/ -> runs/explain.html
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

from common.command_line import command_parser, printable, run_command
from common.files import open_image, written_beside
from common.models import SAMPLES, describe, load, model_flags
from explanation.chapters import chapters, counts
from explanation.figures import STYLE, drawings, page, paragraph, picture_style
from explanation.recording import Tour
from gallery.familiarity import read_measure, unfamiliar

DEFAULT_OUT = Path("runs/explain.html")
QUESTION = "Describe this image in detail."


def introduction(tour, args, links):
    """The head of the page: question and answer, links to the chapters, the model drawn."""
    parameters = counts(tour.model.config)["together"][0]
    about = f"{args.weights.resolve().name}, {parameters:,} parameters, {describe(tour.model)}"
    warning, measure = "", read_measure(args.weights, args.adapter)
    if unfamiliar(tour.model, measure, tour.image_embeds[0]):
        warning = ('<p class="warning">This picture looks like no painting that the model knows; '
                   "its answers may be wrong.</p>")
    drawn = "".join(drawings(tour.model.config))
    return (
        '<p>A picture goes in, words about it come out. This page follows one picture '
        "through the model, from its pixels to the last word of the answer. Every number and every "
        "figure was computed for this picture; the code is the code that ran.</p>"
        '<div class="drawings"><figure><div class="picture" role="img" aria-label="The '
        f'picture"></div><figcaption>{escape(printable(args.image))}</figcaption></figure><div>'
        f"<h3>The question</h3>{paragraph(tour.question)}<h3>The answer</h3>"
        f'{paragraph(tour.text or "(nothing)")}{warning}<p class="faint">{escape(about)}. At each '
        f'step the likeliest word was taken.</p></div></div>{links}<div class="drawings">{drawn}'
        "</div>")


def other_sample(file):
    """A picture in samples/ that is not `file`. Raises ValueError if there is none."""
    for other in sorted(SAMPLES.glob("*.png")):
        if file is None or not other.samefile(file):
            return Path(os.path.relpath(other))
    raise ValueError(f"{SAMPLES}: no picture to take, or to compare with")


def main(args):
    if args.image is None:
        args.image = other_sample(None)
        print(f"no picture given: this is about {args.image}", file=sys.stderr)
    if args.out != DEFAULT_OUT and not args.out.parent.is_dir():
        raise ValueError(f"--out {args.out}: its folder does not exist; make it first")
    with written_beside(args.out) as path:                    # refused before the work
        path.write_text(explained(args), encoding="utf-8")
    print(printable(args.out))


def explained(args):
    """The page, HTML."""
    images = open_image(args.image), open_image(other_sample(args.image))
    tour = Tour(args, load(args), images)
    links, parts = chapters(tour)
    command = escape(printable(shlex.join(["python", *sys.argv])))
    footer = f"<footer><p>Made by <code>{command}</code>.</p></footer>"
    return page("ArtGPT-4, explained on one picture",
                f"{introduction(tour, args, links)}{parts}{footer}",
                STYLE + picture_style(images[0]))


def command_line():
    parser = command_parser("explain.py", __doc__)
    parser.add_argument("image", nargs="?", type=Path, help="a picture; default: one of samples/")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="FILE",
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
