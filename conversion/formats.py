"""The public checkpoints, as their owners publish them: each format is one table of names.

A checkpoint is recognised by its tensors and opened as a dictionary of tensors that are still in their files: none is
read before it is needed, and nothing is mapped, so a file may be larger than the machine's memory. LLaMA as Meta
released it, and LLaMA plus a Vicuna delta, are opened under transformers' names.
torch.load runs with weights_only=True: a pickle that would run code is refused.
"""
import contextlib
import json
import math
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

# ---- The formats: a name of artgpt4.py, and where the released file keeps it. {i} is the block, * the rest of a name;
# "a + b" are stacked along the first dimension; "zeros" is a part of the shape of the one before it.

EVA_VIT = {
    "vit.cls_token": "cls_token",
    "vit.pos_embed": "pos_embed",
    "vit.patch_embed.*": "patch_embed.proj.*",
    "vit.blocks.{i}.norm1.*": "blocks.{i}.norm1.*",
    "vit.blocks.{i}.attn.qkv.weight": "blocks.{i}.attn.qkv.weight",
    "vit.blocks.{i}.attn.qkv.bias": "blocks.{i}.attn.q_bias + zeros + blocks.{i}.attn.v_bias",
    "vit.blocks.{i}.attn.proj.*": "blocks.{i}.attn.proj.*",
    "vit.blocks.{i}.norm2.*": "blocks.{i}.norm2.*",
    "vit.blocks.{i}.*": "blocks.{i}.mlp.*",
}
BLIP2 = {
    "ln_vision.*": "ln_vision.*",
    "qformer.queries": "query_tokens",
    "qformer.norm.*": "Qformer.bert.embeddings.LayerNorm.*",
    "qformer.layers.{i}.self_attn.out.*": "Qformer.bert.encoder.layer.{i}.attention.output.dense.*",
    "qformer.layers.{i}.self_attn.norm.*": "Qformer.bert.encoder.layer.{i}.attention.output.LayerNorm.*",
    "qformer.layers.{i}.self_attn.*": "Qformer.bert.encoder.layer.{i}.attention.self.*",
    "qformer.layers.{i}.cross_attn.out.*": "Qformer.bert.encoder.layer.{i}.crossattention.output.dense.*",
    "qformer.layers.{i}.cross_attn.norm.*": "Qformer.bert.encoder.layer.{i}.crossattention.output.LayerNorm.*",
    "qformer.layers.{i}.cross_attn.*": "Qformer.bert.encoder.layer.{i}.crossattention.self.*",
    "qformer.layers.{i}.fc1.*": "Qformer.bert.encoder.layer.{i}.intermediate_query.dense.*",
    "qformer.layers.{i}.fc2.*": "Qformer.bert.encoder.layer.{i}.output_query.dense.*",
    "qformer.layers.{i}.norm.*": "Qformer.bert.encoder.layer.{i}.output_query.LayerNorm.*",
}
BLIP2_HF = {
    "vit.cls_token": "vision_model.embeddings.class_embedding",
    "vit.pos_embed": "vision_model.embeddings.position_embedding",
    "vit.patch_embed.*": "vision_model.embeddings.patch_embedding.*",
    "vit.blocks.{i}.norm1.*": "vision_model.encoder.layers.{i}.layer_norm1.*",
    "vit.blocks.{i}.attn.qkv.*": "vision_model.encoder.layers.{i}.self_attn.qkv.*",
    "vit.blocks.{i}.attn.proj.*": "vision_model.encoder.layers.{i}.self_attn.projection.*",
    "vit.blocks.{i}.norm2.*": "vision_model.encoder.layers.{i}.layer_norm2.*",
    "vit.blocks.{i}.*": "vision_model.encoder.layers.{i}.mlp.*",
    "ln_vision.*": "vision_model.post_layernorm.*",
    "qformer.queries": "query_tokens",
    "qformer.norm.*": "qformer.layernorm.*",
} | {ours: theirs.replace("Qformer.bert.encoder", "qformer.encoder").replace(".self.", ".attention.")
     for ours, theirs in BLIP2.items() if "{i}" in ours}
LLAMA = {
    "llama.embed.weight": "model.embed_tokens.weight",
    "llama.blocks.{i}.attn_norm.weight": "model.layers.{i}.input_layernorm.weight",
    "llama.blocks.{i}.attn.qkv.weight": "model.layers.{i}.self_attn.q_proj.weight + "
                                        "model.layers.{i}.self_attn.k_proj.weight + "
                                        "model.layers.{i}.self_attn.v_proj.weight",
    "llama.blocks.{i}.attn.out.weight": "model.layers.{i}.self_attn.o_proj.weight",
    "llama.blocks.{i}.mlp_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    "llama.blocks.{i}.mlp.gate_up.weight": "model.layers.{i}.mlp.gate_proj.weight + "
                                           "model.layers.{i}.mlp.up_proj.weight",
    "llama.blocks.{i}.mlp.down.weight": "model.layers.{i}.mlp.down_proj.weight",
    "llama.norm.weight": "model.norm.weight",
    "llama.head.weight": "lm_head.weight",
}
ARTGPT4 = {  # pretrained_minigpt4.pth has its first line alone
    "proj.*": "llama_proj.*",
    "llama.blocks.{i}.attn_norm.weight": "llama_model.model.layers.{i}.input_layernorm.weight",
    "llama.blocks.{i}.mlp_norm.weight": "llama_model.model.layers.{i}.post_attention_layernorm.weight",
    "llama.blocks.{i}.adapter.*": "llama_model.model.layers.{i}.self_attn.1.*",
}
META = {  # Meta's own name: transformers' name, and the dimension that model-parallel shards divide
    "tok_embeddings": ("model.embed_tokens", 1),
    "layers.{i}.attention.wq": ("model.layers.{i}.self_attn.q_proj", 0),
    "layers.{i}.attention.wk": ("model.layers.{i}.self_attn.k_proj", 0),
    "layers.{i}.attention.wv": ("model.layers.{i}.self_attn.v_proj", 0),
    "layers.{i}.attention.wo": ("model.layers.{i}.self_attn.o_proj", 1),
    "layers.{i}.feed_forward.w1": ("model.layers.{i}.mlp.gate_proj", 0),
    "layers.{i}.feed_forward.w2": ("model.layers.{i}.mlp.down_proj", 1),
    "layers.{i}.feed_forward.w3": ("model.layers.{i}.mlp.up_proj", 0),
    "layers.{i}.attention_norm": ("model.layers.{i}.input_layernorm", None),
    "layers.{i}.ffn_norm": ("model.layers.{i}.post_attention_layernorm", None),
    "norm": ("model.norm", None),
    "output": ("lm_head", 0),
}


@dataclass
class Format:
    """A kind of checkpoint: the flags that take it, what it is, where its owner publishes it, the tensor that tells it
    from the others, its table, and what of it stays unread."""
    flags: tuple
    what: str
    published: str
    sign: str
    table: dict
    unused: str


BUFFERS = r".*\.rotary_emb\.inv_freq|.*\.position_ids"
FORMATS = {
    "eva": Format(("vit",), "EVA-ViT-g", "eva_vit_g.pth, 2.03 GB, salesforce/LAVIS (BLIP2)",
                  "blocks.0.attn.q_bias", EVA_VIT, r"(head|norm)\.(weight|bias)"),
    "blip2": Format(("qformer",), "BLIP-2's Q-Former",
                    "blip2_pretrained_flant5xxl.pth, 0.43 GB, salesforce/LAVIS (BLIP2)",
                    "Qformer.bert.embeddings.LayerNorm.weight", BLIP2,
                    r"t5_proj\..*|Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight|" + BUFFERS +
                    r"|Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.(dense|LayerNorm)\..*"),
    "blip2_hf": Format(("vit", "qformer"), "BLIP-2, as transformers keeps it",
                       "Salesforce/blip2-flan-t5-xxl, 49 GB, Hugging Face",
                       "vision_model.post_layernorm.weight", BLIP2_HF, r"language_(model|projection)\..*|" + BUFFERS),
    "llama": Format(("llm",), "LLaMA or Vicuna, as transformers keeps it",
                    "Vicuna v0 is published as a delta to LLaMA alone", "model.embed_tokens.weight", LLAMA, BUFFERS),
    "meta": Format(("llm",), "LLaMA, as Meta released it",
                   "LLaMA 13B: consolidated.*.pth, params.json, tokenizer.model, 26.0 GB, Meta AI, on request",
                   "", LLAMA, ""),
    "delta": Format(("delta",), "a Vicuna delta (for --delta, with LLaMA as --llm)",
                    "lmsys/vicuna-13b-delta-v0, 26.0 GB, Hugging Face", "", LLAMA, BUFFERS),
    "artgpt4": Format(("adapter",), "ArtGPT-4's trained part",
                      "ArtGPT-4.pth, 6.34 GB, Tyrannosaurus/ArtGPT-4, Hugging Face",
                      "llama_model.model.layers.0.self_attn.1.down.weight", ARTGPT4, BUFFERS),
    "minigpt4": Format(("adapter",), "MiniGPT-4's projection",
                       "pretrained_minigpt4.pth, 0.05 GB, Vision-CAIR/MiniGPT-4, Hugging Face",
                       "llama_proj.weight", ARTGPT4, BUFFERS),
}


def their_names(kind, name):
    """The names in a format (a key of FORMATS) of the parts of artgpt4.py's `name`; none if it does not have it."""
    table, block = FORMATS[kind].table, re.search(r"\.(\d+)\.", name)
    pattern, rest = (name.replace(block[0], ".{i}.", 1) if block else name), ""
    parts = table.get(pattern)
    while parts is None and "." in pattern:                   # a.b.weight: a.b.*, then a.*
        pattern, _, last = pattern.rpartition(".")
        rest = f"{last}.{rest}".rstrip(".")
        parts = table.get(f"{pattern}.*")
    parts = (parts or "").replace("*", rest).replace("{i}", block[1] if block else "")
    return parts.split(" + ") if parts else []


# ---- Reading: a checkpoint is a dictionary of tensors that are still in their files

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}


@dataclass
class Stored:
    """A tensor in a file. `where` names both; read() reads or computes it, when it is written."""
    where: str
    shape: tuple
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


@dataclass
class Checkpoint:
    """An opened checkpoint: where it is, a key of FORMATS, {name: Stored}, its config.json, its tokenizer.model."""
    path: Path
    kind: str
    tensors: dict
    config: dict
    tokenizer: Path

    def shape(self, name, dims=2):
        """The shape of what artgpt4.py calls `name`. Raises ValueError unless it is there, with `dims` dimensions."""
        theirs = their_names(self.kind, name)[0]
        if theirs not in self.tensors:
            raise ValueError(f"{self.path}: {theirs} is missing")
        shape = self.tensors[theirs].shape
        if len(shape) != dims:
            raise ValueError(f"{self.path}: {theirs} is {shape}; expected {dims} dimensions")
        return shape

    def count(self, name):
        """The number of blocks that have what artgpt4.py calls `name`, with {i} for the block."""
        block = 0
        while their_names(self.kind, name.replace("{i}", str(block)))[0] in self.tensors:
            block += 1
        return block


def read_json(file):
    """The dictionary in a JSON file. Raises ValueError, naming the file."""
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: not a JSON object")
    return values


def in_file(file, name, dtype, shape, stride, offset):
    """The Stored whose bytes begin at `offset` of a file. Raises ValueError if the file ends before it does."""
    nbytes = (1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))) * dtype.itemsize
    if offset + nbytes > file.stat().st_size:
        raise ValueError(f"{file}: damaged, cut short ({name} ends beyond it)")

    def read():
        values = torch.from_numpy(np.fromfile(file, np.uint8, nbytes, offset=offset)).view(dtype)
        return values.as_strided(shape, stride)
    return Stored(f"{file}: {name}", tuple(shape), dtype, read)


def open_safetensors(file):
    """The tensors of a safetensors file, {name: Stored}; its header says where they are."""
    try:
        with open(file, "rb") as opened:
            size, = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(min(size, 100_000_000)))
        header.pop("__metadata__", None)
        return {name: in_file(file, name, DTYPES[entry["dtype"]], entry["shape"],
                              torch.empty(entry["shape"], device="meta").stride(), 8 + size + entry["data_offsets"][0])
                for name, entry in header.items()}
    except (struct.error, json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError, RuntimeError):
        raise ValueError(f"{file}: damaged, cut short, or of a dtype not known here") from None


def open_torch(file):
    """The tensors of a torch.save file, {name: Stored}. Nothing in it is executed."""
    is_zip = zipfile.is_zipfile(file)                         # the format before torch 1.6 is none, and read whole
    try:
        with warnings.catch_warnings(action="ignore"), FakeTensorMode() if is_zip else contextlib.nullcontext():
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        if isinstance(error, pickle.UnpicklingError) and (code := re.search(r"GLOBAL (\S+)", str(error))):
            raise ValueError(f"{file}: would run code of its own ({code[1]}); refused, nothing was run") from None
        raise ValueError(f"{file}: damaged, cut short, or not a checkpoint") from error
    loaded = loaded.get("model", loaded) if isinstance(loaded, dict) else {}
    tensors = {name: tensor for name, tensor in loaded.items() if isinstance(tensor, torch.Tensor)}
    if not is_zip:
        return {name: Stored(f"{file}: {name}", tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor)
                for name, tensor in tensors.items()}
    # a tensor loaded in FakeTensorMode has no values, but its storage knows where in the file they are
    return {name: in_file(file, name, tensor.dtype, tensor.shape, tensor.stride(), tensor.dtype.itemsize *
                          tensor.storage_offset() + tensor.untyped_storage()._checkpoint_offset)
            for name, tensor in tensors.items()}


def read_head(file):
    """The first bytes of a file. Raises ValueError if it is a Git LFS pointer."""
    with open(file, "rb") as opened:
        head = opened.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{file}: a Git LFS pointer, not the file itself; fetch it with: git lfs pull")
    return head


def open_file(file):
    """The tensors of one file, {name: Stored}; safetensors or torch.save, whatever it is called."""
    return open_safetensors(file) if read_head(file)[8:9] == b"{" else open_torch(file)


def open_folder(folder):
    """The tensors of a model as transformers keeps it, one file or shards with an index; safetensors before .bin."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{whole}.index.json"
        weight_map = read_json(index).get("weight_map") if index.is_file() else {"all": whole}
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index}: no weight_map")
        shards = sorted(set(weight_map.values()))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if index.is_file() and missing:
            raise ValueError(f"{index}: names {missing[0]}, which is not there; the download is incomplete")
        if not missing:
            return {name: tensor for shard in shards for name, tensor in open_file(folder / shard).items()}
    raise ValueError(f"{folder}: no model.safetensors and no pytorch_model.bin, nor an index of their shards")


def half_split(weight, head_dim):
    """q or k rows (H * d, D): from Meta's pairs (0, 1), (2, 3), ... of rotary positions to the pairs (i, i + d/2)."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).reshape(weight.shape)


def open_meta(folder):
    """LLaMA as Meta released it -> its tensors and config in transformers' names."""
    params = read_json(folder / "params.json")
    for key in ("dim", "n_layers", "n_heads", "norm_eps"):
        if not isinstance(params.get(key), int | float) or params[key] <= 0:
            raise ValueError(f"{folder / 'params.json'}: {key} is {params.get(key)}; expected a number above 0")
    shards = [open_file(file) for file in sorted(folder.glob("consolidated.*.pth"))]
    head_dim, tensors = params["dim"] // params["n_heads"], {}
    for name, first in shards[0].items():
        if name == "rope.freqs":
            continue
        block = re.search(r"\.(\d+)\.", name)
        pattern = name.removesuffix(".weight").replace(block[0], ".{i}.") if block else name.removesuffix(".weight")
        hf_name, dim = META.get(pattern, (pattern, None))
        parts = [shard[name] for shard in shards if name in shard]
        if len(parts) < len(shards):
            raise ValueError(f"{folder}: {name} is not in every consolidated.*.pth")
        shape = [sum(part.shape[i] for part in parts) if i == dim else size for i, size in enumerate(first.shape)]

        def read(parts=parts, dim=dim, pattern=pattern):
            weight = torch.cat([part.read() for part in parts], dim) if dim is not None else parts[0].read()
            return half_split(weight, head_dim) if pattern.endswith((".wq", ".wk")) else weight
        hf_name = hf_name.replace("{i}", block[1] if block else "") + ".weight"
        tensors[hf_name] = Stored(first.where, tuple(shape), first.dtype, read)

    def rows(name):
        return tensors[name].shape[0] if name in tensors else 0
    found = rows("model.layers.0.self_attn.q_proj.weight")
    if found != params["dim"]:
        raise ValueError(f"{folder}: {len(shards)} consolidated.*.pth hold {found} of {params['dim']} rows of wq; "
                         "shards are missing, or params.json is another model's")
    return tensors, {
        "model_type": "llama", "hidden_size": params["dim"], "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"], "num_key_value_heads": params.get("n_kv_heads"),
        "intermediate_size": rows("model.layers.0.mlp.gate_proj.weight"), "rms_norm_eps": params["norm_eps"],
        "vocab_size": rows("model.embed_tokens.weight"), "rope_theta": params.get("rope_theta", 10000.0),
        "max_position_embeddings": 2048, "rope_scaling": params.get("use_scaled_rope") or None}


def open_checkpoint(path, *kinds):
    """The checkpoint at `path`, recognised by its tensors. Raises ValueError if it is none, or none of `kinds`."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    is_meta, config = any(path.glob("consolidated.*.pth")), {}
    if is_meta:
        tensors, config = open_meta(path)
    else:
        tensors = open_folder(path) if path.is_dir() else open_file(path)
    kind = "meta" if is_meta else next((kind for kind, known in FORMATS.items() if known.sign in tensors), None)
    if kind == "llama" and (norm := tensors.get("model.norm.weight")) and norm.read().float().abs().mean() < 0.1:
        kind = "delta"                                        # a model's norm is near 1, a difference of two near 0
    if kind not in kinds:
        what = f"this is {FORMATS[kind].what}" if kind else "not a checkpoint known here"
        raise ValueError(f"{path}: {what}; expected {' or '.join(FORMATS[kind].what for kind in kinds)}")
    if kind in ("llama", "delta") and not path.is_dir():
        raise ValueError(f"{path}: a file of a language model; give its folder, with config.json and tokenizer.model")
    if path.is_dir() and not is_meta:
        config = read_json(path / "config.json")
    beside = [folder / "tokenizer.model" for folder in (path, path.parent)]   # Meta keeps one for all sizes
    tokenizer = beside[1] if is_meta and not beside[0].exists() else beside[0]
    if tokenizer.is_file():
        read_head(tokenizer)
    return Checkpoint(path, kind, tensors, config, tokenizer)


def candidates(folder):
    """The files and the model folders in `folder`, however deep."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not any(path.glob("*.json")):
            yield from candidates(path)
        elif path.is_dir() or not (path.name.startswith(".") or path.suffix in (".model", ".json", ".txt", ".md")):
            yield path


def resize_pos_embed(pos_embed, patches):
    """Position embedding (1, P, D) for another square grid of `patches` patches; the class token's row is untouched."""
    cls_row, grid = pos_embed[:, :1], pos_embed[:, 1:]
    old, new = math.isqrt(grid.shape[1]), math.isqrt(patches)
    if old == new:
        return pos_embed
    grid = grid.float().unflatten(1, (old, old)).permute(0, 3, 1, 2)               # (1, D, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat((cls_row, grid.flatten(2).transpose(1, 2).to(cls_row.dtype)), dim=1)


def add_delta(base, delta):
    """LLaMA + Vicuna delta, in float16 as the released tool adds them. v0 has more tokens: their base rows are zero."""
    tensors = {}
    for name, change in delta.tensors.items():
        if re.fullmatch(BUFFERS, name):
            continue
        if name not in base.tensors:
            raise ValueError(f"{base.path}: {name} is missing, which {delta.path} adds to")
        ours = base.tensors[name]
        added = change.shape[0] - ours.shape[0] if name in ("model.embed_tokens.weight", "lm_head.weight") else 0
        if added < 0 or change.shape != (ours.shape[0] + added, *ours.shape[1:]):
            raise ValueError(f"{change.where}: {change.shape}, but {ours.where} is {ours.shape}; not its delta")

        def read(ours=ours, change=change):
            total = torch.zeros(change.shape, dtype=torch.float16)
            total[:ours.shape[0]] = ours.read()
            return total.add_(change.read().half())
        tensors[name] = Stored(change.where, change.shape, torch.float16, read)
    tokenizer = delta.tokenizer if delta.tokenizer.is_file() else base.tokenizer
    vocab_size = delta.shape("llama.embed.weight")[0]
    return Checkpoint(base.path, "llama", tensors, base.config | {"vocab_size": vocab_size}, tokenizer)
