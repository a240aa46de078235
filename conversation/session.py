"""A session of chat.py: typed or piped lines, each of them a question or a /command."""
import argparse
import contextlib
import difflib
import re
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

from common.command_line import one_line
from common.files import open_image, written_beside
from common.packing import packing_meanwhile, unpacked
from conversation.line_editing import completions
from conversation.pictures import dropped_path, frames_text, picture_text, typed_path
from conversation.rounds import plain
from conversation.saving import find_html, to_json, to_markdown
from conversation.settings import SETTINGS
from conversation.terminal import clean, columns
from gallery.familiarity import unfamiliar


class Session:
    """A conversation and the terminal or pipe that its lines come from.

    model: the name of the weights, for saved files.
    """

    def __init__(self, conversation, terminal, model=""):
        self.conversation, self.terminal, self.model = conversation, terminal, model
        self.written = set()                                  # files that may be overwritten
        self.ended = False

    def greet(self, model):
        """Tell someone who types what is there to talk to. model: its name and precision."""
        about = self.conversation.about
        self.terminal.note(f"model {model}; /help")
        size = sum(layer.weight.numel() for layer in unpacked(self.conversation.model)) / 1e9
        if size > 1:
            self.terminal.note(f"the first answer may be slow: {size:.1f} GB of int8 weights are "
                               "rearranged for this CPU while you type and while it answers")
        if about.knows:
            self.terminal.note(about.knows)
        if about.examples:
            self.terminal.note("for example: " + "  ".join(about.examples))

    def run(self):
        """Answer and obey line by line, until /quit or the end of the input.

        A line that fails prints one line on stderr, and the session continues. Returns whether all
        lines succeeded. Ctrl-C stops an answer; if the lines come from a pipe, it ends the session.
        """
        succeeded = True
        names = {name: command.argument for name, command in COMMANDS.items()}
        for line in self.terminal.lines(lambda line: completions(line, names, SETTINGS),
                                        lambda: packing_meanwhile(self.conversation.model)):
            line = ALIASES.get(line.strip().lower(), line.strip())
            try:
                if dropped_path(line):
                    self.image(dropped_path(line))
                elif line.startswith("/"):
                    self.obey(clean(line))
                elif plain(line):
                    self.say(line)
            except BrokenPipeError:                           # nobody reads the answers
                raise
            except KeyboardInterrupt:
                if not self.terminal.typed:
                    raise
            except (ValueError, OSError, RuntimeError) as error:
                self.terminal.say(one_line(error))
                succeeded = False
            if self.ended:
                break
        return succeeded

    def obey(self, line):
        """Run a /command. Raises ValueError, in one line, if it cannot be done."""
        name, argument = re.fullmatch(r"(?s)(\S+)\s*(.*)", line).groups()
        name = ALIASES.get(name.lower(), name.lower())
        if name not in COMMANDS:
            nearest = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], 1)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise ValueError(f"{name} is not a command; {hint}/help lists them")
        command = COMMANDS[name]
        if command.argument in ("PATH", "FILE"):
            if not argument:
                raise ValueError(f"{name} needs a {command.argument}")
            argument = typed_path(argument)
        command.run(self, argument)

    def say(self, question=None):
        """Print the answer as it comes and, for someone who reads it, its speed."""
        talk, start = self.conversation, time.perf_counter()
        pieces = talk.answer(question)
        if talk.dropped:
            print(f"(the context of {talk.context} tokens is full: the oldest {talk.dropped} of "
                  f"{len(talk.rounds)} rounds are forgotten)", file=sys.stderr)
        with contextlib.closing(pieces):
            began = self.terminal.print(pieces)
        if began and self.terminal.read:
            speed = talk.new_tokens / (time.perf_counter() - start)
            self.terminal.note(f"{talk.new_tokens} tokens, {speed:.1f} tokens/s, "
                               f"the first after {began - start:.2f} s")

    def show(self, image, file):
        """Show someone who types a picture, if the terminal can, with its name and size."""
        if self.terminal.typed:
            self.terminal.show(image)
            self.terminal.note(picture_text(image, file))
        elif frames_text(image):
            print(f"{file}: {frames_text(image)}", file=sys.stderr)

    def add_image(self, image, file):
        """Add a picture to the conversation. Says so when there are more than in training, and when
        it looks like none of the pictures there."""
        talk = self.conversation
        talk.add_image(image, file)
        if unfamiliar(talk.model, talk.image_embeds[-1]):
            name = Path(file).name
            self.terminal.say(f"({name} looks like nothing that this model has seen; its answers "
                              "may be wrong)")
        count = len(talk.image_embeds)
        if count == talk.about.pictures + 1:
            self.terminal.say(f"({count} pictures in one conversation: this model was taught with "
                              f"at most {talk.about.pictures})")

    def write(self, file, text):
        """Write a new file, or overwrite one that this session wrote."""
        if file.exists() and file.resolve() not in self.written:
            raise ValueError(f"{file}: exists already; give another name, or remove it first")
        if not file.parent.exists():
            raise ValueError(f"{file}: there is no folder {file.parent}; make it first")
        try:
            with written_beside(file) as beside:
                beside.write_text(text, encoding="utf-8", errors="replace")
        except OSError as error:
            raise ValueError(f"{file}: {error.strerror}") from None
        self.written.add(file.resolve())
        self.terminal.note(f"{file} written")

    # The commands. Each takes what is typed after its name: a path, or a text that may be empty.

    def image(self, file):
        image = open_image(file)
        self.show(image, file)
        self.add_image(image, file.resolve())

    def again(self, _):
        self.say()

    def reset(self, _):
        self.conversation.reset()
        self.terminal.note("all forgotten but the last picture")

    def set(self, text):
        name, value = re.fullmatch(r"([^\s=]*)[\s=]*(.*)", text).groups()
        name = name.lower().replace("-", "_")
        settings = self.conversation.settings
        if name and name not in SETTINGS:
            raise ValueError(f"/set {name}: there are {', '.join(SETTINGS)}")
        if not value:
            for shown in [name] if name else settings:
                print(self.setting_text(shown), file=sys.stderr)
            return
        try:
            random_seed = name == "seed" and value.lower() == "none"
            self.conversation.set(name, None if random_seed else SETTINGS[name].parse(value))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"/set {name}: {error}") from None
        self.terminal.note(self.setting_text(name))

    def setting_text(self, name):
        value = self.conversation.settings[name]
        return f"{name} {'none' if value is None else value}"

    def save(self, file):
        if file.suffix == ".json":
            self.write(file, to_json(self.conversation, self.model))
        elif file.suffix == ".md":
            self.write(file, to_markdown(self.conversation, file.parent, self.model))
        else:
            raise ValueError(f"{file}: /save writes FILE.md, for reading, "
                             "or FILE.json, for --resume")

    def page(self, file):
        rounds = self.conversation.rounds
        html = find_html(rounds[-1].answer) if rounds else None
        if html is None:
            raise ValueError("the last answer has no HTML; "
                             'ask for some: "Write a web page for this painting."')
        self.write(file, html)

    def help(self, _):
        width = columns() if sys.stderr.isatty() else 100
        lines = {f"{name} {command.argument}": command.help for name, command in COMMANDS.items()}
        lines["Ctrl-C"] = "stop an answer"
        lines["other lines"] = ("are questions; one with \\ at its end continues on the next line, "
                                'and so does a text between """ and """')
        for name, text in lines.items():
            print(textwrap.fill(text, width, initial_indent=f"{name:<19}",
                                subsequent_indent=" " * 19), file=sys.stderr)

    def quit(self, _):
        self.ended = True


class Command(NamedTuple):
    argument: str             # what follows the name; PATH and FILE are required
    help: str
    run: Any                  # a method of Session


COMMANDS = {
    "/image": Command("PATH", "add a picture; it comes with the next question", Session.image),
    "/again": Command(
        "", "answer the last question again (at temperature 0 the same)", Session.again),
    "/reset": Command(
        "", "forget what was said, and all pictures but the last", Session.reset),
    "/set": Command(
        "[NAME VALUE]", "change a setting, or show it; alone: show all", Session.set),
    "/save": Command(
        "FILE", "write the conversation: FILE.md for reading, FILE.json for --resume",
        Session.save),
    "/page": Command("FILE", "write the HTML of the last answer, for a browser", Session.page),
    "/help": Command("", "show this", Session.help),
    "/quit": Command("", "end the session, as Ctrl-D does", Session.quit),
}

# What people type elsewhere
ALIASES = {"/exit": "/quit", "/bye": "/quit", "/?": "/help", "exit": "/quit", "quit": "/quit",
           "help": "/help"}
