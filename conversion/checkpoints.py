"""A whole checkpoint, a file or a folder, recognised by its tensors."""
import re
from dataclasses import dataclass
from pathlib import Path

from common.files import check_shards, read_json, shard_files
from conversion.formats import FORMATS, their_names
from conversion.language_models import open_meta
from conversion.tensor_files import open_file, read_head


@dataclass
class Checkpoint:
    """An opened checkpoint.

    kind: a key of FORMATS. tensors: {name: Stored}. config: the values of its config.json, {} for
    a single file. tokenizer: the path of its tokenizer.model, which need not exist.
    """
    path: Path
    kind: str
    tensors: dict
    config: dict
    tokenizer: Path

    def shape(self, name, dims=2):
        """The shape of the tensor that artgpt4.py calls `name`. Raises ValueError if it is missing
        or does not have `dims` dimensions."""
        source = their_names(self.kind, name)[0]
        if source not in self.tensors:
            raise ValueError(f"{self.path}: {source} is missing")
        shape = self.tensors[source].shape
        if len(shape) != dims:
            raise ValueError(f"{self.path}: {source} is {shape}; expected {dims} dimensions")
        return shape

    def count(self, name):
        """The number of blocks: the highest index of any name + 1. A block of which only a part is
        there counts, so that the rest is missed. name: a tensor of artgpt4.py, with {i}."""
        prefix = their_names(self.kind, name.replace("{i}", "0"))[0].partition(".0.")[0]
        block = re.compile(re.escape(prefix) + r"\.(\d{1,9})\.")
        found = [block.match(name) for name in self.tensors
                 if not re.fullmatch(FORMATS[self.kind].unused, name)]
        return max((int(match[1]) + 1 for match in found if match), default=0)

    @property
    def config_file(self):
        """Where `config` comes from, for messages."""
        is_meta = any(self.path.glob("consolidated.*.pth"))
        return self.path / ("params.json" if is_meta else "config.json")


def needed(names):
    """Of the names in an index, those that conversion reads: from BLIP-2 not the language model,
    whose shards need not be there."""
    kind = recognise(dict.fromkeys(names))
    unused = FORMATS[kind].unused if kind else ""
    return [name for name in names if not re.fullmatch(unused, name)]


def weight_files(folder):
    """The files of a model in transformers' format, and {name: file} of its index or None.

    One file, or the needed ones of the shards that an index lists. safetensors are preferred to
    .bin. Raises ValueError if there are none or a shard is missing.
    """
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{whole}.index.json"
        if index.is_file():
            where = shard_files(index, needed)
            return sorted(set(where.values())), where
        if (folder / whole).is_file():
            return [folder / whole], None
    raise ValueError(f"{folder}: no model.safetensors and no pytorch_model.bin, "
                     "nor an index of their shards")


def open_folder(folder):
    """The tensors of a model in transformers' format, {name: Stored}. Raises ValueError for one
    that is in two shards, or not in that of the index."""
    files, where = weight_files(folder)
    opened = {file: open_file(file) for file in files}
    check_shards(opened, where)
    return {name: tensor for tensors in opened.values() for name, tensor in tensors.items()}


def recognise(tensors):
    """The key of FORMATS to which tensors under their public names belong, or None. From names
    alone, with None for the tensors, a delta is not recognised."""
    kinds = [kind for kind, known in FORMATS.items() if known.marker in tensors]
    if not kinds:
        return None
    norm = tensors.get("model.norm.weight")
    if kinds[0] == "llama" and norm is not None and norm.read().float().abs().mean() < 0.1:
        return "delta"                    # a model's norm is near 1, the difference of two near 0
    return kinds[0]


def open_checkpoint(path, *kinds):
    """The Checkpoint at `path`. Raises ValueError if it is not of one of `kinds`."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    config = {}
    if any(path.glob("consolidated.*.pth")):
        kind = "meta"
        tensors, config = open_meta(path)
    else:
        tensors = open_folder(path) if path.is_dir() else open_file(path)
        kind = recognise(tensors)
    if kind not in kinds:
        what = f"this is {FORMATS[kind].what}" if kind else "not a known checkpoint"
        expected = " or ".join(FORMATS[each].what for each in kinds)
        raise ValueError(f"{path}: {what}; expected {expected}")
    if kind in ("llama", "delta") and not path.is_dir():
        raise ValueError(f"{path}: a file of a language model; "
                         "give its folder, with config.json and tokenizer.model")
    if path.is_dir() and kind != "meta":
        config = read_json(path / "config.json")
    return Checkpoint(path, kind, tensors, config, find_tokenizer(path, kind))


def find_tokenizer(path, kind):
    """The path of a checkpoint's tokenizer.model. Raises ValueError if it is something else."""
    tokenizer = path / "tokenizer.model"
    if kind == "meta" and not tokenizer.exists():
        tokenizer = path.parent / "tokenizer.model"           # Meta keeps one for all sizes
    if tokenizer.exists():
        read_head(tokenizer)
    return tokenizer
