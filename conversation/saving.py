"""Files of a conversation: JSON to resume it, Markdown to read it, the web page of an answer."""
import argparse
import json
import os
import re
from pathlib import Path

from conversation.rounds import SETTINGS, Round
from conversation.terminal import clean

# A web page: from its first tag to its end, or to the end of its code block, or of the text
HTML = re.compile(
    r"<(?:!doctype|html|head|title|style|body|main|header|section|article|div|h1|p)\b"
    r".*?(?:</html>|(?=```)|\Z)", re.IGNORECASE | re.DOTALL)


def find_html(text):
    """The web page in an answer, without the fences or the words around it. None if it has none."""
    found = HTML.search(text)
    return found[0].strip() + "\n" if found else None


def to_markdown(conversation, folder):
    """The pictures (as links from a folder), the questions as quotations, the answers."""
    parts = []
    for images, question, answer in [*conversation.rounds, Round(conversation.waiting, "")]:
        for image in images:
            parts.append(f"![{Path(image).name}](<{os.path.relpath(image, folder)}>)")
        if question:
            parts += ["> " + clean(question).replace("\n", "\n> "), answer]
    return clean("\n\n".join(parts)) + "\n"


def to_json(conversation):
    """The text of a file that read_json reads."""
    settings = {name: value for name, value in conversation.settings.items() if value is not None}
    rounds = [round._asdict() for round in conversation.rounds]
    saved = {"settings": settings, "rounds": rounds, "images": conversation.waiting}
    return json.dumps(saved, indent=1) + "\n"


def texts(values):
    """The values as a list. Raises TypeError if one of them is not a string."""
    values = list(values)
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} should be a string")
    return values


def read_json(file):
    """Read a saved conversation -> its rounds, the image files that the next question brings, and
    its settings. Raises ValueError, naming the file, if it cannot be read as one."""
    try:
        saved = json.loads(Path(file).read_text(encoding="utf-8"))
        rounds = []
        for entry in saved["rounds"]:
            question, answer = texts((entry["question"], entry["answer"]))
            rounds.append(Round(texts(entry["images"]), question, answer))
        waiting = texts(saved["images"])
        settings = {name: SETTINGS[name].parse(str(value))
                    for name, value in saved["settings"].items()}
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError,
            argparse.ArgumentTypeError) as error:
        raise ValueError(f"{file}: not a conversation that /save FILE.json wrote "
                         f"({error!r})") from None
    return rounds, waiting, settings
