"""Public checkpoints, opened and checked, their tensors still in their files.

A tensor is mapped from its file and read when it is asked for: a file may be larger than the
memory. torch.load runs with weights_only=True, so no code of a pickle is run. The checksums of an
archive are compared when its values are first read.
"""
import io
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial, reduce
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.files import check_file, read_json, what_it_is
from conversion.formats import (
    FORMATS,
    META,
    META_SETTINGS,
    llama_sizes,
    parts_of,
    their_names,
)


@dataclass
class Stored:
    """A tensor that has not been read yet. `where` names its file and itself, for messages."""
    where: str
    shape: tuple
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


def in_memory(where, tensor):
    """The Stored of a tensor that is in memory, or mapped from a file without checksums."""
    return Stored(where, tuple(tensor.shape), tensor.dtype, tensor.detach)


# ---- One file


def open_file(file):
    """The tensors of a file, {name: Stored}; recognised by content, not by its suffix. Raises
    ValueError, naming it, for what is no whole file of tensors."""
    check_file(file)
    with open(file, "rb") as opened:
        head = opened.read(10)
    if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < file.stat().st_size:
        try:
            tensors = load_file(file)                         # mapped
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ValueError(f"{file}: damaged, or cut short ({error})") from None
        return {name: in_memory(f"{file}: {name}", tensor) for name, tensor in tensors.items()}
    if head.startswith(b"PK"):
        return open_archive(file)
    if not head.startswith(b"\x80"):
        raise ValueError(f"{file}: {what_it_is(file) or 'no checkpoint, or cut short'}")
    tensors = {}
    for name, tensor in load_torch(file, file).items():       # of torch before 1.6: no checksums
        if tensor.nbytes != tensor.untyped_storage().nbytes():
            raise ValueError(f"{file}: {name} does not fill its storage; its sizes are damaged")
        tensors[name] = in_memory(f"{file}: {name}", tensor)
    return tensors


def load_torch(file, source, device="cpu"):
    """{name: tensor} of what torch.save wrote to `source`, which comes from `file`."""
    try:
        with warnings.catch_warnings(action="ignore"):
            loaded = torch.load(source, map_location=device, weights_only=True)
    except Exception as error:                                # a damaged pickle can raise anything
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = "damaged, cut short, or no checkpoint"
        if found:
            what = f"holds {found[1]}, which is no plain value; refused, nothing of it was run"
        raise ValueError(f"{file}: {what}") from None
    values = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: holds no tensors by name; expected a state_dict")
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or tensor.layout != torch.strided or tensor.is_quantized or (
                tensor.is_meta and device == "cpu"):
            raise ValueError(f"{file}: {name} is no dense tensor with a name")
    return tensors


def open_archive(file):
    """The tensors of a zip archive of torch.save, {name: Stored}.

    torch.load reads a copy in memory, whose members that hold values are empty. Where a storage
    begins in that copy tells which member it is; its bytes lie where the archive says.
    """
    copy, sections = io.BytesIO(), {}                         # {name: (first byte, end, CRC-32)}
    try:
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as empty:
            names = [member.filename for member in archive.infolist()]
            if len(set(names)) < len(names):
                raise zipfile.BadZipFile("two members have one name")
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{file}: {member.filename} is compressed inside the archive; "
                                     "load the file with torch and torch.save it again")
                folder, _, name = member.filename.partition("/")
                if name.startswith("data/"):
                    start = data_start(archive.fp, member)
                    sections[name] = start, start + member.file_size, member.CRC
                    empty.writestr(f"copy/{name}", b"")
                elif name in ("data.pkl", "version", "byteorder"):
                    content = archive.read(member)            # this compares its checksum
                    if name == "byteorder" and content != b"little":
                        raise ValueError(f"{file}: of a big-endian machine, which is not supported")
                    empty.writestr(f"copy/{name}", content)
            starts = {data_start(copy, member): member.filename.partition("/")[2]
                      for member in empty.infolist()}
    except (zipfile.BadZipFile, EOFError, struct.error, OSError, UnicodeDecodeError, RuntimeError,
            NotImplementedError, OverflowError) as error:
        raise ValueError(f"{file}: damaged, cut short, or no checkpoint ({error})") from None
    copy.seek(0)
    content = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)

    @cache
    def section(name):
        start, end, crc = sections[name]
        if zlib.crc32(content[start:end].numpy()) != crc:
            raise ValueError(f"{file}: damaged: {name} of the archive does not match its checksum; "
                             "download the file again")
        return content[start:end]

    tensors = {}
    for name, tensor in load_torch(file, copy, "meta").items():
        storage = tensor.untyped_storage()
        member = starts.get(getattr(storage, "_checkpoint_offset", None))
        start, end, _ = sections.get(member, (0, -1, 0))
        if end > len(content) or storage.nbytes() != end - start:
            raise ValueError(f"{file}: damaged: the archive has no values of {name}")
        tensors[name] = Stored(f"{file}: {name}", tuple(tensor.shape), tensor.dtype,
                               partial(read_part, partial(section, member), tensor))
    return tensors


def read_part(read_bytes, tensor):
    """The values of a tensor on "meta", from the bytes of its storage."""
    values = read_bytes()
    size = tensor.dtype.itemsize
    values = values[:len(values) // size * size]
    if values.storage_offset() % size:                        # an archive that was packed again
        values = values.clone()
    values = values.view(tensor.dtype)
    return values.as_strided(tensor.shape, tensor.stride(),
                             values.storage_offset() + tensor.storage_offset())


def data_start(opened, member):
    """Where the bytes of a zip member begin: behind its own header, whose length varies."""
    opened.seek(member.header_offset)
    header = opened.read(30)
    if header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no header of {member.filename}")
    return member.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))


# ---- A folder


def read_index(index, flag):
    """{name: file} of the shards in an index that are read for a flag of convert_weights.py."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{index}: no weight_map")
    for name, shard in where.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or Path(shard).name != shard:
            raise ValueError(f"{index}: {name} is in {json.dumps(shard)}; "
                             "expected the name of a file beside it")
    kind = recognise(where, flag)
    unused = FORMATS[kind].unused if kind else ""             # BLIP-2's language model: 40 GB
    return {name: index.with_name(shard) for name, shard in where.items()
            if not re.fullmatch(unused, name)}


def open_folder(folder, flag):
    """The tensors of a model in transformers' format, {name: Stored}, as safetensors or .bin, one
    file or shards. Raises ValueError if one is missing or does not hold what the index says."""
    problem = f"{folder}: no model.safetensors, no pytorch_model.bin, and no index of their shards"
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{whole}.index.json"
        if (folder / whole).exists() and not index.exists():
            return open_file(folder / whole)
        if not index.exists():
            continue
        where = read_index(index, flag)
        missing = [file for file in where.values() if not file.exists()]
        if not missing:
            return open_shards(where)
        problem = f"{index}: names {missing[0].name}, which is not there; download it too"
    raise ValueError(problem)


def open_shards(where):
    """The tensors of shards, {name: Stored}; where is {name: file}."""
    opened, tensors = {file: open_file(file) for file in sorted(set(where.values()))}, {}
    for file, found in opened.items():
        for name in found:
            if where.get(name, file) != file or name in tensors:
                raise ValueError(f"{file}: {name} is also in another shard, or not there by the "
                                 "index")
        tensors |= found
    for name, file in where.items():
        if name not in opened[file]:
            raise ValueError(f"{file}: {name} is not in it, but the index says so")
    return tensors


# ---- LLaMA as Meta released it, under transformers' names


def half_split(weight, head_dim):
    """Rows of q or k (heads * head_dim, D), reordered for transformers' rotary positions.

    Meta rotates the pairs of rows (0, 1), (2, 3), ...; transformers (i, i + head_dim / 2).
    """
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).reshape(weight.shape)


def joined(name, parts, head_dim):
    """The Stored of one tensor, from its part in each shard. name: Meta's, with {i} for the block.
    Raises ValueError if the parts do not fit together, or if one is a copy of another."""
    _, dim = META.get(name, (name, None))
    first, shape = parts[0], list(parts[0].shape)
    for part in parts[1:]:
        if part.shape != first.shape or part.dtype != first.dtype:
            raise ValueError(f"{part.where}: {part.shape}, {part.dtype}; it does not fit to "
                             f"{first.where}: {first.shape}, {first.dtype}")
        if dim is None and not torch.equal(part.read(), first.read()):
            raise ValueError(f"{part.where}: differs from {first.where}, so the two are shards of "
                             "different models")
        if name.endswith(".wq") and torch.equal(part.read(), first.read()):
            raise ValueError(f"{part.where}: a copy of {first.where}")
    if dim is None:                                           # every shard holds it whole
        return first
    if len(shape) != 2:
        raise ValueError(f"{first.where}: {first.shape}; expected 2 dimensions")
    shape[dim] *= len(parts)

    def read():
        weight = torch.cat([part.read() for part in parts], dim)
        return half_split(weight, head_dim) if name.endswith((".wq", ".wk")) else weight
    return Stored(first.where, tuple(shape), first.dtype, read)


def open_meta(folder):
    """LLaMA in Meta's format -> its tensors {name: Stored} and config.json's values, both in
    transformers' names. Raises ValueError for shards that are no whole model."""
    file, files = folder / "params.json", sorted(folder.glob("consolidated*"))
    for i, found in enumerate(files):
        if found.name != f"consolidated.{i:02d}.pth":
            raise ValueError(f"{found}: not one of the shards consolidated.00.pth, "
                             "consolidated.01.pth, ...; one is missing, or this one is too many")
    values = {META_SETTINGS.get(key, key): value for key, value in read_json(file).items()}
    shards = [open_file(found) for found in files]
    names = shards[0].keys()
    for found, shard in zip(files, shards, strict=True):
        if shard.keys() != names:
            raise ValueError(f"{found}: {min(shard.keys() ^ names)} is not in every shard")

    def rows(name, dim=0):                                    # of all shards together
        shape = shards[0][name].shape if name in names else ()
        return len(shards) * shape[dim] if len(shape) == 2 else 0
    vocab_size = rows("tok_embeddings.weight") // len(shards)
    if values.setdefault("vocab_size", -1) == -1:
        values["vocab_size"] = vocab_size
    values |= {"model_type": "llama", "intermediate_size": rows("layers.0.feed_forward.w1.weight")}
    sizes = llama_sizes(values, file)
    if rows("layers.0.attention.wq.weight") != sizes["llama_width"]:
        raise ValueError(f"{folder}: {len(shards)} shards are not all of the model that params.json "
                         "describes")
    head_dim, tensors = sizes["llama_width"] // sizes["llama_heads"], {}
    for name in sorted(names):
        block = re.search(r"\.(\d+)\.", name)
        pattern = name.removesuffix(".weight")
        pattern = pattern.replace(block[0], ".{i}.") if block else pattern
        theirs = META[pattern][0] + ".weight" if pattern in META else name
        theirs = theirs.replace("{i}", block[1] if block else "")
        tensors[theirs] = joined(pattern, [shard[name] for shard in shards], head_dim)
    return tensors, values


# ---- Any checkpoint


@dataclass
class Checkpoint:
    """An opened checkpoint.

    kind: a key of FORMATS. tensors: {name: Stored}. config: the values of its config.json, {} for
    a single file, and the file's path. tokenizer: the path of its tokenizer.model, if it has one.
    """
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
        if source not in self.tensors:
            raise ValueError(f"{self.path}: {source} is missing")
        shape = self.tensors[source].shape
        if len(shape) != dims:
            raise ValueError(f"{self.path}: {source} is {shape}; expected {dims} dimensions")
        return shape

    def count(self, name):
        """The number of blocks: the highest index of any name + 1. A block of which only a part is
        there counts, so that the rest is missed. name: a tensor of artgpt4.py, in block 0."""
        prefix = their_names(self.kind, name)[0].partition(".0.")[0]
        block = re.compile(re.escape(prefix) + r"\.(\d{1,9})\.")
        found = [block.match(name) for name in self.tensors
                 if not re.fullmatch(FORMATS[self.kind].unused, name)]
        return max((int(match[1]) + 1 for match in found if match), default=0)


def recognise(names, flag):
    """The key of FORMATS to which public names of tensors belong, or None. One of the formats that
    `flag` takes, if there is one: InstructBLIP's folder is three things."""
    kinds = [kind for kind, known in FORMATS.items() if known.marker in names]
    return next((kind for kind in kinds if flag in FORMATS[kind].flags), (kinds or [None])[0])


def open_checkpoint(path, flag):
    """The Checkpoint at `path`. Raises ValueError if it is not of a kind that `flag` takes, a flag
    of convert_weights.py; flag None takes all."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    config, config_file = {}, path / "config.json"
    if any(path.glob("consolidated*")):
        kind, config_file = "meta", path / "params.json"
        tensors, config = open_meta(path)
    else:
        tensors = open_folder(path, flag) if path.is_dir() else open_file(path)
        kind = recognise(tensors, flag)
        if path.is_dir():
            config = read_json(config_file)
    norm = tensors.get("model.norm.weight")
    if kind == "llama" and norm is not None and norm.read().float().abs().mean() < 0.1:
        kind = "delta"                    # a model's norm is near 1, the difference of two near 0
    if kind is None or flag not in (None, *FORMATS[kind].flags):
        what = f"this is {FORMATS[kind].what}" if kind else "not a known checkpoint"
        expected = " or ".join(known.what for known in FORMATS.values() if flag in known.flags)
        raise ValueError(f"{path}: {what}; expected {expected}" if flag else f"{path}: {what}")
    if kind not in ("eva", "blip2", "artgpt4", "minigpt4") and not path.is_dir():
        raise ValueError(f"{path}: a file of {FORMATS[kind].what}; give its folder, with "
                         "config.json and the rest")
    tokenizer = path / "tokenizer.model"
    if kind == "meta" and not tokenizer.exists():
        tokenizer = path.parent / "tokenizer.model"           # Meta keeps one for all sizes
    return Checkpoint(path, kind, tensors, config, config_file, tokenizer)


# ---- From their names to ours


FLOATS = (torch.float32, torch.float16, torch.bfloat16)


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
        if not name.startswith(only) or not parts:
            continue
        taken[name] = [read_share(checkpoint, part, (rows, *shape[1:]))
                       for part, rows in zip(parts, rows_of(name, shape, parts, config),
                                             strict=True)]
    form = FORMATS[checkpoint.kind]
    for name in checkpoint.tensors:
        if name not in known and not re.fullmatch(form.unused, name):
            raise ValueError(f"{checkpoint.path}: {name} is not part of {form.what}")
    dtypes = [part.dtype for name, parts in taken.items() for part in parts if part.dtype
              and not is_norm(name, shapes)]
    widest = reduce(torch.promote_types, dtypes) if dtypes else None
    return {name: join(parts, shapes[name], parts[0].dtype if is_norm(name, shapes) else widest)
            for name, parts in taken.items()}


def is_norm(name, shapes):
    return name.startswith("llama.") and len(shapes[name]) == 1


def rows_of(name, shape, parts, config):
    """How many rows of artgpt4.py's tensor come from each of its parts."""
    if len(parts) == 3:                                       # queries, keys, values
        keys = config.llama_kv_heads * (config.llama_width // config.llama_heads)
        return [config.llama_width, keys, keys]
    return [shape[0] // len(parts)] * len(parts)


def read_share(checkpoint, part, shape):
    """The Stored of one part, of `shape`: a tensor of the checkpoint, a share of one, or zeros."""
    source, number, of = part
    if source == "zeros":
        return Stored(source, shape, None, partial(torch.zeros, shape))
    if source not in checkpoint.tensors:
        raise ValueError(f"{checkpoint.path}: {source} is missing")
    stored = checkpoint.tensors[source]
    whole = (shape[0] * of, *shape[1:])
    if stored.shape != whole or stored.dtype not in FLOATS:
        raise ValueError(f"{stored.where}: {stored.shape} of {stored.dtype}; expected {whole} of "
                         "float16, bfloat16 or float32")

    def read():
        return checked(stored.where, stored.read().chunk(of)[number - 1])
    return Stored(stored.where, shape, stored.dtype, read)


def checked(where, values):
    """The values. Raises ValueError for a NaN, an infinity, or a matrix or norm of zeros."""
    low, high = values.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise ValueError(f"{where}: holds NaN or infinity; the file is damaged")
    if low == high == 0 and not where.endswith(("bias", ".up.weight")):
        raise ValueError(f"{where}: is 0 in all places; the file is damaged")
    return values


def join(parts, shape, dtype):
    """The Stored of parts one after another along the first dimension, in a dtype."""
    def read():
        values = [part.read().to(dtype) for part in parts]
        return values[0] if len(values) == 1 else torch.cat(values)
    return Stored(parts[0].where, shape, dtype, read)
