"""Public checkpoints, opened and checked, their tensors still in their files.

Tensors are mapped from their files and read when they are asked for: a file may be larger than the
memory. torch.load runs with weights_only=True, so no code of a pickle is run. The checksums of an
archive are compared when the first of its tensors is read.
"""
import math
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial, reduce
from pathlib import Path

import torch
from safetensors.torch import load_file

from common.files import check_file, read_json, what_it_is
from conversion.formats import FORMATS, META_SETTINGS, llama_sizes, parts_of, their_names

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Stored:
    """A tensor that has not been read yet. `where` names its file and itself, for messages."""
    where: str
    shape: tuple
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize


# ---- A file


def open_file(file):
    """The tensors of a file, {name: Stored}; recognised by content, not by its suffix. Raises
    ValueError, naming it, for what is no whole file of tensors."""
    check_file(file)
    with open(file, "rb") as opened:
        head = opened.read(9)
    is_archive = head.startswith(b"PK")                       # else of torch before 1.6
    try:
        if head[8:] == b"{":
            loaded = load_file(file)                          # safetensors, mapped
        else:
            if is_archive and any(each.compress_type for each in zipfile.ZipFile(file).infolist()):
                raise ValueError("compressed members")
            with warnings.catch_warnings(action="ignore"):
                loaded = torch.load(file, map_location="cpu", mmap=is_archive, weights_only=True)
    except Exception as error:                                # a damaged file can raise anything
        code = re.search(r"GLOBAL (\S+)", str(error))
        problem = "damaged, cut short, packed again, or no checkpoint"
        if code:
            problem = f"holds {code[1]}, which is no plain value; nothing of it was run"
        elif not head.startswith((b"PK", b"\x80")):
            problem = what_it_is(file) or problem
        raise ValueError(f"{file}: {problem}") from None
    loaded = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    tensors = loaded.items() if isinstance(loaded, dict) else [(None, torch.empty(0))]
    tensors = {name: value for name, value in tensors if isinstance(value, torch.Tensor)}
    for name, value in tensors.items():
        if not isinstance(name, str) or value.is_meta or value.layout != torch.strided:
            raise ValueError(f"{file}: expected dense tensors by name, as state_dict() has them")

    @cache
    def compare_checksums():                                  # of the whole file, once
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"{file}: {damaged} does not match its checksum; download it again")

    def read(tensor):
        if is_archive:
            compare_checksums()
        return tensor.contiguous()
    return {name: Stored(f"{file}: {name}", tuple(tensor.shape), tensor.dtype,
                         partial(read, tensor)) for name, tensor in tensors.items()}


# ---- A folder


def open_folder(folder, flag):
    """The tensors of a model in transformers' format, {name: Stored}: safetensors or .bin, one
    file or the shards of an index. Of BLIP-2's shards only those that `flag` needs are read.
    Raises ValueError if one is missing."""
    problem = f"{folder}: no model.safetensors, no pytorch_model.bin, and no index of their shards"
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{whole}.index.json"
        if not index.exists() and (folder / whole).exists():
            return open_file(folder / whole)
        if not index.exists():
            continue
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not all(
                isinstance(shard, str) and Path(shard).name == shard for shard in where.values()):
            raise ValueError(f"{index}: no weight_map with names of files beside it")
        kind = recognise(where, flag)
        unused = FORMATS[kind].unused if kind else ""
        needed = {name: folder / shard for name, shard in where.items()
                  if not re.fullmatch(unused, name)}
        missing = [file for file in needed.values() if not file.exists()]
        if not missing:
            return open_shards(needed)
        problem = f"{index}: names {missing[0].name}, which is not there; download it too"
    raise ValueError(problem)


def open_shards(where):
    """The tensors of shards, {name: Stored}; where is {name: file}."""
    tensors = {}
    for file in sorted(set(where.values())):
        found = open_file(file)
        for name in {name for name in where if where[name] == file} | found.keys():
            if name not in found or name in tensors or where.get(name, file) != file:
                raise ValueError(f"{file}: {name} is not in the shard that the index says")
        tensors |= found
    return tensors


# ---- LLaMA as Meta released it: a matrix is split over all shards


def half_split(weight, head_dim):
    """Rows of q or k (heads * head_dim, D), reordered for transformers' rotary positions.

    Meta rotates the pairs of rows (0, 1), (2, 3), ...; transformers (i, i + head_dim / 2).
    """
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).reshape(weight.shape)


def joined(name, parts, head_dim):
    """The Stored of one tensor, from its part in each shard. Raises ValueError if the parts are not
    of one model."""
    first, is_norm = parts[0], len(parts[0].shape) != 2       # which every shard holds whole
    is_rotated = name.endswith(("wq.weight", "wk.weight"))
    dim = int(name.endswith(("tok_embeddings.weight", "wo.weight", "w2.weight")))
    for part in parts[1:]:
        fits = len(part.shape) == len(first.shape) and part.dtype == first.dtype and (
            is_norm or part.shape[1 - dim] == first.shape[1 - dim])
        if fits and (is_norm or is_rotated):
            fits = torch.equal(part.read(), first.read()) == is_norm
        if not fits:
            raise ValueError(f"{part.where}: does not belong to {first.where}: they are shards of "
                             "different models, or copies")
    if is_norm:
        return first

    def read():
        weight = torch.cat([part.read() for part in parts], dim)
        return half_split(weight, head_dim) if is_rotated else weight
    shape = list(first.shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return Stored(first.where, tuple(shape), first.dtype, read)


def open_meta(folder):
    """LLaMA in Meta's format -> its tensors {name: Stored} and its settings, in config.json's
    names. Raises ValueError for shards that are no whole model."""
    files, shards = sorted(folder.glob("consolidated*")), []
    for i, file in enumerate(files):
        if file.name != f"consolidated.{i:02d}.pth":
            raise ValueError(f"{file}: expected consolidated.{i:02d}.pth, and no other")
        shards.append(open_file(file))
        if shards[i].keys() != shards[0].keys():
            raise ValueError(f"{file}: holds other tensors than {files[0].name}")
    file = folder / "params.json"
    values = {META_SETTINGS.get(key, key): value for key, value in read_json(file).items()}
    values["model_type"] = "llama"

    def rows(name):                                           # of all shards together
        return sum(max(shard[name].shape[:1], default=0) for shard in shards if name in shard)
    if values.get("vocab_size") in (None, -1):
        values["vocab_size"] = rows("output.weight")
    values["intermediate_size"] = rows("layers.0.feed_forward.w1.weight")
    if rows("layers.0.attention.wq.weight") != values.get("hidden_size"):
        raise ValueError(f"{folder}: {len(shards)} shards are not the model of params.json")
    sizes = llama_sizes(values, file)
    head_dim = sizes["llama_width"] // sizes["llama_heads"]
    return {name: joined(name, [shard[name] for shard in shards], head_dim)
            for name in shards[0]}, values


# ---- Any checkpoint


@dataclass
class Checkpoint:
    """An opened checkpoint. kind: a key of FORMATS. tensors: {name: Stored}. config: the values of
    config_file, {} for a single file. tokenizer: the path of its tokenizer.model, if it has one."""
    path: Path
    kind: str
    tensors: dict
    config: dict
    config_file: Path
    tokenizer: Path

    def shape(self, name, dims=2):
        """The shape of the tensor that artgpt4.py calls `name`. Raises ValueError if it is missing
        or does not have `dims` dimensions."""
        source = their_names(self.kind, name)[0]
        shape = self.tensors[source].shape if source in self.tensors else None
        if shape is None or len(shape) != dims:
            found = "missing" if shape is None else f"{shape}; expected {dims} dimensions"
            raise ValueError(f"{self.path}: {source} is {found}")
        return shape

    def count(self, name):
        """The number of blocks: the highest index of any name + 1. A block of which only a part is
        there counts, so that the rest is missed. name: a tensor of artgpt4.py, in block 0."""
        prefix = their_names(self.kind, name)[0].partition(".0.")[0]
        found = [re.match(re.escape(prefix) + r"\.(\d{1,3})\.", name) for name in self.tensors
                 if not re.fullmatch(FORMATS[self.kind].unused, name)]
        return max((int(match[1]) + 1 for match in found if match), default=0)


def recognise(names, flag):
    """The key of FORMATS to which public names of tensors belong, or None. One of the formats that
    `flag` takes, if there is one: InstructBLIP's folder is three things."""
    kinds = [kind for kind, known in FORMATS.items() if known.marker in names]
    return next((kind for kind in kinds if flag in FORMATS[kind].flags), (kinds or [None])[0])


def open_checkpoint(path, flag):
    """The Checkpoint at `path`. Raises ValueError if it is not of a kind that `flag` takes, a flag
    of convert_weights.py."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    config, config_file = {}, path / "config.json"
    if any(path.glob("consolidated*")):
        config_file = path / "params.json"
        tensors, config = open_meta(path)
    elif path.is_dir():
        tensors, config = open_folder(path, flag), read_json(config_file)
    else:
        tensors = open_file(path)
    kind, norm = recognise(tensors, flag), tensors.get("model.norm.weight")
    if kind == "llama" and norm is not None and norm.read().float().abs().mean() < 0.1:
        kind = "delta"                    # a model's norm is near 1, the difference of two near 0
    if kind is None or flag not in FORMATS[kind].flags:
        expected = " or ".join(known.what for known in FORMATS.values() if flag in known.flags)
        raise ValueError(f"{path}: {FORMATS[kind].what if kind else 'no known checkpoint'}; "
                         f"for --{flag} expected {expected}")
    if not path.is_dir() and kind not in ("eva", "blip2", "artgpt4", "minigpt4"):
        raise ValueError(f"{path}: a file of {FORMATS[kind].what}; give its folder")
    tokenizer = path / "tokenizer.model"
    if kind == "meta" and not tokenizer.exists():
        tokenizer = path.parent / "tokenizer.model"           # Meta keeps one for all sizes
    return Checkpoint(path, kind, tensors, config, config_file, tokenizer)


# ---- From their names to ours


def take(checkpoint, shapes, config, only=""):
    """The tensors of a checkpoint whose names in artgpt4.py begin with `only`, {name: Stored}.

    shapes: {name: shape} of all that the checkpoint may hold. All get one dtype, the widest of
    them, but norms of LLaMA, which compute in float32. Raises ValueError, naming them, for tensors
    that are missing, unknown, or of the wrong shape or dtype.
    """
    known, taken = set(), {}
    for name, shape in shapes.items():
        parts = parts_of(checkpoint.kind, name)
        known.update(source for source, _, _ in parts)
        if parts and name.startswith(only):
            rows = [shape[0] // len(parts)] * len(parts)
            if len(parts) == 3:                               # queries, keys, values
                keys = (shape[0] - config.llama_width) // 2
                rows = [config.llama_width, keys, keys]
            taken[name] = [share(checkpoint, part, (row, *shape[1:]))
                           for part, row in zip(parts, rows, strict=True)]
    form = FORMATS[checkpoint.kind]
    for name in checkpoint.tensors:
        if name not in known and not re.fullmatch(form.unused, name):
            raise ValueError(f"{checkpoint.path}: {name} is not part of {form.what}")
    alone = {name for name in taken if re.match(r"llama\..*norm\.weight", name)}
    dtypes = [part.dtype for name in taken.keys() - alone for part in taken[name] if part.dtype]
    widest = reduce(torch.promote_types, dtypes)
    return {name: fused(parts, shapes[name], parts[0].dtype if name in alone else widest)
            for name, parts in taken.items()}


def share(checkpoint, part, shape):
    """The Stored of one part, of `shape`: a tensor of the checkpoint, a share of one, or zeros."""
    source, number, of = part
    if source == "zeros":
        return Stored(source, shape, None, partial(torch.zeros, shape))
    if source not in checkpoint.tensors:
        raise ValueError(f"{checkpoint.path}: {source} is missing")
    stored, whole = checkpoint.tensors[source], (shape[0] * of, *shape[1:])
    if stored.shape != whole or stored.dtype not in FLOATS:
        raise ValueError(f"{stored.where}: {stored.shape} of {stored.dtype}; expected {whole} of "
                         "float16, bfloat16 or float32")

    def read():
        values = stored.read().chunk(of)[number - 1]
        low, high = values.aminmax()
        if not (low.isfinite() and high.isfinite()):
            raise ValueError(f"{stored.where}: holds NaN or infinity; the file is damaged")
        if low == high == 0 and not source.endswith(("bias", ".up.weight")):
            raise ValueError(f"{stored.where}: is 0 in all places; the file is damaged")
        return values
    return replace(stored, shape=shape, read=read)


def fused(parts, shape, dtype):
    """The Stored of parts one after another along the first dimension, in a dtype."""
    def read():
        values = [part.read().to(dtype) for part in parts]
        return values[0] if len(values) == 1 else torch.cat(values)
    return Stored(parts[0].where, shape, dtype, read)


def take_adapter(checkpoint, config, shapes):
    """The trainable parameters in ArtGPT-4.pth, or the projection in pretrained_minigpt4.pth,
    {name: Stored}. shapes: those of all trainable parameters."""
    width = checkpoint.shape("proj.weight")[1]
    if width == 4 * config.vit_width:
        raise ValueError(f"{checkpoint.path}: of MiniGPT-4 for Llama 2 or MiniGPT-v2, which have "
                         f"no Q-Former but join four patches ({width} wide): another model")
    return take(checkpoint, shapes, config, "proj." if checkpoint.kind == "minigpt4" else "")
