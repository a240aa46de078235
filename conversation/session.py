"""A session of chat.py: typed or piped lines, each of them a question or a /command."""
import argparse
import contextlib
import re
import sys
import time
from typing import Any, NamedTuple

from common.command_line import one_line
from common.files import open_image, written_beside
from conversation.rounds import SETTINGS, plain
from conversation.saving import find_html, to_json, to_markdown
from conversation.terminal import clean, typed_path


class Session:
    """A conversation and the terminal or pipe that its lines come from."""

    def __init__(self, conversation, terminal):
        self.conversation, self.terminal = conversation, terminal
        self.written = set()                                  # files that may be overwritten
        self.ended = False

    def run(self):
        """Answer and obey line by line, until /quit or the end of the input.

        A line that fails prints one line on stderr, and the session continues. Returns whether all
        lines succeeded. Ctrl-C stops an answer; if the lines come from a pipe, it ends the session.
        """
        succeeded = True
        for line in self.terminal.lines():
            line = line.strip()
            try:
                if line.startswith("/"):
                    self.obey(clean(line))
                elif plain(line):
                    self.say(line)
            except BrokenPipeError:                           # nobody reads the answers
                raise
            except KeyboardInterrupt:
                if not self.terminal.typed:
                    raise
            except (ValueError, OSError, RuntimeError) as error:
                print(clean(one_line(error)), file=sys.stderr)
                succeeded = False
            if self.ended:
                break
        return succeeded

    def obey(self, line):
        """Run a /command. Raises ValueError, in one line, if it cannot be done."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name not in COMMANDS:
            raise ValueError(f"{name} is not a command; /help lists them")
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
        """Show a picture, if the terminal can, with its name and size."""
        self.terminal.show(image)
        self.terminal.note(f"{file}, {image.width} x {image.height}")

    def write(self, file, text):
        """Write a new file, or overwrite one that this session wrote."""
        if file.exists() and file.resolve() not in self.written:
            raise ValueError(f"{file}: exists already; give another name, or remove it first")
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
        self.conversation.add_image(image, file.resolve())

    def again(self, _):
        self.say()

    def reset(self, _):
        self.conversation.reset()
        self.terminal.note("forgotten; the picture stays")

    def set(self, text):
        name, value = re.fullmatch(r"([^\s=]*)[\s=]*(.*)", text).groups()
        settings = self.conversation.settings
        if not name:
            for name, value in settings.items():
                print(name, value, file=sys.stderr)
            return
        if name not in SETTINGS:
            raise ValueError(f"/set {name}: there are {', '.join(SETTINGS)}")
        try:
            self.conversation.set(name, SETTINGS[name].parse(value))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"/set {name}: {error}") from None
        self.terminal.note(f"{name} {settings[name]}")

    def save(self, file):
        if file.suffix == ".json":
            self.write(file, to_json(self.conversation))
        elif file.suffix == ".md":
            self.write(file, to_markdown(self.conversation, file.parent))
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
        for name, command in COMMANDS.items():
            print(f"{f'{name} {command.argument}':<18} {command.help}", file=sys.stderr)
        print("Ctrl-C stops an answer. Any other line is a question.", file=sys.stderr)

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
        "[NAME VALUE]", "change a setting, temperature for example; alone: show all", Session.set),
    "/save": Command(
        "FILE", "write the conversation: FILE.md for reading, FILE.json for --resume",
        Session.save),
    "/page": Command("FILE", "write the HTML of the last answer, for a browser", Session.page),
    "/help": Command("", "show this", Session.help),
    "/quit": Command("", "end the session, as Ctrl-D does", Session.quit),
}
