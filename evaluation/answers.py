"""The models of a comparison, and what they answer; no answer is asked for twice."""
import argparse
import zlib
from pathlib import Path
from typing import NamedTuple

import torch

from common.files import open_image, weight_files
from common.loading import device, load_model
from common.progress import Progress
from conversation.rounds import SETTINGS, Conversation
from evaluation.records import append_record, digest, read_records

DEFAULTS = {"temperature": 0.0, "seed": 42}                   # so that no score depends on chance
EDGE = 1 << 20                                                # bytes of a file that are compared


def add_answer_flags(parser):
    """The flags of answers: chat.py's settings, and how a model is loaded."""
    group = parser.add_argument_group("answers")
    for name, (kind, default, what) in SETTINGS.items():
        default = DEFAULTS.get(name, default)
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default,
                           help=f"{what}; default: {default}",
                           metavar="N" if isinstance(default, int) else "X")
    group.add_argument("--device", type=device,
                       default="cuda" if torch.cuda.is_available() else "cpu",
                       help="cuda, cuda:1, cpu, ...; default: cuda if there is one")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                       help="default: on a CPU float32 if half of its memory holds that, else as "
                            "stored")
    group.add_argument("--int8", action="store_true",
                       help="the language model's matrices in int8")
    group.add_argument("--vision-int8", action="store_true", help="the ViT's matrices in int8")


def answer_settings(args):
    """{name: value} of the settings of Conversation in parsed flags."""
    return {name: getattr(args, name) for name in SETTINGS}


# ---- Models


class Weights(NamedTuple):
    """A model to compare. path: a weights folder, or an adapter for the weights in `folder`."""
    name: str
    path: Path
    folder: Path

    def load(self, args):
        """The model, on the device and in the dtype that the flags say."""
        adapter = None if self.path == self.folder else self.path
        flags = vars(args) | {"weights": self.folder, "adapter": adapter}
        return load_model(argparse.Namespace(**flags))

    def version(self):
        """What tells these weights from others: of each file the size, and checksums of its first
        and last MiB."""
        frozen = weight_files(self.folder, adapter=self.path == self.folder)
        found = []
        for file in (self.folder / "config.json", *frozen, self.path):
            if not file.is_file():
                continue
            size = file.stat().st_size
            with open(file, "rb") as stream:
                begin = stream.read(EDGE)
                stream.seek(max(0, size - EDGE))
                found.append((size, zlib.crc32(begin), zlib.crc32(stream.read())))
        return found


def default_name(path):
    """A model's name when none is given: that of its folder, or of an adapter file."""
    if path.is_dir():
        return path.resolve().name
    if path.stem == "adapter":                                # RUN/adapter.safetensors
        return path.resolve().parent.name
    return path.stem


def named_weights(texts, base):
    """[Weights] of the values of --weights, each NAME=PATH or PATH.

    base: the weights folder of adapters that do not lie in one. A NAME that is given several times
    is one model, trained with several seeds. Raises ValueError for a path that does not exist, and
    for two models with the same default name.
    """
    found = []
    for text in texts:
        name, path = "", Path(text)
        if "=" in text and not path.exists():
            name, _, rest = text.partition("=")
            name, path = name.strip(), Path(rest)
        if path.name == "minigpt4.safetensors" and not path.exists():
            raise ValueError(
                f"{path}: no such file; train it: python train.py --stage 1 --mode minigpt4 --out "
                "runs/mini1, then python train.py --stage 2 --mode minigpt4 --init "
                "runs/mini1/adapter.safetensors --out runs/mini2, and copy "
                "runs/mini2/adapter.safetensors to it")
        if not path.exists():
            raise ValueError(f"{path}: no such weights folder or adapter file")
        folder = path if path.is_dir() else path.resolve().parent
        if not path.is_dir() and not (folder / "config.json").is_file():
            folder = base
        default = default_name(path)
        same_name = not name and any(other.name == default for other in found)
        if same_name or any(other.path == path for other in found):
            raise ValueError(f"--weights {text}: there is a model {default} already; give each a "
                             "name, NAME=PATH")
        found.append(Weights(name or default, path, folder))
    return found


# ---- Answers


def dialogue(model, item, settings):
    """The model's answers to an item's questions, a list; each round sees the earlier ones."""
    talk, answers = Conversation(model, **settings), []
    talk.add_image(open_image(item.file))
    for i, question in enumerate(item.questions):
        seed = f"{settings['seed']} {item.name} {i}"          # whatever was asked before it
        talk.set("seed", zlib.crc32(seed.encode()))
        answers.append("".join(talk.answer(question)))
    return answers


def answer_all(items, models, args, file):
    """[{item name: answers} for each of models].

    What `file` holds is taken from there. The rest is asked now and added to the file, item by
    item.
    """
    settings = answer_settings(args)
    loaded = [args.int8, args.vision_int8, args.dtype]
    known = {record["id"]: record["answers"] for record in read_records(file, ("id", "answers"))}
    ids = []                                                  # {item name: id} of each model
    for weights in models:
        version = weights.version()
        ids.append({item.name: digest(version, loaded, settings, item.name, item.questions,
                                      item.checksum) for item in items})
    wanted = {id for row in ids for id in row.values()}
    done = len(wanted & known.keys())
    progress = Progress("answers", len(wanted), "items", before=done)
    for weights, row in zip(models, ids, strict=True):
        todo = [item for item in items if row[item.name] not in known]
        if not todo:
            continue
        model = weights.load(args)
        for item in todo:
            id, answers = row[item.name], dialogue(model, item, settings)
            append_record(file, {
                "id": id, "model": weights.name, "weights": str(weights.path),
                "benchmark": item.benchmark, "number": item.number, "picture": item.file.name,
                "questions": item.questions, "answers": answers})
            known[id] = answers
            done += 1
            progress.show(done, f"{weights.name}, {item.name}")
        del model                                             # one at a time is in memory
    return [{name: known[id] for name, id in row.items()} for row in ids]
