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
import contextlib
import json
import os
import random
import re
import sys
import time
from pathlib import Path

import torch

from artgpt4 import INSTRUCTIONS, preprocess
from common.command_line import Misuse, Progress, number, printable, run_command
from common.files import is_picture, open_image, pictures_below
from common.models import describe, load, model_flags
from conversation.rounds import (
    NO_TALK, SETTINGS, Conversation, Round, plain, read_about, read_talk, setting)
from conversation.terminal import Session, named_pictures, typed_path
from gallery.familiarity import read_measure, unfamiliar
from gallery.painting import paint
from gallery.scenes import SEEN_PAIRS, UNSEEN_PAIRS, random_scenes
from gallery.words import named

SAMPLES = Path(__file__).resolve().parent / "samples"
STDIN = Path("-")
FLAGS = ("temperature", "max_new_tokens", "seed")             # settings with a flag of their own


def matching(pattern):
    """The files that fit a pattern with * ? or [ ], sorted; no link to a folder is followed."""
    path = Path(os.path.expanduser(pattern))
    with contextlib.suppress(ValueError, OSError):
        found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        return sorted(file for file in found if file.name[0] != "." and not file.is_dir())
    return []


def pictures_and_question(texts):
    """Arguments -> picture files, whether they are a collection (a folder or a pattern), and the
    question or None: what is no file, and has a space in it or ends with a question mark."""
    files, collection, question = [], False, None
    for text in texts:
        path = typed_path(text)
        found = [] if os.path.exists(path) else matching(text)
        if os.path.isdir(path):
            found, left_out = pictures_below(path)
            for reason, count in left_out.items():
                print(f"{printable(path)}: {count} left out: {reason}", file=sys.stderr)
            if not found:
                raise ValueError(f"{path}: a folder without pictures")
        elif not (found or path == STDIN or os.path.exists(path)):
            if question is None and re.search(r"\S\s+\S|[?？]$", text):
                question = text
                continue
            if not is_picture(path):
                raise ValueError(f"{text}: no such file; a question is one argument in quotation "
                                 "marks, or follows --prompt")
        collection = collection or bool(found)
        files += found or [path]
    return files, collection, question


def open_picture(file):
    """open_image of a file, or of standard input if that is "-"."""
    if file == STDIN:
        return open_image("standard input", sys.stdin.buffer)
    return open_image(file)


def label(session, groups, args):
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
        texts, vectors = talk.answer_each(torch.stack(pixels), args.prompt) if read else ([], [])
        seconds = round((time.perf_counter() - start) / max(1, len(read)), 3)
        for row, text, found in zip(read, texts, vectors, strict=True):
            odd = [unfamiliar(talk.model, session.measure, vector) for vector in found]
            foreign += any(odd)
            if args.json:
                print(json.dumps(row | {
                    "question": args.prompt, "answer": text, "unfamiliar": odd, "seconds": seconds,
                    "tokens": len(talk.model.tokenizer.encode(text)), "model": session.name,
                    "settings": talk.settings}))
            else:
                print(f"{printable(', '.join(row['images']))}\t{' '.join(text.split())}")
        sys.stdout.flush()
        if len(groups) > 1 and not sys.stdout.isatty():       # else the answers are the progress
            progress.show(min(i + args.batch_size, len(groups)))
    if foreign:
        progress.say(f"{foreign} of {len(groups)} look like nothing that this model has seen; its "
                     "answers to them may be wrong")
    return not bad


def surprise(session, seed):
    """Paint the scene of a seed, print the model's description, then what of it is right. No scene
    in training is made from such a seed."""
    scene, = random_scenes(1, f"surprise {seed}", SEEN_PAIRS + UNSEEN_PAIRS)
    session.talk.set("seed", seed)
    session.add(paint(scene), f"painting {seed}")
    session.ask(INSTRUCTIONS[0])
    said, right = named("".join(round.answer for round in session.talk.rounds)), 0
    for attribute, value in scene.attributes.items():
        right += said[attribute] == value
        found = f"wrong; it said {said[attribute] or 'none, or several'}"
        print(f"{attribute:<8} {value}: {'right' if said[attribute] == value else found}")
    print(f"{right} of {len(scene.attributes)} right; the same painting again: --surprise --seed "
          f"{seed}")


def check(args, files, alone):
    """Raises Misuse if the arguments do not go together. alone: an answer for each picture."""
    if args.surprise and (files or args.prompt or args.resume or args.json):
        raise Misuse("--surprise paints its own picture and asks its own question")
    if args.resume and (alone or args.json):
        raise Misuse("--resume continues one talk, without folders, patterns, --each and --json")
    if args.prompt is not None and not plain(args.prompt):
        raise Misuse("--prompt: the question is empty")
    if args.prompt is None and (alone or args.json or STDIN in files):
        raise Misuse("folders, patterns, standard input, --each, --json need --prompt TEXT")


def main(args):
    with contextlib.suppress(AttributeError):                 # a notebook's stdout is no file
        sys.stdout.reconfigure(errors="replace")
    files, collection, question = pictures_and_question(args.picture)
    if question is not None and args.prompt is not None:
        raise Misuse(f"--prompt: there is another question, {question!r}")
    if question is not None or args.prompt is not None:
        args.prompt, more = named_pictures(args.prompt or question or "")
        files += more
    alone = collection or args.each
    check(args, files, alone)
    saved = read_talk(args.resume) if args.resume else NO_TALK
    given = [(name, getattr(args, name)) for name in FLAGS if getattr(args, name) is not None]
    given += [text.partition("=")[::2] for text in args.set]
    settings = saved["settings"] | dict(setting(name, value) for name, value in given)
    if not (files or args.resume or args.surprise):
        files = sorted(SAMPLES.glob("*.png"))[:1]
        print(f"no picture given: this is about {files[0]}", file=sys.stderr)
    rounds, waiting, images = saved["rounds"], saved["images"], []
    old = [file for round in rounds for file in round.images] + waiting
    if not (alone or args.json):                              # their errors, before a model loads
        images = [(open_picture(file), file) for file in map(Path, [*old, *files])]

    model, about = load(args), read_about(args.weights)
    name = args.weights.resolve().name + (f" with {args.adapter}" if args.adapter else "")
    talk = Conversation(model, **about["settings"] | settings)
    session = Session(talk, about, name, read_measure(args.weights), not args.prompt)
    if args.surprise:
        surprise(session, random.randrange(10 ** 6) if args.seed is None else args.seed)
        return
    if alone or args.json:
        sys.exit(not label(session, [[file] for file in files] if alone else [files], args))
    talk.room(talk.prompt_ids([Round(old + files, args.prompt or "")]))   # before they are encoded
    for image, file in images:
        session.add(image, file if file == STDIN else file.resolve())
    talk.rounds, talk.waiting = rounds, talk.waiting[len(old) - len(waiting):]
    if saved["model"] not in ("", name):
        session.say(f"{args.resume}: the answers so far are by {saved['model']}, not by {name}")
    if args.prompt:
        session.ask(args.prompt)
        return
    session.note("\n".join([f"model {name} in {describe(model)}; /help", about["knows"],
                            "for example: " + "  ".join(about["examples"]),
                            *(f"> {round.question}\n{round.answer}" for round in rounds)]))
    session.written = {Path(args.resume).resolve()} if args.resume else set()
    sys.exit(not (session.run() or session.typed))


def command_line():
    parser = argparse.ArgumentParser(prog="chat.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args = parser.parse_intermixed_args          # a question may come after flags
    add = parser.add_argument
    add("picture", nargs="*", help="files, folders, patterns such as 'a*.png', or - for standard "
        "input; default: one of samples/. And a question in quotation marks")
    add("--prompt", metavar="TEXT", help="ask this, print the answer and end")
    add("--each", action="store_true", help="answer for each picture, as for a folder or a pattern")
    add("--batch-size", type=number(int, 1, 1024), default=8, metavar="N",
        help="so many of them at once; default: %(default)s")
    add("--json", action="store_true", help="answers as objects with tokens, seconds, settings")
    add("--surprise", action="store_true", help="describe a new painting; --seed chooses it")
    add("--resume", metavar="FILE", help="continue a conversation that /save wrote as JSON")
    for name in FLAGS:
        add(f"--{name.replace('_', '-')}", type=SETTINGS[name][0], help=SETTINGS[name][2],
            metavar="N")
    add("--set", action="append", default=[], metavar="NAME=VALUE",
        help=f"any setting of answers: {', '.join(SETTINGS)}")
    model_flags(parser)
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
