"""A benchmark folder: numbered pictures in IDC, ISAC, ICRC, MDIUC, PAGES, and what is asked.

    FOLDER/IDC/1.jpg, 2.webp ...     FOLDER/questions.json, if the questions below do not fit
    FOLDER/MDIUC/Answer1.txt         the authors' file with a dialogue, whose questions are asked
"""
import json
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from common.files import open_image
from conversation.rounds import plain
from evaluation.records import digest
from evaluation.released import dialogue_questions
from evaluation.rubrics import BENCHMARKS, PAGES

NAMES = (*BENCHMARKS, PAGES)

# ISAC's question and MDIUC's first three are the paper's; the others are in their manner.
QUESTIONS = {
    "IDC": "Please describe this image in detail, and say what there is to appreciate in it.",
    "ISAC": "Analyze the emotions expressed by the individuals in the images as well as the "
            "emotions felt by the viewer observing them.",
    "ICRC": "Which objects and scenes do you recognise in this image? Name all of them.",
    "MDIUC": (
        "Could you please describe the diagram?",
        "What kind of situation do you think it is in?",
        "Can you tell me what it is doing or preparing to do?",
        "What feeling does it give you, and why?",
        "Can you write a short poem about it?",
    ),
    PAGES: "Write a web page for this picture, as one HTML file.",
}


class Item(NamedTuple):
    """A picture and what is asked about it: one question, or the rounds of a dialogue."""
    benchmark: str
    number: int
    file: Path
    questions: tuple
    checksum: int                                             # of the bytes of the picture

    @property
    def name(self):
        return f"{self.benchmark} {self.number}"


class Said(NamedTuple):
    """What a judge is shown: an item and one model's answers to its questions."""
    item: Item
    answers: list

    @property
    def id(self):
        """The same for models that answer the same, so they share their scores."""
        item = self.item
        return "a" + digest(item.name, item.questions, item.checksum, self.answers)


def numbered_pictures(folder):
    """{number: file} of the pictures 1.jpg, 2.webp ... in a folder, by number.

    Other files are ignored. Raises ValueError if a number occurs twice or if a picture cannot be
    read.
    """
    found = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not (file.stem.isascii() and file.stem.isdigit() and file.is_file()):
            continue
        is_picture = Image.registered_extensions().get(file.suffix.lower()) in Image.OPEN
        try:
            open_image(file)
        except ValueError:
            if is_picture:
                raise
            continue                                          # notes, 1.txt for example
        number = int(file.stem)
        if number in found:
            raise ValueError(f"{file}: picture {number} is there twice; the other one is "
                             f"{found[number].name}")
        found[number] = file
    return dict(sorted(found.items()))


def read_questions(folder, pictures):
    """{benchmark: {number: rounds}}: the folder's questions.json where it says so, else those of
    the authors' Answer1.txt of a dialogue, else QUESTIONS.

    pictures: {benchmark: {number: file}}. In the file each benchmark has a question, a list of
    rounds, or one of both for each number. Raises ValueError that names the place.
    """
    file = folder / "questions.json"
    try:
        given = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    expected = f"expected is an object with the names {', '.join(NAMES)}"
    if not isinstance(given, dict):
        raise ValueError(f"{file}: {expected}, found {type(given).__name__}")
    if given.keys() - set(NAMES):
        raise ValueError(f"{file}: {expected}, found {', '.join(sorted(given))[:100]}")
    return {benchmark: rounds_of(file, benchmark, given.get(benchmark, {}), numbers)
            for benchmark, numbers in pictures.items()}


def rounds_of(file, benchmark, given, numbers):
    """{number: rounds} of one benchmark by what questions.json has for it, {} if it has nothing."""
    names, defaults = {str(number) for number in numbers}, {}
    for number in numbers:
        asked = dialogue_questions(file.parent, number) if benchmark == "MDIUC" else None
        defaults[number] = asked or QUESTIONS[benchmark]
    if not isinstance(given, dict):
        given = dict.fromkeys(names, given)
    unknown = given.keys() - names
    if unknown:
        raise ValueError(f"{file}: {benchmark} has no picture {min(unknown)!r}")
    found = {}
    for number in numbers:
        rounds = given.get(str(number), defaults[number])
        if isinstance(rounds, str):
            rounds = [rounds]
        if not are_questions(rounds):
            raise ValueError(f"{file}: {benchmark} {number} is no question and no list of "
                             "questions")
        found[number] = tuple(rounds)
    return found


def are_questions(rounds):
    """Whether this is a list of texts with something left of each when it stands in a prompt."""
    if not isinstance(rounds, list | tuple) or not rounds:
        return False
    return all(isinstance(text, str) and plain(text) for text in rounds)


def read_items(folder):
    """All items of a benchmark folder, in order. Raises ValueError if there are none."""
    pictures = {benchmark: numbered_pictures(folder / benchmark) for benchmark in NAMES}
    if not any(pictures.values()):
        raise ValueError(f"{folder}: no benchmark folder; expected are numbered pictures in "
                         f"{', '.join(NAMES)}, such as {folder / 'IDC' / '1.jpg'}")
    for benchmark in BENCHMARKS:
        if not pictures[benchmark]:
            print(f"{folder / benchmark}: no numbered pictures, so there is no overall score",
                  file=sys.stderr)
    questions = read_questions(folder, pictures)
    return [Item(benchmark, number, file, questions[benchmark][number],
                 zlib.crc32(file.read_bytes()))
            for benchmark, files in pictures.items() for number, file in files.items()]
