"""Public checkpoints in, a weights folder out: each format is one table of names.

    python convert_weights.py --vit eva_vit_g.pth --qformer blip2_pretrained_flant5xxl.pth --llm vicuna-13b-v0 \\
        --adapter ArtGPT-4.pth --out weights/artgpt4-13b

What is notable here:

- The source files are mapped, not read, and the output is written tensor after tensor, header first, so that a 13B
  converts in the memory of its largest tensor.
- The fused matrices of artgpt4.py are their parts stacked, so fusing is writing one part after the other.
- Every shape is checked before the first byte is written, every value while it is. The folder appears when it is whole.
- torch.load runs with weights_only=True: a pickle that would run code is refused.
"""
import argparse
import contextlib
import json
import os
import pickle
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from artgpt4 import (ArtGPT4, Config, LlamaConfig, QFormerConfig, ViTConfig, initial_adapter, load_tokenizer,
                     read_tensors, resize_pos_embed, trainable_names)
from command import Progress, run_command

# ---------------------------------------------------------------------------------------------------------------------
# The formats: a name of artgpt4.py, and where the released file keeps it. {i} is the block; .* is .weight and .bias;
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
    "vit.blocks.{i}.fc1.*": "blocks.{i}.mlp.fc1.*",
    "vit.blocks.{i}.fc2.*": "blocks.{i}.mlp.fc2.*",
}
BLIP2 = {
    "ln_vision.*": "ln_vision.*",
    "qformer.queries": "query_tokens",
    "qformer.norm.*": "Qformer.bert.embeddings.LayerNorm.*",
    "qformer.layers.{i}.self_attn.query.*": "Qformer.bert.encoder.layer.{i}.attention.self.query.*",
    "qformer.layers.{i}.self_attn.key.*": "Qformer.bert.encoder.layer.{i}.attention.self.key.*",
    "qformer.layers.{i}.self_attn.value.*": "Qformer.bert.encoder.layer.{i}.attention.self.value.*",
    "qformer.layers.{i}.self_attn.out.*": "Qformer.bert.encoder.layer.{i}.attention.output.dense.*",
    "qformer.layers.{i}.self_attn.norm.*": "Qformer.bert.encoder.layer.{i}.attention.output.LayerNorm.*",
    "qformer.layers.{i}.cross_attn.query.*": "Qformer.bert.encoder.layer.{i}.crossattention.self.query.*",
    "qformer.layers.{i}.cross_attn.key.*": "Qformer.bert.encoder.layer.{i}.crossattention.self.key.*",
    "qformer.layers.{i}.cross_attn.value.*": "Qformer.bert.encoder.layer.{i}.crossattention.self.value.*",
    "qformer.layers.{i}.cross_attn.out.*": "Qformer.bert.encoder.layer.{i}.crossattention.output.dense.*",
    "qformer.layers.{i}.cross_attn.norm.*": "Qformer.bert.encoder.layer.{i}.crossattention.output.LayerNorm.*",
    "qformer.layers.{i}.fc1.*": "Qformer.bert.encoder.layer.{i}.intermediate_query.dense.*",
    "qformer.layers.{i}.fc2.*": "Qformer.bert.encoder.layer.{i}.output_query.dense.*",
    "qformer.layers.{i}.norm.*": "Qformer.bert.encoder.layer.{i}.output_query.LayerNorm.*",
}
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
ARTGPT4 = {  # pretrained_minigpt4.pth is its first line
    "proj.*": "llama_proj.*",
    "llama.blocks.{i}.attn_norm.weight": "llama_model.model.layers.{i}.input_layernorm.weight",
    "llama.blocks.{i}.mlp_norm.weight": "llama_model.model.layers.{i}.post_attention_layernorm.weight",
    "llama.blocks.{i}.adapter.down.*": "llama_model.model.layers.{i}.self_attn.1.down.*",
    "llama.blocks.{i}.adapter.up.*": "llama_model.model.layers.{i}.self_attn.1.up.*",
}


@dataclass
class Format:
    """A kind of checkpoint: what it is called, the tensor that only it has, its table, and what is left unread."""
    what: str
    sign: str
    table: dict
    unused: str


FORMATS = {
    "eva": Format("EVA-ViT-g", "blocks.0.attn.q_bias", EVA_VIT, r"(head|norm)\.(weight|bias)"),
    "blip2": Format(
        "BLIP-2's Q-Former", "Qformer.bert.embeddings.LayerNorm.weight", BLIP2,
        r"t5_proj\..*|Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight|.*\.position_ids"
        r"|Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.(dense|LayerNorm)\..*"),
    "llama": Format("LLaMA or Vicuna, as transformers keeps it", "model.embed_tokens.weight", LLAMA,
                    r".*\.rotary_emb\.inv_freq"),
    "artgpt4": Format("ArtGPT-4's trained part", "llama_model.model.layers.0.self_attn.1.down.weight", ARTGPT4,
                      r".*\.rotary_emb\.inv_freq|.*\.position_ids"),
    "minigpt4": Format("MiniGPT-4's projection", "llama_proj.weight", ARTGPT4,
                       r".*\.rotary_emb\.inv_freq|.*\.position_ids"),
}

# ---------------------------------------------------------------------------------------------------------------------
# Reading: a checkpoint is a dictionary of tensors that are still in their files


@dataclass
class Stored:
    """A tensor in a file. `where` names both; read() maps or computes it, once, when it is written."""
    where: str
    shape: tuple
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


@dataclass
class Checkpoint:
    """An opened checkpoint: where it is, a key of FORMATS, its tensors by name, and its config.json."""
    path: Path
    kind: str
    tensors: dict
    config: dict

    def shape(self, name):
        if name not in self.tensors:
            raise ValueError(f"{self.path}: {name} is missing")
        return self.tensors[name].shape

    def count(self, pattern):
        """The number of blocks whose index the pattern's group finds."""
        found = (re.match(pattern, name) for name in self.tensors)
        return max((int(match[1]) + 1 for match in found if match), default=0)


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


def load_torch(file):
    """The tensors of a torch.save file, {name: tensor}, mapped where it is a zip. Nothing in it is executed."""
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a damaged pickle can raise anything
        if isinstance(error, pickle.UnpicklingError) and (code := re.search(r"GLOBAL (\S+)", str(error))):
            raise ValueError(f"{file}: would run code of its own ({code[1]}); refused, nothing was run") from None
        raise ValueError(f"{file}: damaged, cut short, or not a checkpoint") from error
    if isinstance(loaded, dict):
        loaded = loaded.get("model", loaded)
    tensors = {n: t for n, t in loaded.items() if isinstance(t, torch.Tensor)} if isinstance(loaded, dict) else {}
    if not tensors:
        raise ValueError(f"{file}: no dictionary of tensors")
    return tensors


def open_file(file):
    """The tensors of one file, {name: Stored}; safetensors or torch.save, whatever it is called."""
    with open(file, "rb") as opened:
        head = opened.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{file}: a Git LFS pointer, not the weights themselves; fetch them with: git lfs pull")
    tensors = dict(read_tensors(file)) if head[8:9] == b"{" else load_torch(file)
    return {name: Stored(f"{file}: {name}", tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor)
            for name, tensor in tensors.items()}


def open_folder(folder):
    """The tensors of a model as transformers keeps it, one file or shards with an index; safetensors before .bin."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{whole}.index.json"
        shards = sorted(set(read_json(index).get("weight_map", {}).values())) if index.is_file() else [whole]
        present = [shard for shard in shards if (folder / shard).is_file()]
        if index.is_file() and len(present) < len(shards):
            missing = next(shard for shard in shards if shard not in present)
            raise ValueError(f"{index}: names {missing}, which is not there; the download is incomplete")
        if present:
            return {name: tensor for shard in shards for name, tensor in open_file(folder / shard).items()}
    raise ValueError(f"{folder}: no model.safetensors and no pytorch_model.bin, nor an index of their shards")


def open_checkpoint(path, *kinds):
    """The checkpoint at `path`, recognised by its tensors. Raises ValueError if it is none, or none of `kinds`."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    tensors = open_folder(path) if path.is_dir() else open_file(path)
    kind = next((kind for kind, known in FORMATS.items() if known.sign in tensors), None)
    expected = " or ".join(FORMATS[kind].what for kind in kinds)
    if kind is None:
        raise ValueError(f"{path}: not a checkpoint known here; expected {expected}")
    if kind not in kinds:
        raise ValueError(f"{path}: this is {FORMATS[kind].what}; expected {expected}")
    return Checkpoint(path, kind, tensors, read_json(path / "config.json") if path.is_dir() else {})


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


def vit_config(vit, layers):
    """ViTConfig from the file's shapes, and the image size of its position embedding. layers: --vit-layers or None."""
    width, found = vit.shape("cls_token")[-1], vit.count(r"blocks\.(\d+)\.")
    layers = layers or found - 1
    if layers > found:
        raise ValueError(f"{vit.path}: {found} blocks, but --vit-layers is {layers}")
    patch_size = vit.shape("patch_embed.proj.weight")[-1]
    grid = round((vit.shape("pos_embed")[1] - 1) ** 0.5)
    config = ViTConfig(width, layers, width // 88, vit.shape("blocks.0.mlp.fc1.weight")[0], patch_size)
    return config, grid * patch_size


def qformer_config(qformer):
    """QFormerConfig from the file's shapes."""
    _, queries, width = qformer.shape("query_tokens")
    layer = "Qformer.bert.encoder.layer"
    return QFormerConfig(width, qformer.count(rf"{layer}\.(\d+)\."), width // 64,
                         qformer.shape(f"{layer}.0.intermediate_query.dense.weight")[0], queries)


SUPPORTED = {  # keys of LLaMA's config.json that change the arithmetic, and the one value that artgpt4.py computes
    "model_type": "llama", "hidden_act": "silu", "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
    "attention_dropout": 0, "sliding_window": None, "quantization_config": None, "partial_rotary_factor": 1,
}


def llama_config(values, file):
    """LlamaConfig from config.json's values. Raises ValueError for what would change the arithmetic."""
    rope = values.get("rope_parameters") or {}                # where newer transformers releases keep rope_theta
    values = {"rope_theta": 10000.0, "tie_word_embeddings": False} | values | rope
    if rope.get("rope_type", "default") != "default":
        values["rope_scaling"] = rope["rope_type"]
    values["num_key_value_heads"] = values.get("num_key_value_heads") or values.get("num_attention_heads")
    for key, supported in SUPPORTED.items():
        if values.get(key, supported) != supported:
            raise ValueError(f"{file}: {key} is {json.dumps(values[key])}; only {json.dumps(supported)} is supported")
    if missing := [key for key in asdict(LlamaConfig()) if values.get(key) is None]:
        raise ValueError(f"{file}: {missing[0]} is missing")
    config = LlamaConfig(**{key: values[key] for key in asdict(LlamaConfig())})
    if values.get("head_dim") not in (None, config.hidden_size // config.num_attention_heads):
        raise ValueError(f"{file}: head_dim is {values['head_dim']}; only hidden_size / heads is supported")
    return config


# ---------------------------------------------------------------------------------------------------------------------
# From their names to ours


@dataclass
class Fused:
    """A tensor of the output: parts that are written one after another, each first through `pack`."""
    shape: tuple
    dtype: torch.dtype
    parts: list
    pack: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous

    def nbytes(self):
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def their_names(table, name):
    """The names of the parts of `name` in the table's format; none if the format does not have it."""
    block = re.search(r"\.(\d+)\.", name)
    pattern = name.replace(block[0], ".{i}.", 1) if block else name
    stem, _, last = pattern.rpartition(".")
    parts = table.get(pattern) or table.get(f"{stem}.*", "").replace(".*", f".{last}")
    return [part.replace("{i}", block[1] if block else "") for part in parts.split(" + ") if part]


def take(checkpoint, shapes):
    """The tensors `shapes` ({name of artgpt4.py: shape}) from a checkpoint, {name: Fused}.

    Raises ValueError, naming them, for tensors that are missing, of another shape or type, or unknown.
    """
    known, found, used, missing = FORMATS[checkpoint.kind], {}, set(), []
    for name, shape in shapes.items():
        parts = []
        for source in their_names(known.table, name):
            if source == "zeros":
                like = parts[-1]
                parts.append(Stored("zeros", like.shape, like.dtype, lambda like=like: torch.zeros_like(like.read())))
            elif source in checkpoint.tensors:
                parts.append(checkpoint.tensors[source])
                used.add(source)
            else:
                missing.append(source)
        if parts and not missing:
            found[name] = fuse(parts, shape)
    unknown = [name for name in checkpoint.tensors if name not in used and not re.fullmatch(known.unused, name)]
    for names, what in ((missing, "is missing"), (unknown, f"is no part of {known.what}")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ValueError(f"{checkpoint.path}: {names[0]} {what}{more}")
    return found


def fuse(parts, shape):
    """The parts stacked along their first dimension. Raises ValueError unless that gives `shape` and one dtype."""
    dtypes = {part.dtype for part in parts}
    if len(dtypes) > 1 or not dtypes <= DTYPE_NAMES.keys():
        raise ValueError(f"{parts[0].where}: {', '.join(map(str, dtypes))}; expected float16, bfloat16 or float32")
    stacked = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    if stacked != tuple(shape) or any(part.shape[1:] != parts[0].shape[1:] for part in parts):
        shapes = " + ".join(str(part.shape) for part in parts)
        raise ValueError(f"{parts[0].where}: {shapes}; {tuple(shape)} was expected")
    return Fused(tuple(shape), parts[0].dtype, parts)


# ---------------------------------------------------------------------------------------------------------------------
# Writing

DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_safetensors(file, tensors, progress):
    """Write {name: Fused} to a safetensors file, header first, then a few rows at a time.

    progress(bytes, where) is called after each of them. Raises ValueError for a NaN or an infinity.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes()
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as written:
        written.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            for part in tensor.parts:
                for rows in part.read().split(1024):
                    if not torch.stack(rows.aminmax()).isfinite().all():
                        raise ValueError(f"{part.where}: holds NaN or infinity; the file is damaged")
                    rows = tensor.pack(rows).contiguous()
                    written.write(rows.view(torch.uint8).numpy().data)
                    progress(rows.nbytes, part.where)
        written.flush()
        os.fsync(written.fileno())


@contextlib.contextmanager
def folder_beside(out):
    """A folder beside `out` to write to; once the block is done it is renamed to `out`, else removed."""
    beside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        beside.mkdir(parents=True)
        yield beside
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def take_adapter(checkpoint, config, shapes, llm):
    """All that trains, float32, {name: Fused}: from the checkpoint; what it lacks starts as the paper's training does.

    checkpoint: ArtGPT-4.pth, pretrained_minigpt4.pth or None. Norms that it lacks are those of `llm`, {name: Fused}.
    Raises ValueError if it was made for another language model.
    """
    found = {}
    if checkpoint is not None:
        made_for = {"width": checkpoint.shape("llama_proj.weight")[0]}
        needed = {"width": config.llama.hidden_size, "number of blocks": config.llama.num_hidden_layers}
        if checkpoint.kind == "artgpt4":
            made_for["number of blocks"] = checkpoint.count(r"llama_model\.model\.layers\.(\d+)\.self_attn\.1\.")
        for size, value in made_for.items():
            if value != needed[size]:
                raise ValueError(f"{checkpoint.path}: made for a language model whose {size} is {value}; that of --llm "
                                 f"is {needed[size]}")
        has = {"artgpt4": "", "minigpt4": "proj."}[checkpoint.kind]
        found = take(checkpoint, {name: shape for name, shape in shapes.items() if name.startswith(has)})
    torch.manual_seed(42)
    start = initial_adapter(config)

    def initial(name):
        return next(tensor for produced, tensor in start if produced == name)
    for name in shapes.keys() - found.keys() - llm.keys():
        found[name] = Fused(shapes[name], torch.float32,
                            [Stored(name, shapes[name], torch.float32, lambda name=name: initial(name))])
    tensors = {name: found.get(name) or llm[name] for name in shapes}
    return {name: Fused(tensor.shape, torch.float32, tensor.parts, torch.Tensor.float)
            for name, tensor in tensors.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def convert(args):
    """The released files -> a weights folder."""
    out = Path(args.out)
    if out.exists():
        raise ValueError(f"{out}: exists already; remove it or give another --out")
    vit = open_checkpoint(args.vit, "eva")
    qformer = open_checkpoint(args.qformer, "blip2")
    llm = open_checkpoint(args.llm, "llama")
    adapter = open_checkpoint(args.adapter, "artgpt4", "minigpt4") if args.adapter else None

    config = Config(llama=llama_config(llm.config, llm.path / "config.json"), qformer=qformer_config(qformer))
    config.vit, trained_size = vit_config(vit, args.vit_layers)
    config.image_size = args.image_size or trained_size
    if config.image_size % config.vit.patch_size:
        raise ValueError(f"--image-size {config.image_size}: must be a multiple of {config.vit.patch_size}")
    config.adapter_width = config.llama.hidden_size // 4
    if adapter is not None and adapter.kind == "artgpt4":
        config.adapter_width = adapter.shape(FORMATS["artgpt4"].sign)[0]
    tokenizer = llm.path / "tokenizer.model"
    load_tokenizer(tokenizer, config)

    vit.tensors = {name: tensor for name, tensor in vit.tensors.items()   # the blocks after the last one read
                   if not (block := re.match(r"blocks\.(\d+)\.", name)) or int(block[1]) < config.vit.layers}
    grid_embed, patches = vit.tensors["pos_embed"], (config.image_size // config.vit.patch_size) ** 2
    vit.tensors["pos_embed"] = Stored(grid_embed.where, (1, patches + 1, grid_embed.shape[2]), grid_embed.dtype,
                                      lambda: resize_pos_embed(grid_embed.read(), patches))
    if llm.config.get("tie_word_embeddings"):
        llm.tensors.pop("lm_head.weight", None)

    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in ArtGPT4(config, None).state_dict().items()}

    def only(*prefixes):
        return {name: shape for name, shape in shapes.items() if name.startswith(prefixes) and ".adapter." not in name}
    llama = take(llm, only("llama."))
    files = {
        "vision.safetensors": take(vit, only("vit.")) | take(qformer, only("ln_vision.", "qformer.")),
        "llama.safetensors": llama,
        "adapter.safetensors": take_adapter(adapter, config, {n: shapes[n] for n in trainable_names(config)}, llama),
    }
    total = sum(tensor.nbytes() for tensors in files.values() for tensor in tensors.values())
    progress, done = Progress("written", total / 1e9, "GB"), 0

    def count(size, where):
        nonlocal done
        done += size
        progress.show(done / 1e9, where.rpartition(" ")[2])
    with folder_beside(out) as folder:
        for file, tensors in files.items():
            write_safetensors(folder / file, tensors, count)
        shutil.copyfile(tokenizer, folder / "tokenizer.model")
        (folder / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
    for file, tensors in files.items():
        dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
        print(f"{out / file}  {(out / file).stat().st_size / 1e9:.3f} GB  {', '.join(dtypes)}")
    if adapter is not None and adapter.kind == "artgpt4":
        print(f"next: python chat.py --weights {out} image.jpg")
    else:
        print(f"The adapters are at their start. next: python train.py --stage 1 --weights {out}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Make a weights folder from the public checkpoints.")
    parser.add_argument("--vit", metavar="FILE", required=True, help="eva_vit_g.pth")
    parser.add_argument("--qformer", metavar="FILE", required=True, help="blip2_pretrained_flant5xxl.pth")
    parser.add_argument("--llm", metavar="FOLDER", required=True, help="Vicuna, as transformers keeps it")
    parser.add_argument("--adapter", metavar="FILE", help="ArtGPT-4.pth or pretrained_minigpt4.pth; else the start")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="the weights folder to make")
    parser.add_argument("--vit-layers", metavar="N", type=int, help="blocks of the ViT to keep (default: all but one)")
    parser.add_argument("--image-size", metavar="N", type=int, help="pixels a side (default: what the ViT has)")
    run_command(convert, parser, arguments)


if __name__ == "__main__":
    main()
