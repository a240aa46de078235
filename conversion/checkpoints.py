"""Public checkpoints, opened and checked, and their tensors under the names of artgpt4.py.

Tensors are mapped from their files and read when they are asked for: a file may be larger than the
memory. torch.load runs with weights_only=True, so no code of a pickle is run. What is computed from
them is computed on device "meta" first, which checks all names and shapes and reads nothing.
"""
import math
import re
import warnings
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from artgpt4 import errors_naming
from common.files import check_file, read_json, what_it_is
from conversion.formats import FORMATS, META_SETTINGS, parts_of, their_names


def open_file(file):
    """The tensors of a file, {name: mapped tensor}; recognised by content, not by its suffix.
    Raises ValueError, naming it, for what is no whole file of tensors."""
    check_file(file)
    with open(file, "rb") as opened:
        head = opened.read(300)
    try:
        if head[8:9] == b"{":
            loaded = load_file(file)                          # safetensors
        else:
            mapped = zipfile.is_zipfile(file)                 # else of torch before 1.6
            if mapped and any(each.compress_type for each in zipfile.ZipFile(file).infolist()):
                raise ValueError("compressed members")
            with warnings.catch_warnings(action="ignore"):
                loaded = torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
        loaded = loaded.get("model", loaded)
        return {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    except Exception as error:                                # a damaged file can raise anything
        code = re.search(r"GLOBAL (\S+)", str(error))
        problem = "damaged, cut short, packed again, or no checkpoint"
        if code:
            problem = f"holds {code[1]}, which is no plain value; nothing of it was run"
        elif not head.startswith((b"PK", b"\x80")):
            problem = what_it_is(head) or problem
        raise ValueError(f"{file}: {problem}") from None


def compare_checksum(file):
    """Raises ValueError, naming it, for an archive with changed bytes. Others have no checksums."""
    damaged = zipfile.ZipFile(file).testzip() if zipfile.is_zipfile(file) else None
    if damaged:
        raise ValueError(f"{file}: {damaged} does not match its checksum")


def open_folder(folder, flag):
    """The files of a model in transformers' format, its tensors {name: mapped tensor}, and its
    config.json: safetensors or .bin, one file or the shards of an index. Of BLIP-2's shards only
    those that `flag` needs are read. Raises ValueError if one is missing, or a tensor is in two."""
    problem = f"{folder}: no model.safetensors, no pytorch_model.bin, and no index of their shards"
    for whole in ("model.safetensors", "pytorch_model.bin"):
        files, index = {folder / whole}, folder / f"{whole}.index.json"
        if index.exists():
            where = read_json(index).get("weight_map")
            if not isinstance(where, dict):
                raise ValueError(f"{index}: no weight_map")
            kind = recognise(where, flag)
            files = {folder / Path(str(shard)).name for name, shard in where.items()
                     if not kind or not re.fullmatch(FORMATS[kind].unused, name)}
        missing = sorted(file.name for file in files if not file.exists())
        if not missing:
            break
        if index.exists():
            problem = f"{index}: names {missing[0]}, which is not there; download it too"
    else:
        raise ValueError(problem)
    tensors = {}
    for file in sorted(files):
        found = open_file(file)
        for name in found.keys() & tensors.keys():
            raise ValueError(f"{file}: {name} is in another shard too")
        tensors |= found
    return files, tensors, read_json(folder / "config.json")


def half_split(weight, head_dim):
    """Rows of q or k (heads * head_dim, D), reordered for transformers' rotary positions: Meta
    rotates the pairs of rows (0, 1), (2, 3), ...; transformers (i, i + head_dim / 2)."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).reshape(weight.shape)


def open_meta(folder):
    """LLaMA in Meta's format, where every matrix is split over all shards -> its files, its tensors
    {name: function of a device -> tensor}, and its settings in config.json's names. Raises
    ValueError for shards that are not one model."""
    files, shards = sorted(folder.glob("consolidated*")), []
    for i, file in enumerate(files):
        if file.name != f"consolidated.{i:02d}.pth":
            raise ValueError(f"{file}: expected consolidated.{i:02d}.pth, and no other")
        shards.append(open_file(file))
        if shards[i].keys() != shards[0].keys():
            raise ValueError(f"{file}: holds tensors of other names than {files[0].name}")
        for name, part in shards[i].items() if i > 0 else ():
            is_norm = part.ndim == 1                          # which every shard holds whole
            if (is_norm or name.endswith("wq.weight")) and is_norm != torch.equal(
                    part, shards[0][name]):
                raise ValueError(f"{file}: {name} is a copy of that in {files[0].name}, or of "
                                 "another model")
    config = {META_SETTINGS.get(key, key): value
              for key, value in read_json(folder / "params.json").items()}

    def rows(name):                                           # of all shards together
        return sum(max(shard[name].shape[:1], default=0) for shard in shards if name in shard)
    config |= {"model_type": "llama", "intermediate_size": rows("layers.0.feed_forward.w1.weight")}
    if config.get("vocab_size") in (None, -1):
        config["vocab_size"] = rows("output.weight")
    if rows("layers.0.attention.wq.weight") != config.get("hidden_size"):
        raise ValueError(f"{folder}: {len(shards)} shards are not the model of params.json")
    tensors = {name: partial(joined, f"{folder}: {name}", [shard[name] for shard in shards], config)
               for name in shards[0]}
    return files, tensors, config


def joined(name, parts, config, device):
    """The tensor of that name from its part in each shard, with rows as transformers has them."""
    weight = parts[0].to(device)
    if weight.ndim > 1:
        by_columns = name.endswith(("tok_embeddings.weight", "wo.weight", "w2.weight"))
        with errors_naming(name):                             # what does not fit together
            weight = torch.cat([part.to(device) for part in parts], dim=int(by_columns))
    if name.endswith(("wq.weight", "wk.weight")):
        weight = half_split(weight, config["hidden_size"] // config["num_attention_heads"])
    return weight


@dataclass
class Checkpoint:
    """An opened checkpoint. kind: a key of FORMATS. files: those that were opened. tensors: {name:
    function of a device -> tensor}. config: the values of config_file, {} for a single file.
    tokenizer: the path of its tokenizer.model, if it has one. base: the LLaMA of a delta."""
    path: Path
    kind: str
    files: list
    tensors: dict
    config: dict
    config_file: Path
    tokenizer: Path
    base: "Checkpoint" = None

    def read(self, name, device):
        """The tensor of that name; on "meta" its shape and dtype alone. Raises ValueError."""
        if name not in self.tensors:
            raise ValueError(f"{self.path}: {name} is missing")
        return self.tensors[name](device)

    def shape(self, name, dims=2):
        """The shape of artgpt4.py's `name`. Raises ValueError unless it has `dims` dimensions."""
        source = their_names(self.kind, name)[0]
        shape = tuple(self.read(source, "meta").shape)
        if len(shape) != dims:
            raise ValueError(f"{self.path}: {source} is {shape}; expected {dims} dimensions")
        return shape

    def count(self, name):
        """The number of blocks: the highest index of any name + 1, so that the rest of a block is
        missed. name: a tensor of artgpt4.py, in block 0."""
        before = re.escape(their_names(self.kind, name)[0].partition("0.")[0])
        found = [re.match(before + r"(\d{1,3})\.", name) for name in self.tensors]
        return max((int(match[1]) + 1 for match in found if match), default=0)

    def check_names(self, shapes):
        """Raises ValueError for a tensor that is none of {name in artgpt4.py: shape}."""
        form = FORMATS[self.kind]
        known = {source for name in shapes for source in their_names(self.kind, name)}
        for name in self.tensors:
            if name not in known and not re.fullmatch(form.unused, name):
                raise ValueError(f"{self.path}: {name} is not part of {form.what}")


def recognise(names, flag):
    """The key of FORMATS to which public names of tensors belong, or None. One of the formats that
    `flag` takes, if there is one: InstructBLIP's folder is three things."""
    kinds = [kind for kind, known in FORMATS.items() if known.marker in names]
    return next((kind for kind in kinds if flag in FORMATS[kind].flags), (kinds or [None])[0])


def open_checkpoint(path, flag):
    """The Checkpoint at `path`. Raises ValueError if it is not of a kind that `flag` takes, a flag
    of convert_weights.py."""
    config_file, tokenizer = path / "config.json", path / "tokenizer.model"
    if any(path.glob("consolidated*")):
        files, tensors, config = open_meta(path)
        config_file = path / "params.json"
        if not tokenizer.exists():
            tokenizer = path.parent / "tokenizer.model"       # Meta keeps one for all sizes
    elif path.is_dir():
        files, tensors, config = open_folder(path, flag)
    else:
        files, tensors, config = [path], open_file(path), {}
    kind, norm = recognise(tensors, flag), tensors.get("model.norm.weight")
    if kind == "llama" and norm is not None and norm.float().abs().mean() < 0.1:
        kind = "delta"                    # a model's norm is near 1, the difference of two near 0
    if kind is None or flag not in FORMATS[kind].flags:
        expected = " or ".join(known.what for known in FORMATS.values() if flag in known.flags)
        unknown = f"no known checkpoint, of tensors like {next(iter(tensors), 'none')}"
        raise ValueError(f"{path}: {FORMATS[kind].what if kind else unknown}; for --{flag} "
                         f"expected {expected}")
    if not path.is_dir() and kind not in ("eva", "blip2", "artgpt4", "minigpt4"):
        raise ValueError(f"{path}: a file of {FORMATS[kind].what}; give its folder")
    tensors = {name.replace("qformer.embeddings.layernorm", "qformer.layernorm"):  # InstructBLIP's
               getattr(value, "to", value) for name, value in tensors.items()}
    return Checkpoint(path, kind, files, tensors, config, config_file, tokenizer)


def take(checkpoint, name, shape, device):
    """The tensor that artgpt4.py calls `name`; on "meta" its shape and dtype alone. Raises
    ValueError, naming the tensor, if it is missing, of another shape, no floats, or damaged."""
    parts, found = parts_of(checkpoint.kind, name), []
    rows = [shape[0] // len(parts)] * len(parts)
    if len(parts) == 3:                                       # queries (D, D), keys, values
        keys = (shape[0] - shape[1]) // 2
        rows = [shape[1], keys, keys]
    for (source, number, of), count in zip(parts, rows, strict=True):
        value, whole = checkpoint.read(source, device), (count * of, *shape[1:])
        if name == "vit.pos_embed":
            value = resized(value, math.isqrt(shape[1] - 1))
        if value.shape != whole or not (value.is_floating_point() and value.itemsize in (2, 4)):
            raise ValueError(f"{checkpoint.path}: {source}: {tuple(value.shape)} of {value.dtype}; "
                             f"expected {whole} of float16, bfloat16 or float32")
        value = value.chunk(of)[number - 1] if number else torch.zeros_like(value)
        if device != "meta" and number:
            low, high = value.aminmax()
            has_zeros = source.endswith(("bias", ".up.weight"))       # where training starts them
            if not (low.isfinite() and high.isfinite()) or low == high == 0 and not has_zeros:
                raise ValueError(f"{checkpoint.path}: {source}: NaN, infinity, or nothing but 0")
        found.append(value)
    return found[0] if len(found) == 1 else torch.cat(found)


def take_sum(delta, name, shape, device):
    """take() of a delta and its base, in float16 as the released tool adds them. Rows that only the
    delta has, as the token more of Vicuna v0, are added to zeros."""
    rows = shape[0]
    if name in ("llama.embed.weight", "llama.head.weight"):
        rows, _ = delta.base.shape("llama.embed.weight")
    total = torch.zeros(shape, dtype=torch.float16, device=device)
    total[:rows] = take(delta.base, name, (rows, *shape[1:]), device)
    total.add_(take(delta, name, shape, device).half())
    if device != "meta" and not all(map(torch.isfinite, total.aminmax())):
        raise ValueError(f"{delta.path}: {name}: too large, with {delta.base.path}, for float16")
    return total


def resized(pos_embed, grid):
    """Position embedding (1, P, D) -> (1, grid * grid + 1, D). The class token's row is kept."""
    cls_row, rest = pos_embed[:, :1], pos_embed[:, 1:]
    old = math.isqrt(rest.shape[1])
    if old == grid:
        return pos_embed
    rest = rest.float().unflatten(1, (old, old)).permute(0, 3, 1, 2)           # (1, D, old, old)
    rest = F.interpolate(rest, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat((cls_row, rest.flatten(2).transpose(1, 2).to(cls_row.dtype)), dim=1)


def take_adapter(checkpoint, config, shapes):
    """{name: function of a device -> tensor} of the trainable parameters in ArtGPT-4.pth, or of
    the projection in pretrained_minigpt4.pth. shapes: {name: shape} of all trainable ones."""
    _, width = checkpoint.shape("proj.weight")
    if width == 4 * config.vit_width:
        raise ValueError(f"{checkpoint.path}: of MiniGPT-4 for Llama 2 or MiniGPT-v2, which have "
                         f"no Q-Former but join four patches ({width} wide): another model")
    if checkpoint.kind == "minigpt4":
        shapes = {name: shape for name, shape in shapes.items() if name.startswith("proj.")}
    checkpoint.check_names(shapes)
    compare_checksum(checkpoint.path)
    return {name: partial(take, checkpoint, name, shape) for name, shape in shapes.items()}
