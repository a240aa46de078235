"""A conversation about pictures, in a terminal or through pipes.

    python chat.py picture.jpg                          several rounds in a terminal
    python chat.py picture.jpg "What is it?"            one answer, and nothing else on stdout
    python chat.py a.jpg b.jpg "Which is older?"        one answer about both
    python chat.py holiday/ --prompt "What is it?"      an answer for each picture of a folder
    python chat.py picture.jpg < questions.txt          one question a line, one conversation
    python chat.py --resume talk.json                   continue what /save talk.json wrote
    python chat.py --surprise                           describe a painting nobody has seen

In a terminal, Ctrl-C stops an answer, Ctrl-D or /quit ends the session. A line that begins with "/"
is a command; /help lists them.
"""
from common.start import start_command

if __name__ == "__main__":
    start_command()                                           # before the slow imports

import argparse
import random
import sys
import time
import warnings
from pathlib import Path

import torch

from common.command_line import number, run_command
from common.files import weight_files
from common.loading import device, load_model, precision
from conversation.flags import check, question_text
from conversation.labelling import json_text, label
from conversation.line_editing import history_file
from conversation.pictures import named_files, open_given, split_question
from conversation.rounds import Conversation
from conversation.saving import Saved, read_json, replaced_images
from conversation.session import Session
from conversation.settings import SETTINGS
from conversation.surprise import surprise
from conversation.terminal import Terminal
from gallery.familiarity import unfamiliar

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
    texts = args.picture
    if not args.prompt:
        texts, args.prompt = split_question(texts)
    files, collection = named_files(texts)
    check(args, files, collection)

    # What is wrong with the files is said before the model is loaded, which may take minutes
    saved = Saved([], [], {}, "")
    if args.resume:
        saved = replaced_images(read_json(args.resume), args.replace)
    if not (files or args.resume or args.surprise):
        files = [sample_image()]
    alone = collection or args.each
    earlier = [file for round in saved.rounds for file in round.images] + saved.waiting
    images = {} if alone else {file: open_given(file, args.resume) for file in [*earlier, *files]}
    flags = {name: getattr(args, name) for name in SETTINGS}
    settings = saved.settings | {name: value for name, value in flags.items() if value is not None}

    size = sum(file.stat().st_size for file in weight_files(args.weights) if file.is_file()) / 1e9
    if size > 2:                                              # less takes a few seconds
        print(f"loading {args.weights}, {size:.1f} GB", file=sys.stderr)
    model = load_model(args)
    name = args.weights.resolve().name + (f" with {args.adapter}" if args.adapter else "")
    conversation = Conversation(model, **settings)
    terminal = Terminal(args.plain, args.history, someone_types=not args.prompt)
    session = Session(conversation, terminal, name)
    if alone:
        succeeded = label(conversation, files, args.prompt, args.batch_size, args.json and name)
    elif args.surprise:
        surprise(session, random.randrange(10 ** 6) if args.seed is None else args.seed)
        succeeded = True
    else:
        start = time.perf_counter()
        for file in [*earlier, *files]:
            session.show(images[file], file)
            session.add_image(images[file], file)
        conversation.rounds = saved.rounds
        conversation.waiting = saved.waiting + [str(Path(file).resolve()) for file in files]
        if saved.model not in ("", name):
            print(f"{args.resume}: the answers so far are by {saved.model}, those to come by "
                  f"{name}", file=sys.stderr)
        if args.json:
            answer = "".join(conversation.answer(args.prompt))
            seconds = time.perf_counter() - start
            marked = [(file, unfamiliar(model, vectors)) for file, vectors in
                      zip([*earlier, *files], conversation.image_embeds, strict=True)]
            print(json_text(conversation, name, marked, args.prompt, answer,
                            conversation.new_tokens, seconds))
            succeeded = True
        elif args.prompt:
            session.say(args.prompt)
            succeeded = True
        else:
            succeeded = talk(session, f"{name} in {precision(model)}", args.resume)
    if not succeeded:
        sys.exit(1)


def talk(session, model, resumed):
    """Greet, repeat what was said in a resumed file, and answer line by line. model: its name and
    precision. Returns False if lines of a pipe failed."""
    session.greet(model)
    if resumed:
        session.written.add(Path(resumed).resolve())
    for _, question, answer in session.conversation.rounds:
        session.terminal.note(f"> {question}\n{answer}")
    return session.run() or session.terminal.typed


def command_line():
    parser = argparse.ArgumentParser(
        prog="chat.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(error=parser.error)
    parser.add_argument(
        "picture", nargs="*",
        help="a file, a folder, a pattern such as 'a*.png', or - for standard input; a last "
             "argument that is no file and has a space in it is the question; default: one of "
             "samples/")
    parser.add_argument(
        "--prompt", type=question_text, metavar="TEXT",
        help="ask this, print the answer alone and end; about each picture of a folder or pattern")
    parser.add_argument(
        "--each", action="store_true", help="one answer for each picture, not one about all")
    parser.add_argument(
        "--batch-size", type=number(int, 1, 1024), default=8, metavar="N",
        help="with --each, a folder or a pattern: pictures at once; default: %(default)s")
    parser.add_argument(
        "--json", action="store_true",
        help="print the answer as an object with its tokens, seconds, model and settings")
    parser.add_argument(
        "--surprise", action="store_true",
        help="paint a scene, describe it, then tell what is right; --seed N chooses the scene")
    parser.add_argument(
        "--resume", metavar="FILE", help="continue a conversation that /save wrote as JSON")
    parser.add_argument(
        "--replace", action="append", default=[], metavar="OLD=NEW",
        help="with --resume: where a picture lies now; OLD= leaves it out")
    parser.add_argument(
        "--no-history", dest="history", action="store_const", const=None, default=history_file(),
        help=f"do not keep what is typed in {history_file()}")
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
            what += f"; default: {default}, or what the weights folder says"
        parser.add_argument(f"--{name.replace('_', '-')}", type=parse, help=what,
                            metavar="X" if isinstance(default, float) else "N")
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
