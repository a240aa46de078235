"""Which of chat.py's flags go together."""
import argparse
import sys

from conversation.pictures import STDIN
from conversation.rounds import plain


def question_text(text):
    """An argparse type: a question that is not empty."""
    if not plain(text):
        raise argparse.ArgumentTypeError("the question is empty")
    return text


def check(args, files, collection):
    """End with exit code 2, or raise ValueError, if the arguments do not go together."""
    if args.surprise and (files or args.prompt or args.resume or args.json):
        args.error("--surprise paints its own picture and asks its own question")
    if args.replace and not args.resume:
        args.error("--replace is for the pictures of a conversation: --resume FILE")
    if args.each and args.resume:
        args.error("--each answers about every picture by itself, and --resume continues one talk")
    if (args.each or args.json) and not args.prompt:
        args.error("--each and --json need a question: --prompt TEXT")
    if collection and (args.resume or not args.prompt):
        raise ValueError(f"{' '.join(args.picture)}: an answer for each picture of a folder or "
                         "pattern needs a question, --prompt TEXT, and no --resume")
    if STDIN in files and not args.prompt:
        args.error("standard input is the picture, so it needs a question: --prompt TEXT")
    if sys.stdin is None and not (args.prompt or args.surprise):
        raise ValueError("standard input is closed; ask with --prompt TEXT")
