"""The terminal of chat.py: typed or piped lines, each of them questions, pictures or a /command."""
import atexit
import contextlib
import itertools
import os
import re
import signal
import sys
import time
from pathlib import Path
from urllib.parse import unquote

from common.command_line import one_line, printable, signals_kept
from common.files import is_picture, open_image, written_beside
from conversation.rounds import clean, plain, setting, to_json, to_markdown

WORD = re.compile(r"""(["'])[^"'\n]+\1(?!\w)|(?:\\.|[^\s\\])+""")


def typed_path(text):
    """The path that a text names, with quotes, escaped spaces or ~, or as a file:// address.
    Raises ValueError for a web address."""
    if not os.path.exists(text):
        text = re.sub(r"\\(.)", r"\1", text).strip("'\"")
    if re.match("(https?|ftp)://", text, re.IGNORECASE):
        raise ValueError(f"{text}: nothing is downloaded; save the picture, and name its file")
    if text.startswith("file://"):
        text = unquote(re.sub("^file://[^/]*", "", text))
    return Path(os.path.expanduser(text))


def named_pictures(text):
    """A question -> what is left of it without the pictures that it names, and their paths: words
    with the suffix of a picture, or with a "/" where a file lies. Raises ValueError for a web
    address."""
    found = []

    def take(match):
        word = match[0].lstrip("(<[")
        path = typed_path(word if os.path.exists(word) else word.rstrip("?!.,;:)>]"))
        if not is_picture(path) and not ("/" in word and os.path.isfile(path)):
            return match[0]
        found.append(path)
        return ""
    left = WORD.sub(take, text)
    return re.sub("[ \t]+", " ", left).strip() if found else text, found


class Session:
    """A conversation in a terminal or a pipe. Answers go to stdout, everything else to stderr.

    about: see read_about. name: that of the weights, for saved files. unfamiliar: a function (image
    vectors (Q, D)) -> whether they are unlike those of training. asks: whether lines are asked for.
    """

    def __init__(self, talk, about, name, unfamiliar, asks):
        self.talk, self.about, self.name, self.unfamiliar = talk, about, name, unfamiliar
        self.typed = asks and sys.stdin is not None and sys.stdin.isatty()
        self.written = set()                                  # files that may be overwritten

    def say(self, text):
        """Print a text that is no answer."""
        print(clean(text), file=sys.stderr)

    def note(self, text):
        """Print a text for someone who types."""
        if self.typed:
            self.say(text)

    def add(self, image, file):
        """Add a picture to the conversation, and say what is unusual about it."""
        talk, name, most = self.talk, printable(Path(file).name), self.about["pictures"]
        self.note(f"{name}, {image.width} x {image.height}")
        talk.add_image(image, Path(file).resolve())
        if self.unfamiliar(talk.image_embeds[-1]):
            self.say(f"({name} looks like no painting that this model knows; its answers may be "
                     "wrong)")
        if len(talk.image_embeds) == most + 1:
            self.say(f"(more than {most} pictures in one conversation: this model was taught "
                     f"with at most {most})")

    def open(self, files):
        for image, file in [(open_image(file), file) for file in files]:      # all, or none
            self.add(image, file)

    def ask(self, question=None):
        """Print the answer as it comes and, for someone who types, its speed."""
        talk, start, count = self.talk, time.perf_counter(), 0
        pieces, forgotten = talk.answer(question), talk.forgotten
        shown = itertools.chain([next(pieces, "")], pieces)   # errors come before any output
        seconds = time.perf_counter() - start
        try:
            with signals_kept(signal.SIGINT) as stopped:
                for piece in shown:
                    count += 1                                # a piece for each token
                    print(piece, end="", flush=True)
                    if stopped:
                        break
            if stopped:                                       # perhaps at the last token
                raise KeyboardInterrupt
        finally:
            pieces.close()                                    # which keeps the round
            print(flush=True)
        if talk.forgotten > forgotten:
            self.say(f"(the context of {talk.context} tokens is full: {talk.forgotten} of "
                     f"{len(talk.rounds)} rounds are forgotten; /reset begins anew)")
        speed = count / (time.perf_counter() - start)
        self.note(f"{count} tokens, {speed:.1f} tokens/s, the first after {seconds:.2f} s")

    def run(self):
        """Answer and obey line by line, until /quit or the end of the input. Returns whether all
        lines succeeded. Ctrl-C stops an answer; if the lines come from a pipe, it ends all."""
        self.prepare()
        prompt, succeeded = "> " if self.typed and sys.stdout.isatty() else "", True
        while True:
            try:
                succeeded = self.obey(input(prompt).strip()) and succeeded
            except EOFError:
                return succeeded
            except KeyboardInterrupt:
                if not self.typed:
                    raise
                self.say("\nCtrl-D or /quit ends.")

    def prepare(self):
        """Let input() read piped lines in UTF-8; or edit typed ones with readline, where Python has
        it, and keep them in a file that only its owner can read."""
        with contextlib.suppress(AttributeError):             # a notebook's stdin is no file
            sys.stdin.reconfigure(encoding=None if self.typed else "utf-8-sig", errors="replace")
        if not self.typed:
            return
        with contextlib.suppress(ImportError, OSError, RuntimeError):    # there may be no home
            import readline
            file = Path.home() / ".artgpt4_history"
            file.touch(mode=0o600)
            atexit.register(readline.write_history_file, file)
            readline.read_history_file(file)

    def obey(self, line):
        """Answer a question, add the pictures that it names, or run a /command. Returns whether
        that could be done; else it is one line on stderr."""
        word, _, argument = ALIASES.get(line.lower(), line).partition(" ")
        try:
            if word.lower() in COMMANDS:
                _, run = COMMANDS[word.lower()]
                run(self, clean(argument).strip())
                return True
            question, files = named_pictures(line)
            if question.startswith("/"):
                raise ValueError(f"{word} is not a command; /help lists them")
            self.open(files)
            if plain(question):
                self.ask(question)
            return True
        except (ValueError, RuntimeError) as error:
            self.say(one_line(error))
            return False

    # The commands. Each takes what is typed after its name, which may be empty.

    def image(self, text):
        left, files = named_pictures(text)
        self.open(files if files and not left else [typed_path(text)])

    def reset(self, _):
        self.talk.reset()
        self.note("all forgotten but the last picture")

    def set(self, text):
        name, _, value = " ".join(text.replace("=", " ").split()).partition(" ")
        if value:
            self.talk.set(*setting(name, value))
        self.say(", ".join(f"{name} {value}" for name, value in self.talk.settings.items()))

    def save(self, text):
        file = typed_path(text)
        if file.suffix == ".json":
            self.write(file, to_json(self.talk, self.name))
        elif file.suffix == ".md":
            self.write(file, to_markdown(self.talk, self.name, file.parent))
        else:
            raise ValueError(f"{file}: /save writes FILE.md, or FILE.json for --resume")

    def page(self, text):
        answer = self.talk.rounds[-1].answer if self.talk.rounds else ""
        html = re.search(r"(?s)<[!a-zA-Z].*?(?=```|\Z)", answer)   # to the end of its code block
        if html is None:
            raise ValueError('no HTML yet; ask for "a web page for this painting", for example')
        self.write(typed_path(text), html[0].strip() + "\n")

    def write(self, file, text):
        """Write a new file, or overwrite one that this session wrote."""
        if os.path.lexists(file) and file.resolve() not in self.written:
            raise ValueError(f"{file}: exists already; give another name, or remove it first")
        with written_beside(file) as beside:
            beside.write_text(text, encoding="utf-8", errors="replace")
        self.written.add(file.resolve())
        self.note(f"{printable(file)} written")

    def help(self, _):
        self.say("\n".join(f"{name} {text}" for name, (text, _) in COMMANDS.items()))

    def quit(self, _):
        raise EOFError


COMMANDS = {
    "/image": ("PATH: add pictures; a question may also name them itself", Session.image),
    "/again": ("answers the last question again", lambda session, _: session.ask()),
    "/reset": ("forgets what was said, and all pictures but the last", Session.reset),
    "/set": ("NAME VALUE: change a setting, and show all", Session.set),
    "/save": ("FILE: FILE.md is for reading, FILE.json for --resume", Session.save),
    "/page": ("FILE: write the HTML of the last answer, for a browser", Session.page),
    "/help": ("shows this", Session.help),
    "/quit": ("ends, as Ctrl-D does; Ctrl-C stops an answer", Session.quit),
}
ALIASES = {"/exit": "/quit", "/bye": "/quit", "/?": "/help", "exit": "/quit", "quit": "/quit",
           "help": "/help"}   # what people type elsewhere
