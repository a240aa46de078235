"""Language models that are not published in transformers' format: Meta's LLaMA, a Vicuna delta.

Both are opened under transformers' names, so that what follows knows one format.
"""
import json
import re
from dataclasses import replace

import torch

from common.files import read_json
from conversion.formats import BUFFERS, META
from conversion.tensor_files import Stored, open_file


def half_split(weight, head_dim):
    """Rows of q or k (heads * head_dim, D), reordered for transformers' rotary positions.

    Meta rotates the pairs of rows (0, 1), (2, 3), ...; transformers (i, i + head_dim / 2).
    """
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).reshape(weight.shape)


def joined(name, parts, head_dim):
    """The Stored of one tensor, from its part in each shard.

    name: Meta's, with {i} for the block. Raises ValueError if the parts do not fit together.
    """
    _, dim = META.get(name, (name, None))
    shape = list(parts[0].shape)
    for part in parts:
        across = [list(each.shape) for each in (parts[0], part)]
        if dim is not None and dim < min(map(len, across)):
            across = [sizes[:dim] + sizes[dim + 1:] for sizes in across]
        if across[0] != across[1] or part.dtype != parts[0].dtype:
            raise ValueError(f"{part.where}: {part.shape}, {part.dtype}; it does not fit to "
                             f"{parts[0].where}: {parts[0].shape}, {parts[0].dtype}")
    if dim is not None and len(shape) != 2:
        raise ValueError(f"{parts[0].where}: {parts[0].shape}; expected 2 dimensions")
    if dim is not None:
        shape[dim] = sum(part.shape[dim] for part in parts)

    def read():
        if dim is None:                                       # every shard holds it whole
            return parts[0].read()
        weight = torch.cat([part.read() for part in parts], dim)
        return half_split(weight, head_dim) if name.endswith((".wq", ".wk")) else weight
    return Stored(parts[0].where, tuple(shape), parts[0].dtype, read)


def read_params(file):
    """Meta's params.json. Raises ValueError unless it has the sizes that are needed."""
    params = read_json(file)
    for key in ("dim", "n_layers", "n_heads"):
        if type(params.get(key)) is not int or params[key] <= 0:
            raise ValueError(f"{file}: {key} is {json.dumps(params.get(key))}; "
                             "expected a whole number above 0")
    if params["dim"] % (2 * params["n_heads"]):
        raise ValueError(f"{file}: n_heads is {params['n_heads']}; expected heads of an even "
                         f"size that make up dim, which is {params['dim']}")
    if params.get("use_scaled_rope"):
        raise ValueError(f"{file}: use_scaled_rope is true; only false is supported")
    return params


def check_head_dim(file, key, head_dim, frequencies):
    """Raises ValueError unless a Stored of rotary frequencies, where there is one, is for heads of
    the size that `key` in `file` makes."""
    if frequencies.shape != (head_dim // 2,):
        raise ValueError(f"{file}: {key} makes heads of {head_dim}, but {frequencies.where} is "
                         f"{frequencies.shape}; expected {(head_dim // 2,)}")


def open_meta(folder):
    """LLaMA in Meta's format -> its tensors {name: Stored} and config.json's values, both in
    transformers' names. Raises ValueError if a shard is missing or params.json is wrong."""
    params = read_params(folder / "params.json")
    shards = [open_file(file) for file in sorted(folder.glob("consolidated.*.pth"))]
    head_dim, tensors = params["dim"] // params["n_heads"], {}
    for name in sorted(set().union(*shards)):
        parts = [shard[name] for shard in shards if name in shard]
        if name == "rope.freqs":
            check_head_dim(folder / "params.json", "n_heads", head_dim, parts[0])
            continue
        if len(parts) < len(shards):
            raise ValueError(f"{folder}: {name} is not in every consolidated.*.pth")
        block = re.search(r"\.(\d+)\.", name)
        pattern = name.removesuffix(".weight")
        pattern = pattern.replace(block[0], ".{i}.") if block else pattern
        hf_pattern, _ = META.get(pattern, (pattern, None))
        hf_name = hf_pattern.replace("{i}", block[1] if block else "") + ".weight"
        if hf_name in tensors:
            raise ValueError(f"{parts[0].where}: there twice, under another name too")
        tensors[hf_name] = joined(pattern, parts, head_dim)

    def rows(name):
        return tensors[name].shape[0] if name in tensors else 0
    found = rows("model.layers.0.self_attn.q_proj.weight")
    if found != params["dim"]:
        raise ValueError(
            f"{folder}: {len(shards)} consolidated.*.pth hold {found} of {params['dim']} rows of "
            "wq; shards are missing, or params.json belongs to another model")
    return tensors, {
        "model_type": "llama",
        "hidden_size": params["dim"],
        "intermediate_size": rows("model.layers.0.mlp.gate_proj.weight"),
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads"),
        "rms_norm_eps": params.get("norm_eps"),
        "rope_theta": params.get("rope_theta", 10000.0),
        "max_position_embeddings": 2048,
        "vocab_size": rows("model.embed_tokens.weight"),
    }


def added(base, change):
    """The Stored base + change, in float16 as the released tool adds them; rows that only the
    delta has are added to zeros."""
    def read():
        total = torch.zeros(change.shape, dtype=torch.float16)
        total[:base.shape[0]] = base.read()
        return total.add_(change.read().half())
    return Stored(change.where, change.shape, torch.float16, read)


def add_delta(base, delta):
    """LLaMA + a Vicuna delta (two Checkpoints) -> the Checkpoint of Vicuna.

    Only the embedding and the head may have more rows in the delta: Vicuna v0 has one token more.
    Raises ValueError if the delta was made for another model.
    """
    tensors = {}
    for name, change in delta.tensors.items():
        if re.fullmatch(BUFFERS, name):
            continue
        if name not in base.tensors:
            raise ValueError(f"{base.path}: {name} is missing; {delta.path} has a delta for it")
        ours = base.tensors[name]
        more_rows = 0
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            more_rows = change.shape[0] - ours.shape[0]
        if more_rows < 0 or change.shape != (ours.shape[0] + more_rows, *ours.shape[1:]):
            raise ValueError(f"{change.where}: {change.shape}, but {ours.where} is {ours.shape}; "
                             "not its delta")
        tensors[name] = added(ours, change)
    return replace(
        base, kind="llama", tensors=tensors,
        config=base.config | {"vocab_size": delta.shape("llama.embed.weight")[0]},
        tokenizer=delta.tokenizer if delta.tokenizer.is_file() else base.tokenizer)
