"""A conversation about a picture, in a terminal or through pipes.

    python chat.py picture.jpg                          several rounds in a terminal
    python chat.py picture.jpg --prompt "What is it?"   one answer, and nothing else on stdout
    python chat.py picture.jpg < questions.txt          one question a line, one conversation
    python chat.py --resume talk.json                   continue what /save talk.json wrote

In a terminal, Ctrl-C stops an answer, Ctrl-D or /quit ends the session. A line that begins with "/"
is a command; /help lists them.
"""
import argparse
import sys
import warnings
from pathlib import Path

import torch

from common.command_line import run_command
from common.files import open_image
from common.loading import device, load_model, precision
from conversation.rounds import SETTINGS, Conversation, plain
from conversation.saving import read_json
from conversation.session import Session
from conversation.terminal import Terminal

HERE = Path(__file__).resolve().parent


def sample_image():
    """The first picture in samples/. Raises ValueError if there is none."""
    files = sorted((HERE / "samples").glob("*.png"))
    if not files:
        raise ValueError(f"no picture given, and none in {HERE / 'samples'}; "
                         "name one: python chat.py picture.jpg")
    print(f"no picture given: this is about {files[0]}", file=sys.stderr)
    return files[0]


def main(args):
    warnings.filterwarnings("ignore", module="PIL")
    sys.stdout.reconfigure(errors="replace")
    if sys.stdin is None and not args.prompt:
        raise ValueError("standard input is closed; ask with --prompt TEXT")

    # What is wrong with the files is said before the model is loaded, which may take minutes
    rounds, waiting, settings = read_json(args.resume) if args.resume else ([], [], {})
    files = [file for round in rounds for file in round.images] + waiting
    if args.image or not args.resume:
        file = args.image or sample_image()
        files.append(file)
        waiting.append(str(Path(file).resolve()))
    images = [open_image(file) for file in files]
    for name in SETTINGS:
        value = getattr(args, name)
        if value is not None:
            settings[name] = value

    model = load_model(args)
    conversation = Conversation(model, **settings)
    session = Session(conversation, Terminal(args.plain))
    if not args.prompt:
        for file, image in zip(files, images, strict=True):
            session.show(image, file)
        session.terminal.note(f"model {model_text(model, args)}; /help")
    for image in images:
        conversation.add_image(image)
    conversation.rounds, conversation.waiting = rounds, waiting

    if args.prompt:
        session.say(args.prompt)
        return
    if args.resume:
        session.written.add(Path(args.resume).resolve())
        for _, question, answer in rounds:
            session.terminal.note(f"> {question}\n{answer}")
    succeeded = session.run()
    if not succeeded and not session.terminal.typed:
        sys.exit(1)


def model_text(model, args):
    """Which weights answer, in which precision."""
    adapter = f" with {args.adapter}" if args.adapter else ""
    return f"{args.weights.resolve().name}{adapter} in {precision(model)}"


def question_text(text):
    """An argparse type: a question that is not empty."""
    if not plain(text):
        raise argparse.ArgumentTypeError("the question is empty")
    return text


def command_line():
    parser = argparse.ArgumentParser(
        prog="chat.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "image", nargs="?",
        help="a picture in any format that Pillow reads; default: one of samples/")
    parser.add_argument(
        "--prompt", type=question_text, metavar="TEXT",
        help="ask this, print the answer alone and end")
    parser.add_argument(
        "--resume", metavar="FILE", help="continue a conversation that /save wrote as JSON")
    parser.add_argument(
        "--plain", action="store_true",
        help="on a terminal: no picture, no colours, no added line breaks")
    parser.add_argument(
        "--weights", type=Path, default=HERE / "weights" / "tiny", metavar="FOLDER",
        help="default: weights/tiny")
    parser.add_argument(
        "--adapter", type=Path, metavar="FILE",
        help="another adapter.safetensors, as train.py writes it")
    for name, (parse, default, what) in SETTINGS.items():
        if default is not None:
            what += f"; default: {default}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=parse, help=what,
                            metavar="X" if isinstance(default, float) else "N")
    parser.add_argument("--device", type=device,
                        default="cuda" if torch.cuda.is_available() else "cpu")
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
