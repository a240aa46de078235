"""A conversation about a picture, in a terminal or through pipes.

    python chat.py picture.jpg                             several rounds; Ctrl-C stops an answer, Ctrl-D or /quit ends
    python chat.py picture.jpg --prompt "What is this?"    one answer, alone on stdout
    python chat.py picture.jpg < questions.txt             a question a line, an answer to each, one conversation
    python chat.py --resume talk.json                      goes on with what /save talk.json wrote

A line that begins with "/" is a command; /help lists them.
"""
import argparse
import contextlib
import re
import sys
import time
import warnings
from pathlib import Path

import torch

from common.command_line import run_command
from common.loading import device, load_model, precision
from common.files import open_image, written_beside
from conversation.rounds import SETTINGS, Conversation, plain, read_json, to_json, to_markdown
from conversation.terminal import Terminal, clean, typed_path

HERE = Path(__file__).resolve().parent
HTML = re.compile(r"<(?:!doctype|html|head|title|style|body|main|header|section|article|div|h1|p)\b"
                  r".*?(?:</html>|(?=```)|\Z)", re.IGNORECASE | re.DOTALL)
COMMANDS = {                                                  # argument, what it does
    "/image": ("PATH", "a further picture; the next question comes with it"),
    "/again": ("", "another answer to the last question (at temperature 0 the same)"),
    "/reset": ("", "forget what was said, and all pictures but the last"),
    "/set": ("[NAME VALUE]", "change how answers are made, temperature for example; alone: show all"),
    "/save": ("FILE", "write the conversation: FILE.md to be read, FILE.json for --resume"),
    "/page": ("FILE", "write the HTML of the last answer, for a browser"),
    "/help": ("", "show this"),
    "/quit": ("", "end, as Ctrl-D does"),
}


class Session:
    """A conversation, and the lines that someone types or a pipe brings."""

    def __init__(self, conversation, terminal):
        self.conversation, self.terminal = conversation, terminal
        self.written = set()                                  # files that may be written again

    def say(self, question=None):
        """Print the answer as it comes, and to someone who reads it how fast it came."""
        talk, start = self.conversation, time.perf_counter()
        pieces = talk.answer(question)
        if talk.dropped:
            print(f"(the context of {talk.context} tokens is full: the oldest {talk.dropped} of {len(talk.rounds)} "
                  "rounds dropped)", file=sys.stderr)
        with contextlib.closing(pieces):
            began = self.terminal.print(pieces)
        if began and self.terminal.read:
            count, seconds = talk.new_tokens, time.perf_counter() - start
            self.terminal.note(f"{count} tokens, {count / seconds:.1f} tokens/s, the first after {began - start:.2f} s")

    def show(self, image, file):
        """The picture itself, if the terminal can, its name and size."""
        self.terminal.show(image)
        self.terminal.note(f"{file}, {image.width} x {image.height}")

    def set(self, name, value):
        """Change a setting to what was typed; without a name, print all."""
        if not name:
            print(*(f"{name} {value}" for name, value in self.conversation.settings.items()), sep="\n", file=sys.stderr)
            return
        if name not in SETTINGS:
            raise ValueError(f"/set {name}: there are {', '.join(SETTINGS)}")
        try:
            self.conversation.set(name, SETTINGS[name][0](value))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"/set {name}: {error}") from None
        self.terminal.note(f"{name} {self.conversation.settings[name]}")

    def save(self, file):
        """Write the conversation, in the form that the file's name asks for."""
        if file.suffix == ".json":
            self.write(file, to_json(self.conversation))
        elif file.suffix == ".md":
            self.write(file, to_markdown(self.conversation, file.parent))
        else:
            raise ValueError(f"{file}: /save writes FILE.md, to be read, or FILE.json, for --resume")

    def page(self, file):
        """Write the HTML of the last answer, without the fences or the words around it."""
        html = HTML.search(self.conversation.rounds[-1].answer) if self.conversation.rounds else None
        if not html:
            raise ValueError('the last answer has no HTML; ask for some: "Write a web page for this painting."')
        self.write(file, html[0].strip() + "\n")

    def write(self, file, text):
        """Write a new file, or again one that this session wrote."""
        if file.exists() and file.resolve() not in self.written:
            raise ValueError(f"{file}: exists already; give another name, or remove it first")
        try:
            with written_beside(file) as beside:
                beside.write_text(text, encoding="utf-8", errors="replace")
        except OSError as error:
            raise ValueError(f"{file}: {error.strerror}") from None
        self.written.add(file.resolve())
        self.terminal.note(f"{file} written")

    def obey(self, line):
        """Do what a /command says. Raises ValueError, in one line, if it cannot be done."""
        command, _, argument = line.partition(" ")
        argument = argument.strip()
        if command not in COMMANDS:
            raise ValueError(f"{command} is no command; /help lists them")
        if COMMANDS[command][0] in ("PATH", "FILE") and not argument:
            raise ValueError(f"{command} needs a {COMMANDS[command][0]}")
        if command == "/image":
            file = typed_path(argument)
            image = open_image(file)
            self.show(image, file)
            self.conversation.add_image(image, file.resolve())
        elif command == "/again":
            self.say()
        elif command == "/reset":
            self.conversation.reset()
            self.terminal.note("forgotten; the picture stays")
        elif command == "/set":
            self.set(*re.fullmatch(r"([^\s=]*)[\s=]*(.*)", argument).groups())
        elif command == "/save":
            self.save(typed_path(argument))
        elif command == "/page":
            self.page(typed_path(argument))
        elif command == "/help":
            print(*(f"{f'{name} {what}':<18} {text}" for name, (what, text) in COMMANDS.items()),
                  "Ctrl-C stops an answer. Any other line is a question.", sep="\n", file=sys.stderr)

    def run(self):
        """Answer and obey line by line, up to /quit. What cannot be done is one line, and the conversation goes on ->
        whether all was done. Ctrl-C ends an answer, or what a pipe has asked for."""
        done = True
        for line in map(str.strip, self.terminal.lines()):
            if line == "/quit":
                break
            try:
                if line.startswith("/"):
                    self.obey(clean(line))
                elif plain(line):
                    self.say(line)
            except BrokenPipeError:                           # nobody reads on
                raise
            except KeyboardInterrupt:
                if not self.terminal.typed:
                    raise
            except (ValueError, OSError, RuntimeError) as error:
                print(clean((str(error).strip() or repr(error)).splitlines()[-1]), file=sys.stderr)
                done = False
        return done


# ---- The command


def sample_image():
    """The first picture in samples/. Raises ValueError if there is none."""
    files = sorted((HERE / "samples").glob("*.png"))
    if not files:
        raise ValueError(f"no picture given, and none in {HERE / 'samples'}; name one: python chat.py picture.jpg")
    print(f"no picture given: this is about {files[0]}", file=sys.stderr)
    return files[0]


def main(args):
    warnings.filterwarnings("ignore", module="PIL")
    sys.stdout.reconfigure(errors="replace")
    if sys.stdin is None and not args.prompt:
        raise ValueError("standard input is closed; ask with --prompt TEXT")
    rounds, waiting, settings = read_json(args.resume) if args.resume else ([], [], {})
    files = [file for images, _, _ in rounds for file in images] + waiting
    if args.image or not args.resume:
        files.append(args.image or sample_image())
        waiting.append(str(Path(files[-1]).resolve()))
    images = [open_image(file) for file in files]
    settings |= {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    model = load_model(args)
    session = Session(Conversation(model, **settings), Terminal(args.plain))
    if not args.prompt:
        for file, image in zip(files, images, strict=True):
            session.show(image, file)
        adapter = f" with {args.adapter}" * bool(args.adapter)
        session.terminal.note(f"model {args.weights.resolve().name}{adapter} in {precision(model)}; /help")
    for image in images:
        session.conversation.add_image(image)
    session.conversation.rounds, session.conversation.waiting = rounds, waiting
    if args.prompt:
        session.say(args.prompt)
        return
    if args.resume:
        session.written.add(Path(args.resume).resolve())
        for _, question, answer in rounds:
            session.terminal.note(f"> {question}\n{answer}")
    if not session.run() and not session.terminal.typed:
        sys.exit(1)


def question_text(text):
    """An argparse type: a question that is not empty."""
    if not plain(text):
        raise argparse.ArgumentTypeError("the question is empty")
    return text


def command_line():
    parser = argparse.ArgumentParser(prog="chat.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", help="a picture in any format that Pillow reads; default: one of samples/")
    parser.add_argument("--prompt", type=question_text, metavar="TEXT", help="ask this, print the answer alone and end")
    parser.add_argument("--resume", metavar="FILE", help="go on with a conversation that /save wrote as JSON")
    parser.add_argument("--plain", action="store_true", help="on a terminal: no picture, colours or added line breaks")
    parser.add_argument("--weights", type=Path, default=HERE / "weights" / "tiny", metavar="FOLDER",
                        help="default: weights/tiny")
    parser.add_argument("--adapter", type=Path, metavar="FILE", help="another adapter.safetensors, as train.py writes")
    for name, (kind, default, what) in SETTINGS.items():
        what += f"; default: {default}" * (default is not None)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=what,
                            metavar="X" if isinstance(default, float) else "N")
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                        help="default: on a CPU float32 if half of its memory holds that, else as stored")
    parser.add_argument("--int8", action="store_true", help="the language model's matrices as int8, a byte a weight")
    parser.add_argument("--vision-int8", action="store_true", help="the ViT's matrices as int8")
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
