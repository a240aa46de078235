"""What is asked, and what is answered: by models, and in files from elsewhere."""
import argparse
import contextlib
import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import NamedTuple

from artgpt4 import errors_naming
from common.command_line import Misuse, Progress, printable
from common.files import check_file, is_picture, open_image, read_json, read_text
from common.models import TINY, load
from conversation.rounds import SETTINGS, Conversation, plain, read_about

USUAL = {"temperature": 0.0, "seed": 42}                      # so that no score depends on chance
FROZEN = ("config.json", "tokenizer.model", "vision.safetensors", "llama*.safetensors")

RUBRICS = {                                                   # the paper's tables of criteria
    "IDC": ("image depiction capability", (
        "No image description capability",
        "Description does not match real image representation",
        "Partial image description",
        "Complete image description without appreciation information",
        "Complete image description at the human level of appreciation",
        "Complete image description surpassing the human level of appreciation, such as an artist",
    )),
    "ISAC": ("image sentiment analysis capability", (
        "Can't describe the feelings about the picture",
        "Can describe the relevant emotion but no logical proof, for example names a feeling and "
        "nothing in the picture that shows or causes it",
        "Can describe the relevant emotion and justify it, but the description is not perfect",
        "The individuals in the images or the viewer's emotions can be described perfectly and "
        "justified",
        "Can describe all the emotions as an ordinary person and justify them",
        "Can describe all emotions perfectly and justifiably and full of art",
    )),
    "ICRC": ("image content recognition capability", (
        "No image content recognition capability",
        "Some objects/scenes are recognized but with significant errors or omissions",
        "Most objects/scenes are recognized with some errors or omissions",
        "All objects/scenes are recognized with few errors or omissions",
        "All objects/scenes are recognized with high accuracy and speed, comparable to a human "
        "observer",
        "All objects/scenes are recognized with high accuracy, speed, and contextual "
        "understanding, surpassing what a human observer is capable of",
    )),
    "MDIUC": ("multi-round dialogue image understanding capability", (
        "No image understanding capability in the dialogue",
        "Partial image understanding, but unable to carry on the dialogue smoothly",
        "Able to understand the image to some extent and carry on the dialogue with some "
        "coherence, but lacks understanding of some key points",
        "Can understand the image and carry on the dialogue smoothly, but with some minor "
        "misunderstandings or mistakes",
        "Can understand the image and carry on the dialogue smoothly, with accurate understanding "
        "and good coherence",
        "Can understand the image and carry on the dialogue smoothly, with accurate "
        "understanding, good coherence, and creative responses",
    )),
}
BENCHMARKS = tuple(RUBRICS)                                   # a quarter of the overall score each

# ISAC's question is the paper's, MDIUC's first three the release's; the others are in their manner.
QUESTIONS = {
    "IDC": "Please describe this image in detail, and say what there is to appreciate in it.",
    "ISAC": "Analyze the emotions expressed by the individuals in the images as well as the "
            "emotions felt by the viewer observing them.",
    "ICRC": "Which objects and scenes do you recognise in this image? Name all of them.",
    "MDIUC": [
        "Could you please describe the diagram?",
        "What kind of situation do you think it is in?",
        "Can you tell me what it is doing or preparing to do?",
        "What feeling does it give you, and why?",
        "Can you write a short poem about it?",
    ],
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


def digest(*values):
    """Twelve hexadecimal digits that identify the values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_items(folder):
    """All Items of a benchmark folder, in order: its pictures 1.jpg, 2.webp ...; other files are
    ignored. questions.json may replace QUESTIONS. Raises ValueError, naming what is wrong."""
    file = folder / "questions.json"
    questions, items = QUESTIONS | (read_json(file) if file.exists() else {}), []
    unknown = [name for name in questions if name not in BENCHMARKS]
    if unknown:
        raise ValueError(f"{file}: no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    for benchmark, asked in questions.items():
        pictures = [picture for picture in (folder / benchmark).glob("*")
                    if picture.stem.isdecimal() and is_picture(picture)]
        numbers = [int(picture.stem) for picture in pictures]
        each = asked if isinstance(asked, dict) else dict.fromkeys(map(str, numbers), asked)
        if each.keys() - set(map(str, numbers)):
            raise ValueError(f"{file}: {benchmark} has questions about pictures that are not there")
        for number, picture in sorted(zip(numbers, pictures, strict=True)):
            if numbers.count(number) > 1:
                raise ValueError(f"{picture}: picture {number} is there twice")
            open_image(picture)                               # raises before a model is asked
            own = each.get(str(number), QUESTIONS[benchmark])
            rounds = [own] if isinstance(own, str) else own
            if not (isinstance(rounds, list) and rounds
                    and all(isinstance(text, str) and plain(text) for text in rounds)):
                raise ValueError(f"{file}: {benchmark} {number}: no question, or list of questions")
            items.append(Item(benchmark, number, picture, tuple(rounds),
                              zlib.crc32(picture.read_bytes())))
    if not items:
        raise ValueError(f"{folder}: no numbered pictures such as {folder / 'IDC' / '1.jpg'}")
    return items


# ---- Lines of JSON that outlive a kill

def read_records(file, *fields):
    """The objects with these fields in a .jsonl file; [] if there is no such file. Other lines,
    such as one that a kill has cut off, are left out."""
    records = []
    for line in read_text(file).split("\n") if file.exists() else ():
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            record = json.loads(line)
            if record.keys() >= set(fields):
                records.append(record)
    return records


def append_record(file, record):
    """Add a line and wait until it is on the disk. Raises ValueError if the disk refuses it."""
    with errors_naming(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "ab+") as stream:
            if stream.tell() and stream.seek(-1, os.SEEK_END) and stream.read() != b"\n":
                stream.write(b"\n")                           # after a line that was cut off
            stream.write(json.dumps(record).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())


# ---- Answers

class Column(NamedTuple):
    """A model in the report, where its answers come from, and {item name: list of texts}. Several
    of one name are the same model trained with several seeds."""
    name: str
    source: str
    answers: dict


def named_models(args):
    """[(name, weights folder, adapter file or None)] of --weights and --adapter: a model for each
    folder, or for each adapter of one; by default the shipped pair. Raises Misuse."""
    def named(text):                                          # runs call theirs adapter, all alike
        name, _, path = text.rpartition("=")
        stem = Path(path).resolve().stem
        return name or (path if stems.count(stem) > 1 else stem), Path(path)

    stems = [Path(text.rpartition("=")[2]).resolve().stem for text in args.adapter or args.weights]
    if not (args.weights or args.adapter or args.answers):
        return [("ArtGPT-4", TINY, None), ("MiniGPT-4", TINY, TINY / "minigpt4.safetensors")]
    if not args.adapter:
        return [(*named(text), None) for text in args.weights]
    if len(args.weights) > 1:
        raise Misuse("--adapter: all are for one folder; give --weights once")
    _, folder = named(args.weights[0] if args.weights else str(TINY))
    return [(name, folder, adapter) for name, adapter in map(named, args.adapter)]


def dialogue(model, item, settings):
    """The model's answers to an item's questions, a list; each round sees the earlier ones."""
    talk, answers = Conversation(model, **settings), []
    talk.add_image(open_image(item.file))
    for i, question in enumerate(item.questions):
        seed = f"{settings['seed']} {item.name} {i}"          # whatever was asked before it
        talk.set("seed", zlib.crc32(seed.encode()))
        answers.append("".join(talk.answer(question)))
    return answers


def answer_all(items, models, args, settings):
    """[Column] of named_models. What answers.jsonl holds is taken from there; the rest is asked
    now, and added to it item by item. settings: those of a Conversation that are not USUAL."""
    file, columns = args.out / "answers.jsonl", []
    settings = {name: default for name, (_, default, _) in SETTINGS.items()} | USUAL | settings
    how = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    known = {record["id"]: record["answers"] for record in read_records(file, "id", "answers")}
    for name, folder, adapter in models:
        files = [file for pattern in FROZEN for file in sorted(folder.glob(pattern))]
        files.append(adapter or folder / "adapter.safetensors")
        weights = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        made_by = weights, args.int8, args.vision_int8, args.dtype, settings
        ids = {item: digest(made_by, item.name, item.questions, item.checksum) for item in items}
        todo = [item for item in items if ids[item] not in known]
        progress, model = Progress(f"{name}:", len(todo), "items"), None      # one model at a time
        if todo:
            model = load(argparse.Namespace(**vars(args) | {"weights": folder, "adapter": adapter}))
        for done, item in enumerate(todo, start=1):
            known[ids[item]] = dialogue(model, item, settings)
            append_record(file, {
                "id": ids[item], "model": name, "benchmark": item.benchmark, "number": item.number,
                "questions": item.questions, "answers": known[ids[item]]})
            progress.show(done)
        path, knows = os.path.relpath(adapter or folder), printable(read_about(folder)["knows"])
        columns.append(Column(name, f"answered here by {path} ({how}). {knows}",
                              {item.name: known[ids[item]] for item in items}))
    return columns


def written_answers(texts, items):
    """[Column] of the values of --answers, NAME=FILE of JSON lines such as RUN/answers.jsonl has;
    of lines that name a model, those that name this one. Raises ValueError, naming the item."""
    columns = []
    for text in texts:
        name, _, file = text.partition("=")
        if not file:
            raise Misuse(f"--answers {text}: expected is NAME=FILE")
        check_file(file)
        known = {f"{record['benchmark']} {record['number']}": record
                 for record in read_records(Path(file), "benchmark", "number")
                 if record.get("model", name) == name}
        column = Column(name, f"answers from {file}", {})
        for item in items:
            record = known.get(item.name, {})
            answers = record.get("answers", [record.get("answer")])
            asked = record.get("questions", list(item.questions))
            if asked != list(item.questions) or not isinstance(answers, list) or (
                    [type(answer) for answer in answers] != [str] * len(asked)):
                raise ValueError(f"{file}: {item.name}: expected is a line with an answer to each "
                                 f"of its questions, which are {item.questions}")
            column.answers[item.name] = answers
        columns.append(column)
    return columns
