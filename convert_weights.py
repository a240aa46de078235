"""Public checkpoints in, a weights folder out, and back.

    python convert_weights.py             lists what checkpoints/ holds and what is missing
    python convert_weights.py --vit eva_vit_g.pth --qformer blip2_pretrained_flant5xxl.pth \\
        --llm vicuna-13b-v0 --adapter ArtGPT-4.pth --out weights/artgpt4
    python convert_weights.py --weights weights/artgpt4 --export ArtGPT-4.pth

All names, shapes and settings are checked before the first byte is written, all values while they
are written. The folder appears when it is complete.
"""
import argparse
import json
import math
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
from dataclasses import asdict, replace
from functools import partial
from glob import escape
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from artgpt4 import PROMPTS, ArtGPT4, Config
from common.command_line import Misuse, Progress, number, printable, run_command
from common.files import check_file, what_it_is, written_beside
from common.int8 import quantise
from conversion.checkpoints import Stored, checked, in_memory, open_checkpoint, take
from conversion.formats import BUFFERS, llama_sizes, qformer_sizes, their_names, vit_sizes

SHARD = 2_000_000_000                                         # bytes, in memory at a time


# ---- What is put together


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
    ours = llama_sizes(base.config, base.config_file)
    theirs = llama_sizes(delta.config, delta.config_file)
    for key in ours.keys() - {"vocab_size"}:
        if ours[key] != theirs[key]:
            raise ValueError(f"{delta.path}: made for another LLaMA: its {key} is {theirs[key]}, "
                             f"that of {base.path} is {ours[key]}")
    tensors = {}
    for name, change in delta.tensors.items():
        if re.fullmatch(BUFFERS, name):
            continue
        if name not in base.tensors:
            raise ValueError(f"{base.path}: {name} is missing; {delta.path} has a delta for it")
        old, new = base.tensors[name], change.shape
        rows = new[:1] if name in ("model.embed_tokens.weight", "lm_head.weight") else old.shape[:1]
        if new != rows + old.shape[1:] or rows < old.shape[:1]:
            raise ValueError(f"{change.where}: {new}, but {old.where} is {old.shape}; not its delta")
        tensors[name] = added(old, change)
    return replace(base, kind="llama", tensors=tensors, config=delta.config,
                   config_file=delta.config_file,
                   tokenizer=delta.tokenizer if delta.tokenizer.exists() else base.tokenizer)


def resized(pos_embed, patches):
    """Position embedding (1, P, D) -> (1, patches + 1, D), for another square grid of patches. The
    row of the class token stays as it is."""
    cls_row, grid = pos_embed[:, :1], pos_embed[:, 1:]
    old, new = math.isqrt(grid.shape[1]), math.isqrt(patches)
    if old == new:
        return pos_embed
    grid = grid.float().unflatten(1, (old, old)).permute(0, 3, 1, 2)  # (1, D, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    grid = grid.flatten(2).transpose(1, 2)                    # (1, patches, D)
    return torch.cat((cls_row, grid.to(cls_row.dtype)), dim=1)


def fit_vit(vit, sizes, image_size):
    """The sizes of the ViT that is kept: of EVA-ViT-g's 40 blocks 39 (BLIP-2 reads the features of
    the last but one), of a smaller model of its format all but the last. Changes the Checkpoint."""
    layers = sizes["vit_layers"]
    if vit.kind == "eva" and not (sizes["vit_width"] == Config.vit_width and layers < 40):
        layers -= 1
        for name in [name for name in vit.tensors if name.startswith(f"blocks.{layers}.")]:
            del vit.tensors[name]
    image_size = image_size or sizes["image_size"]
    patches = (image_size // sizes["patch_size"]) ** 2
    name, = their_names(vit.kind, "vit.pos_embed")
    trained = vit.tensors[name]
    vit.tensors[name] = replace(trained, shape=(1, patches + 1, sizes["vit_width"]),
                                read=lambda: resized(trained.read(), patches))
    return sizes | {"vit_layers": layers, "image_size": image_size}


def start(model):
    """{name: Stored} of projection and adapters as training starts them."""
    torch.manual_seed(42)
    return {name: in_memory(name, tensor) for name, tensor in model.start_adapter().items()}


def as_float32(stored):
    return replace(stored, dtype=torch.float32, read=lambda: stored.read().float())


def as_int8(tensors):
    """{name: Stored} of the language model, with the matrices of its blocks as int8 and a float32
    scale a row beside each."""
    small = {}
    for name, stored in tensors.items():
        if re.search(r"\.(attn|mlp)\.", name):
            for key, part, shape, dtype in (("weight", 0, stored.shape, torch.int8),
                                            ("scale", 1, stored.shape[:1], torch.float32)):
                small[name.replace("weight", key)] = Stored(
                    stored.where, shape, dtype, partial(quantised_part, stored, part, shape))
        else:
            small[name] = stored
    return small


def quantised_part(stored, part, shape):
    """The int8 matrix (part 0) or the scales of its rows (part 1) of a Stored matrix."""
    rows = [quantise(rows)[part] for rows in stored.read().split(256)]
    return torch.cat(rows).view(shape)


# ---- The command


def convert(args):
    """Convert public checkpoints to a weights folder."""
    out = Path(args.out)
    if out.exists():
        raise ValueError(f"{out}: exists already; remove it or give another --out")
    vit, qformer = open_checkpoint(args.vit, "vit"), open_checkpoint(args.qformer, "qformer")
    llm = base = open_checkpoint(args.llm, "llm")
    if args.delta:
        llm = add_delta(base, open_checkpoint(args.delta, "delta"))
    adapter = open_checkpoint(args.adapter, "adapter") if args.adapter else None

    sizes = qformer_sizes(qformer) | fit_vit(vit, vit_sizes(vit), args.image_size)
    sizes |= llama_sizes(llm.config, llm.config_file)
    sizes["adapter_width"] = sizes["llama_width"] // 4
    if adapter is not None and adapter.kind == "artgpt4":
        sizes["adapter_width"] = adapter.shape("llama.blocks.0.adapter.down.weight")[0]
    config = Config(**sizes, prompt=args.prompt or Config.prompt)

    with torch.device("meta"):
        model = ArtGPT4(config, None)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    vision = {name: shape for name, shape in shapes.items()
              if name.startswith(("vit.", "ln_vision.", "qformer."))}
    language = {name: shape for name, shape in shapes.items()
                if name.startswith("llama.") and ".adapter." not in name}
    trainable = {name: shapes[name] for name in model.trainable_names()}

    if llm.config.get("tie_word_embeddings"):
        tie(llm)
    llama = take(llm, language, config)
    given = {}
    if adapter is not None:
        given = take(adapter, trainable, config, "proj." if adapter.kind == "minigpt4" else "")
    trained = {**start(model), **{name: llama[name] for name in trainable if name in llama},
               **given}
    files = {
        "vision.safetensors": take(vit, vision, config, "vit.") | take(
            qformer, vision, config, ("ln_vision.", "qformer.")),
        **in_shards(as_int8(llama) if args.int8 else llama),
        "adapter.safetensors": {name: as_float32(trained[name]) for name in trainable},
    }
    write_folder(out, files, config, llm.tokenizer)


def tie(llm):
    """The head of a Checkpoint with tied embeddings becomes a copy of them."""
    embed, head = (llm.tensors.get(their_names(llm.kind, name)[0])
                   for name in ("llama.embed.weight", "llama.head.weight"))
    if head is not None and not torch.equal(head.read(), embed.read()):
        raise ValueError(f"{llm.config_file}: tie_word_embeddings is true, but {head.where} is "
                         "not the embedding")
    llm.tensors[their_names(llm.kind, "llama.head.weight")[0]] = replace(
        embed, read=lambda: embed.read().clone())


def in_shards(tensors):
    """{file: {name: Stored}} of the language model: one file, or shards of about SHARD bytes."""
    shards, size = [{}], 0
    for name, stored in tensors.items():
        nbytes = math.prod(stored.shape) * stored.dtype.itemsize
        if size + nbytes > SHARD and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = stored
        size += nbytes
    if len(shards) == 1:
        return {"llama.safetensors": tensors}
    return {f"llama-{i:05d}-of-{len(shards):05d}.safetensors": shard
            for i, shard in enumerate(shards, 1)}


def write_folder(out, files, config, tokenizer):
    """Write a weights folder, whole or not at all, and print what was written.

    files: {file: {name: Stored}}. tokenizer: the path of its tokenizer.model.
    """
    total = sum(math.prod(stored.shape) * stored.dtype.itemsize
                for tensors in files.values() for stored in tensors.values())
    made = [folder for folder in out.parents if not folder.exists()]
    beside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))   # as Ctrl-C: nothing is left
    progress, done = Progress("written", total / 1e9, "GB"), 0
    try:
        beside.mkdir(parents=True)
        free = shutil.disk_usage(beside).free
        if free < total:
            raise ValueError(f"{out}: needs {total / 1e9:.2f} GB, but {free / 1e9:.2f} are free")
        for file, tensors in files.items():
            values = {}
            for name, stored in tensors.items():
                values[name] = stored.read().contiguous()
                done += values[name].nbytes
                progress.show(done / 1e9, printable(stored.where.rpartition(" ")[2]))
            save_file(values, beside / file, {"format": "pt"})
        where = {name: file for file in files if file.startswith("llama-") for name in files[file]}
        if where:
            index = json.dumps({"metadata": {}, "weight_map": where})
            (beside / "llama.safetensors.index.json").write_text(index)
        shutil.copyfile(tokenizer, beside / "tokenizer.model")
        (beside / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
        for file in beside.iterdir():
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        beside.rename(out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        for folder in made:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    for file, tensors in files.items():
        dtypes = sorted({str(stored.dtype).removeprefix("torch.") for stored in tensors.values()})
        size = (out / file).stat().st_size
        print(f"{printable(out / file)}  {size / 1e9:.3f} GB  {', '.join(dtypes)}")


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--vit", metavar="FILE", help="eva_vit_g.pth, or BLIP-2's or InstructBLIP's folder")
    add("--qformer", metavar="FILE", help="blip2_pretrained_flant5xxl.pth, or such a folder")
    add("--llm", metavar="FOLDER", help="Vicuna or LLaMA, in transformers' or Meta's format")
    add("--delta", metavar="FOLDER", help="a Vicuna delta, to be added to --llm")
    add("--adapter", metavar="FILE",
        help="ArtGPT-4.pth or pretrained_minigpt4.pth (default: untrained)")
    add("--out", metavar="FOLDER", help="the weights folder to make")
    add("--image-size", metavar="N", type=number(int, 1, 10_000),
        help="pixels per side (default: that of the ViT's position embedding)")
    add("--prompt", choices=PROMPTS, help="the conversation format of --llm (default: recognised)")
    add("--int8", action="store_true", help="store the language model's large matrices as int8")
    add("--export", metavar="FILE",
        help="write the trainable parameters of --weights in the layout of ArtGPT-4.pth")
    add("--weights", metavar="FOLDER", help="the weights folder or the run to --export")
    return parser


def command(args):
    convert(args)


def main(arguments=None):
    run_command(command, make_parser(), arguments)


if __name__ == "__main__":
    main()
