"""Files of a conversation: JSON to resume it, Markdown to read it, the web page of an answer."""
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from conversation.rounds import Round
from conversation.settings import read_settings
from conversation.terminal import clean

# A web page: from its first tag to its end, or to the end of its code block, or of the text
HTML = re.compile(
    r"<(?:!doctype|html|head|title|style|body|main|header|section|article|div|h1|p)\b"
    r".*?(?:</html>|(?=```)|\Z)", re.IGNORECASE | re.DOTALL)


def find_html(text):
    """The web page in an answer, without the fences or the words around it. None if it has none."""
    found = HTML.search(text)
    return found[0].strip() + "\n" if found else None


def to_markdown(conversation, folder, model):
    """The pictures (as links from a folder), the questions as quotations, the answers, and the
    model that gave them."""
    parts = []
    for images, question, answer in [*conversation.rounds, Round(conversation.waiting, "")]:
        for image in images:
            parts.append(f"![{Path(image).name}](<{os.path.relpath(image, folder)}>)")
        if question:
            parts += ["> " + clean(question).replace("\n", "\n> "), answer]
    parts.append(f"*{model}*")
    return clean("\n\n".join(parts)) + "\n"


def to_json(conversation, model):
    """The text of a file that read_json reads. model: the name of the weights."""
    settings = {name: value for name, value in conversation.settings.items() if value is not None}
    rounds = [round._asdict() for round in conversation.rounds]
    saved = {"model": model, "settings": settings, "rounds": rounds,
             "images": conversation.waiting}
    return json.dumps(saved, indent=1) + "\n"


class Saved(NamedTuple):
    """A saved conversation. waiting: the image files that the next question brings. model: the
    name of the weights that answered, or ""."""
    rounds: list
    waiting: list
    settings: dict
    model: str


def field(entry, name, kind, what):
    """A value of a JSON object. Raises ValueError, in words, if it is missing or of another kind.
    kind: str, or list for a list of strings. what: the object in words."""
    if not isinstance(entry, dict):
        raise ValueError(f"{what} should be an object with names and values")
    if name not in entry:
        raise ValueError(f'{what} has no "{name}"')
    value = entry[name]
    strings = value if isinstance(value, list) else [value]
    if not isinstance(value, kind) or not all(isinstance(text, str) for text in strings):
        raise ValueError(f'{what}: "{name}" should be {KINDS[kind]}')
    return value


KINDS = {str: "a text", list: "a list of texts"}


def read_saved(text):
    """Saved of the text of a JSON file. Raises ValueError, in words."""
    try:
        saved = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON in line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("lists are nested too deeply") from None
    waiting = field(saved, "images", list, "the file")
    if not isinstance(saved.get("rounds"), list):
        raise ValueError('"rounds" should be a list')
    rounds = []
    for i, entry in enumerate(saved["rounds"], start=1):
        what = f"round {i}"
        rounds.append(Round(field(entry, "images", list, what),
                            field(entry, "question", str, what),
                            field(entry, "answer", str, what)))
    model = field({"model": ""} | saved, "model", str, "the file")
    return Saved(rounds, waiting, read_settings(saved.get("settings")), model)


def read_json(file):
    """Saved of a file that /save wrote. Raises ValueError, naming the file."""
    try:
        return read_saved(Path(file).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        reason = "no text" if isinstance(error, UnicodeDecodeError) else error
        raise ValueError(f"{file}: not a conversation that /save FILE.json wrote: "
                         f"{reason}") from None


def replaced_images(saved, replacements):
    """Saved with other image files. replacements: texts OLD=NEW; OLD is a saved path or its last
    part, and an empty NEW leaves the picture out. Raises ValueError for an OLD that is none of the
    saved pictures."""
    rounds, waiting = saved.rounds, saved.waiting
    for text in replacements:
        old, _, new = text.partition("=")

        def change(files, old=old, new=new):
            changed = [new if old in (file, Path(file).name) else file for file in files]
            return [file for file in changed if file]
        before = [file for files in (*(r.images for r in rounds), waiting) for file in files]
        if change(before) == before:
            names = ", ".join(Path(file).name for file in before)
            raise ValueError(f"--replace {text}: the pictures of this conversation are {names}")
        rounds = [round._replace(images=change(round.images)) for round in rounds]
        waiting = change(waiting)
    return saved._replace(rounds=rounds, waiting=waiting)
