"""A conversation about pictures, in a terminal or through pipes.

    python chat.py picture.jpg                          several rounds in a terminal
    python chat.py picture.jpg "What is it?"            one answer, and nothing else on stdout
    python chat.py a.jpg b.jpg "Which is older?"        one answer about both
    python chat.py holiday/ --prompt "What is it?"      an answer for each picture of a folder
    python chat.py picture.jpg < questions.txt          one question a line, one conversation
    python chat.py --resume talk.json                   continue what /save talk.json wrote
    python chat.py --surprise                           describe a painting nobody has seen
"""
import argparse
import json
import os
import re
import sys
import time
from functools import partial
from pathlib import Path

import torch

from artgpt4 import INSTRUCTIONS, preprocess
from common.command_line import Misuse, Progress, command_parser, number, printable, run_command
from common.files import is_picture, open_image, pictures_below
from common.models import SAMPLES, describe, load, model_flags
from conversation.rounds import NO_TALK, SETTINGS, Conversation, plain, read_about, read_talk
from conversation.terminal import Session, named_pictures, typed_path
from gallery.familiarity import read_measure, unfamiliar
from gallery.painting import paint
from gallery.scenes import SEEN_PAIRS, UNSEEN_PAIRS, random_scenes
from gallery.words import named

STDIN = Path("-")


def pictures_and_questions(texts):
    """Arguments -> picture files, whether a folder is among them, and questions: what is no file,
    and has a space in it or ends with a question mark."""
    files, folder, questions = [], False, []
    for text in texts:
        path = typed_path(text)
        there = text and (path == STDIN or os.path.exists(path))    # "" would be this folder
        if there and os.path.isdir(path):
            found, left_out = pictures_below(path)
            for reason, count in left_out.items():
                print(f"{printable(path)}: {count} left out: {reason}", file=sys.stderr)
            if not found:
                raise ValueError(f"{path}: a folder without pictures")
            files += found
            folder = True
        elif not there and re.search(r"\S\s+\S|[?？]$", text):
            questions.append(text)
        elif there or is_picture(path):
            files.append(path)
        else:
            raise ValueError(f"{text}: no such file; a question is one argument in quotation "
                             "marks, or follows --prompt")
    return files, folder, questions


def open_picture(file):
    """open_image of a file, or of standard input if that is "-"."""
    return open_image(file, sys.stdin.buffer if file == STDIN else None)


def label(session, question, groups, args):
    """Print an answer about each group of picture files: a line of JSON, or their names, a tab and
    the answer in one line. What cannot be read is a line on stderr. Returns whether all could."""
    talk, bad, foreign = session.talk, 0, 0
    progress, size = Progress("labelling", len(groups), "pictures"), talk.model.config.image_size
    for i in range(0, len(groups), args.batch_size):
        start, read, pixels = time.perf_counter(), [], []
        for files in groups[i:i + args.batch_size]:
            row = {"images": [str(file) for file in files]}
            try:
                pixels.append(torch.stack([preprocess(open_picture(f), size) for f in files]))
                read.append(row)
            except ValueError as error:
                bad += 1
                progress.say(printable(error))
                if args.json:
                    print(json.dumps(row | {"error": str(error)}))
        texts, vectors = talk.answer_each(torch.stack(pixels), question) if read else ([], [])
        seconds = round((time.perf_counter() - start) / max(1, len(read)), 3)
        for row, text, found in zip(read, texts, vectors, strict=True):
            odd = [session.unfamiliar(vector) for vector in found]
            foreign += any(odd)
            if args.json:
                print(json.dumps(row | {
                    "question": question, "answer": text, "unfamiliar": odd, "seconds": seconds,
                    "tokens": len(talk.model.tokenizer.encode(text)), "model": session.name,
                    "settings": talk.settings}))
            else:
                print(f"{printable(', '.join(row['images']))}\t{' '.join(text.split())}")
        if len(groups) > 1 and not sys.stdout.isatty():       # else the answers are the progress
            progress.show(min(i + args.batch_size, len(groups)))
    if foreign:
        progress.say(f"{foreign} of {len(groups) - bad} look like no painting that this model "
                     "knows; its answers to them may be wrong")
    return not bad


def surprise(session):
    """Paint the scene of a seed, print the model's description, then what of it is right. No scene
    in training is made from such a seed."""
    seed = session.talk.generator.initial_seed()
    scene, = random_scenes(1, f"surprise {seed}", SEEN_PAIRS + UNSEEN_PAIRS)
    session.add(paint(scene), f"painting {seed}")
    session.ask(INSTRUCTIONS[0])
    said, right = named("".join(round.answer for round in session.talk.rounds)), 0
    for attribute, value in scene.attributes.items():
        right += said[attribute] == value
        print(f"{attribute:<8} {value}: it said {said[attribute] or 'none, or several'}")
    print(f"{right} of {len(scene.attributes)} right; the same painting again: --surprise --seed "
          f"{seed}")


def main(args):
    sys.stdout.reconfigure(errors="replace", line_buffering=True)
    files, folder, questions = pictures_and_questions(args.picture)
    questions += [] if args.prompt is None else [args.prompt]
    if len(questions) > 1:
        raise Misuse(f"--prompt: one question, not {questions}")
    question, more = named_pictures("".join(questions))
    files, alone = files + more, folder or args.each
    if args.surprise and (files or questions or args.resume or args.json):
        raise Misuse("--surprise paints its own picture and asks its own question")
    if args.resume and (alone or args.json):
        raise Misuse("--resume continues one talk, without folders, --each and --json")
    if (questions or alone or args.json or STDIN in files) and not plain(question):
        raise Misuse("--prompt TEXT: empty or missing; folders, -, --each and --json need it")
    saved = read_talk(args.resume) if args.resume else NO_TALK
    given = {name: value for name, value in vars(args).items() if name in SETTINGS}
    if not (files or args.resume or args.surprise):
        files = sorted(SAMPLES.glob("*.png"))[:1]
        print(f"no picture given: this is about {files[0]}", file=sys.stderr)
    rounds, images = saved["rounds"], []
    asked = [file for round in rounds for file in round.images]
    if not (alone or args.json):                              # their errors, before a model loads
        images = [(open_picture(file), file) for file in map(Path, asked + saved["images"] + files)]

    model, about = load(args), read_about(args.weights)
    name = args.weights.resolve().name + (f" with {args.adapter}" if args.adapter else "")
    talk = Conversation(model, **about["settings"] | saved["settings"] | given)
    measure = read_measure(args.weights, args.adapter)
    session = Session(talk, about, name, partial(unfamiliar, model, measure), not question)
    if args.surprise:
        surprise(session)
        return
    if alone or args.json:
        groups = [[file] for file in files] if alone else [files]
        sys.exit(not label(session, question, groups, args))
    for image, file in images:
        session.add(image, file)
    talk.rounds, talk.waiting = rounds, talk.waiting[len(asked):]
    if saved["model"] not in ("", name):
        session.say(f"{args.resume}: the answers so far are by {saved['model']}, not by {name}")
    if question:
        session.ask(question)
        return
    session.note("\n".join([f"model {name} in {describe(model)}; /help", about["knows"],
                            "for example: " + "  ".join(about["examples"]),
                            *(f"> {round.question}\n{round.answer}" for round in rounds)]))
    session.written = {Path(args.resume).resolve()} if args.resume else set()
    sys.exit(not (session.run() or session.typed))


def command_line():
    parser = command_parser("chat.py", __doc__)
    parser.parse_args = parser.parse_intermixed_args          # a question may come after flags
    add = parser.add_argument
    add("picture", nargs="*", help="files, folders, or - for standard input; default: one of "
        "samples/. And a question in quotation marks")
    add("--prompt", metavar="TEXT", help="ask this, print the answer and end")
    add("--each", action="store_true", help="answer for each picture, as for a folder")
    add("--batch-size", type=number(int, 1, 1024), default=8, metavar="N",
        help="so many of them at once; default: %(default)s")
    add("--json", action="store_true", help="answers as objects with tokens, seconds, settings")
    add("--surprise", action="store_true", help="describe a new painting; --seed chooses it")
    add("--resume", type=Path, metavar="FILE", help="continue what /save wrote as JSON")
    for name, (kind, _, text) in SETTINGS.items():
        add(f"--{name.replace('_', '-')}", type=kind, metavar="N", default=argparse.SUPPRESS,
            help=text)
    model_flags(parser)
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
