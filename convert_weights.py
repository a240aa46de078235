"""Public checkpoints in, a weights folder out, and back.

    python convert_weights.py             lists what checkpoints/ holds and what is missing
    python convert_weights.py --vit eva_vit_g.pth --qformer blip2_pretrained_flant5xxl.pth \\
        --llm vicuna-13b-v0 --adapter ArtGPT-4.pth --out weights/artgpt4
    python convert_weights.py --weights weights/artgpt4 --export ArtGPT-4.pth

Names, shapes and settings are checked before the first byte is written, values while they are
written. The folder appears when it is complete.
"""
import argparse
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict, replace
from functools import cache
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
from conversion.checkpoints import Stored, open_checkpoint, take, take_adapter
from conversion.formats import llama_sizes, their_names, vision_sizes

SHARD = 2_000_000_000                                         # bytes, in memory at a time

# ---- The language model


def open_llm(path, delta_path):
    """The Checkpoint of the language model, that of the base of a delta (or None), and {name in
    Config: value}."""
    llm, base = open_checkpoint(path, "llm"), None
    if llm.kind == "instructblip_llm":                        # it has rows that its config lacks
        rows = llm.shape("llama.embed.weight")[0]
        llm.config = (llm.config.get("text_config") or {}) | {"vocab_size": rows}
    sizes = llama_sizes(llm.config, llm.config_file)
    layers = llm.count("llama.blocks.0.attn_norm.weight")
    if layers != sizes["llama_layers"]:
        raise ValueError(f"{llm.config_file}: num_hidden_layers is {sizes['llama_layers']}, but the "
                         f"tensors are of {layers} blocks")
    check_frequencies(llm, sizes)
    if delta_path:
        base, before, llm = llm, sizes, open_checkpoint(delta_path, "delta")
        sizes = llama_sizes(llm.config, llm.config_file)
        for key in sizes.keys() - {"vocab_size"}:
            if sizes[key] != before[key]:
                raise ValueError(f"{llm.path}: {key} is {sizes[key]}, but {before[key]} in "
                                 f"{base.path}; give the LLaMA that it is the delta of")
        if not llm.tokenizer.exists():
            llm.tokenizer = base.tokenizer
    return llm, base, sizes


def check_frequencies(llm, sizes):
    """Raises ValueError for rotary frequencies, which older files hold, of another rope_theta."""
    pairs = torch.arange(0, 1, 2 * sizes["llama_heads"] / sizes["llama_width"])
    expected = sizes["rope_theta"] ** -pairs
    for name, stored in llm.tensors.items():
        if name.endswith(("rotary_emb.inv_freq", "rope.freqs")):
            found = stored.read().float()
            if found.shape != expected.shape or not found.allclose(expected, rtol=1e-2, atol=0):
                raise ValueError(f"{stored.where}: not the frequencies of the heads and the "
                                 f"rope_theta in {llm.config_file}")


def take_llm(llm, base, shapes, config):
    """The tensors of the language model, {name: Stored}; with a base, the sums."""
    if llm.config.get("tie_word_embeddings"):
        embed, head = (their_names(llm.kind, name)[0]
                       for name in ("llama.embed.weight", "llama.head.weight"))
        tied = llm.tensors.setdefault(head, llm.tensors[embed])
        if not torch.equal(tied.read(), llm.tensors[embed].read()):
            raise ValueError(f"{llm.config_file}: tie_word_embeddings is true, but {head} differs")
    tensors = take(llm, shapes, config)
    if base is None:
        return tensors
    rows = base.shape("llama.embed.weight")[:1]               # Vicuna v0 has one more than LLaMA
    old = take(base, {name: rows + shape[1:] if name.endswith(("embed.weight", "head.weight"))
                      else shape for name, shape in shapes.items()}, config)
    return {name: added(old[name], change) for name, change in tensors.items()}


def added(base, change):
    """The Stored base + change, in float16 as the released tool adds them; rows that only the
    delta has are added to zeros."""
    def read():
        total = torch.zeros(change.shape, dtype=torch.float16)
        total[:base.shape[0]] = base.read()
        return total.add_(change.read().half())
    return replace(change, dtype=torch.float16, read=read)


def check_tokenizer(file, llm, rows):
    """How many pieces a tokenizer.model has. Raises ValueError unless it fits to a language model
    with an embedding of that many rows."""
    check_file(file)
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes() or b"empty")
    except (RuntimeError, ValueError):
        raise ValueError(f"{file}: {what_it_is(file) or 'no sentencepiece model'}") from None
    pieces, special = tokenizer.get_piece_size(), [tokenizer.bos_id(), tokenizer.eos_id()]
    if special != [tokenizer.piece_to_id(piece) for piece in ("<s>", "</s>")] or special == [
            llm.config.get("eos_token_id"), llm.config.get("bos_token_id")]:
        raise ValueError(f"{file}: its BOS and EOS are not LLaMA's <s> and </s>")
    if not pieces <= rows < pieces + 64:
        raise ValueError(f"{file}: {pieces} pieces, but the language model has {rows} tokens")
    return pieces


def recognised_prompt(llm, extra):
    """The conversation format of a language model, and how one sees it. extra: how many tokens it
    has beyond the tokenizer's pieces."""
    name = f"{llm.path.resolve().name} {llm.config.get('_name_or_path')}".lower()
    if llm.kind == "instructblip_llm":
        return "vicuna_v1", "InstructBLIP's Vicuna"
    if extra == 1:
        return "vicuna_v0", "it has a token more than its tokenizer"
    if "v1" in name or (llm.path / "generation_config.json").exists():
        return "vicuna_v1", "by its name or its generation_config.json"
    return "vicuna_v0", "nothing says which; --prompt does"


# ---- The picture's side


def fit_vit(vit, sizes, image_size):
    """Leave out the last block of a file of EVA-ViT-g, whose features BLIP-2 does not read, and
    resize the position embedding. Changes the Checkpoint and its sizes."""
    if vit.kind == "eva" and (sizes["vit_width"] != 1408 or sizes["vit_layers"] > 39):
        sizes["vit_layers"] -= 1
        prefix = f"blocks.{sizes['vit_layers']}."
        vit.tensors = {name: stored for name, stored in vit.tensors.items()
                       if not name.startswith(prefix)}
    if image_size is not None and image_size % sizes["patch_size"]:
        raise ValueError(f"--image-size {image_size} is no multiple of {sizes['patch_size']}")
    if image_size is not None:
        name, = their_names(vit.kind, "vit.pos_embed")
        trained, grid = vit.tensors[name], image_size // sizes["patch_size"]
        vit.tensors[name] = replace(trained, shape=(1, grid * grid + 1, sizes["vit_width"]),
                                    read=lambda: resized(trained.read(), grid))
        sizes["image_size"] = image_size


def resized(pos_embed, grid):
    """Position embedding (1, P, D) -> (1, grid * grid + 1, D), for grid * grid patches. The row of
    the class token stays as it is."""
    cls_row, rest = pos_embed[:, :1], pos_embed[:, 1:]
    old = math.isqrt(rest.shape[1])
    rest = rest.float().unflatten(1, (old, old)).permute(0, 3, 1, 2)           # (1, D, old, old)
    rest = F.interpolate(rest, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat((cls_row, rest.flatten(2).transpose(1, 2).to(cls_row.dtype)), dim=1)


# ---- The command


def convert(args):
    """Convert public checkpoints to a weights folder."""
    out = Path(args.out)
    if out.exists():
        raise ValueError(f"{out}: exists already; remove it or give another --out")
    vit, qformer = open_checkpoint(args.vit, "vit"), open_checkpoint(args.qformer, "qformer")
    llm, base, sizes = open_llm(args.llm, args.delta)
    adapter = open_checkpoint(args.adapter, "adapter") if args.adapter else None

    sizes |= vision_sizes(vit, qformer)
    fit_vit(vit, sizes, args.image_size)
    sizes["adapter_width"] = sizes["llama_width"] // 4
    if adapter is not None and adapter.kind == "artgpt4":
        sizes["adapter_width"] = adapter.shape("llama.blocks.0.adapter.down.weight")[0]
    extra = sizes["vocab_size"] - check_tokenizer(llm.tokenizer, llm, sizes["vocab_size"])
    prompt, why = recognised_prompt(llm, extra)
    config = Config(**sizes, prompt=args.prompt or prompt)

    with torch.device("meta"):
        model = ArtGPT4(config, None)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    vision = {name: shape for name, shape in shapes.items()
              if name.startswith(("vit.", "ln_vision.", "qformer."))}
    llama = take_llm(llm, base, {name: shape for name, shape in shapes.items()
                                 if name.startswith("llama.") and ".adapter." not in name}, config)

    @cache
    def start():                                              # 2 GB of a 13B: when it is its turn
        torch.manual_seed(42)
        return model.start_adapter()
    trainable = {name: shapes[name] for name in model.trainable_names()}
    trained = {name: Stored(name, shape, torch.float32, lambda name=name: start()[name])
               for name, shape in trainable.items()}
    trained |= {name: llama[name] for name in trainable if name in llama}
    if adapter is not None:
        trained |= take_adapter(adapter, config, trainable)
    write_folder(out, {
        "vision.safetensors": take(vit, vision, config, "vit.") | take(
            qformer, vision, config, ("ln_vision.", "qformer.")),
        **in_shards(llama),
        "adapter.safetensors": trained,
    }, config, llm.tokenizer, args.int8)

    print(f"prompt format: {config.prompt} ({'as given' if args.prompt else why})")
    if adapter is not None and (extra != 1 or llm.kind == "instructblip_llm"):
        print(f"warning: {printable(adapter.path)} was trained with Vicuna v0, which has one token "
              "more than LLaMA and another format; with this model its answers are noise",
              file=sys.stderr)
    weights = printable(shlex.quote(str(out)))
    init = f" --init {weights}" if adapter else ""            # MiniGPT-4's projection
    print(f"next: python chat.py --weights {weights} image.jpg"
          if adapter is not None and adapter.kind == "artgpt4" else
          "The adapters are untrained. next: python train.py --stage 1 --recipe paper "
          f"--dtype bfloat16 --weights {weights}{init} --data 'laion/*.tar'")


def in_shards(tensors):
    """{file: {name: Stored}} of the language model: one file, or shards of about SHARD bytes."""
    shards, size = [{}], 0
    for name, stored in tensors.items():
        if size + stored.nbytes > SHARD and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = stored
        size += stored.nbytes
    if len(shards) == 1:
        return {"llama.safetensors": tensors}
    return {f"llama-{i:05d}-of-{len(shards):05d}.safetensors": shard
            for i, shard in enumerate(shards, 1)}


def write_folder(out, files, config, tokenizer, int8):
    """Write a weights folder, whole or not at all, and print what was written.

    files: {file: {name: Stored}}. tokenizer: the path of its tokenizer.model.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{escape(out.name)}.*"):
        print(f"{printable(left)}: left by a conversion that was killed, unless one is running; "
              "remove it", file=sys.stderr)
    total = sum(stored.nbytes for tensors in files.values() for stored in tensors.values())
    progress, done, where = Progress("written", total / 1e9, "GB"), 0, {}
    with tempfile.TemporaryDirectory(
            prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True) as beside:
        folder = Path(beside) / out.name
        folder.mkdir()
        free = shutil.disk_usage(folder).free
        if free < (total / 2 if int8 else total):
            raise ValueError(f"{out}: needs {total / 1e9:.2f} GB, but {free / 1e9:.2f} are free")
        for file, tensors in files.items():
            values, seen = {}, set()                          # safetensors takes no aliases
            for name, stored in tensors.items():
                value = stored.read()
                if file == "adapter.safetensors":
                    value = value.float()
                elif int8 and re.match(r"llama\.blocks\.\d+\.(attn|mlp)\.", name):
                    value, scale = quantise(value)
                    values[name.replace(".weight", ".scale")] = scale[:, 0]
                values[name] = value.clone() if value.data_ptr() in seen else value.contiguous()
                seen.add(value.data_ptr())
                done += stored.nbytes
                progress.show(done / 1e9, printable(stored.where.rpartition(" ")[2]))
            save_file(values, folder / file, {"format": "pt"})
            if file.startswith("llama-"):
                where |= dict.fromkeys(values, file)
        if where:
            index = json.dumps({"metadata": {}, "weight_map": where})
            (folder / "llama.safetensors.index.json").write_text(index)
        shutil.copyfile(tokenizer, folder / "tokenizer.model")
        (folder / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
        for file in folder.iterdir():
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        folder.rename(out)
    for file in files:
        print(f"{printable(out / file)}  {(out / file).stat().st_size / 1e9:.3f} GB")


def export(args):
    """Write adapter.safetensors of a weights folder or a run in the layout of ArtGPT-4.pth."""
    out, file = Path(args.export), Path(args.weights) / "adapter.safetensors"
    if out.exists():
        raise ValueError(f"{out}: exists already; remove it or give another name")
    check_file(file)
    tensors = {}
    for name, tensor in load_file(file).items():
        theirs = their_names("artgpt4", name)
        if not theirs or not tensor.isfinite().all():
            raise ValueError(f"{file}: {name} is not part of ArtGPT-4.pth, or not finite")
        tensors[theirs[0]] = tensor
    with written_beside(out) as path:
        torch.save({"model": tensors}, path)
    print(f"{printable(out)}  {out.stat().st_size / 1e9:.3f} GB, {len(tensors)} tensors")


WAYS = {  # two complete ones: (flag, where it is published, name in checkpoints/, GB)
    "1. ArtGPT-4 as released, a 13B": (
        ("llm", "Vision-CAIR/vicuna", "vicuna", 39.1),
        ("vit", "LAVIS", "eva_vit_g.pth", 2.0),
        ("qformer", "LAVIS", "blip2_pretrained_flant5xxl.pth", 0.4),
        ("adapter", "Tyrannosaurus/ArtGPT-4", "ArtGPT-4.pth", 6.3)),
    "2. A 7B, whose adapters you train": (
        ("llm", "lmsys/vicuna-7b-v1.5", "vicuna-7b-v1.5", 13.5),
        ("vit", "LAVIS", "eva_vit_g.pth", 2.0),
        ("qformer", "LAVIS", "blip2_pretrained_flant5xxl.pth", 0.4)),
}


def discover(_):
    """Print the command for what lies in checkpoints/ under its published name, or what to get."""
    for way, files in WAYS.items():
        size = sum(size for _, _, _, size in files)
        print(f"{way}: {size:.1f} GB")
        flags = []
        for flag, owner, name, size in files:
            path = Path("checkpoints", name)
            flags += [f"--{flag}", str(path)]
            how = f"huggingface-cli download {owner} --local-dir checkpoints"
            if owner == "LAVIS":
                how = "from LAVIS's storage, linked in docs/weights.md"
            elif flag == "llm":
                how += f"/{name}"
            print(f"   {size:4.1f} GB  {path}  {'is there' if path.exists() else how}")
        print(f"   then: python convert_weights.py {shlex.join(flags)} --out weights/artgpt4")


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
    """Run what the flags ask for. Raises Misuse for flags that do not go together."""
    given = {name for name, value in vars(args).items() if value not in (None, False)} - {"debug"}
    run, needed, optional = discover, set(), set()
    if given & {"export", "weights"}:
        run, needed = export, {"export", "weights"}
    elif given:
        run, needed = convert, {"vit", "qformer", "llm", "out"}
        optional = {"delta", "adapter", "image_size", "prompt", "int8"}
    for names, problem in ((needed - given, "also needed"),
                           (given - needed - optional, "not used here")):
        if names:
            flags = ", ".join("--" + name.replace("_", "-") for name in sorted(names))
            raise Misuse(f"{problem}: {flags}")
    run(args)


def main(arguments=None):
    run_command(command, make_parser(), arguments)


def run():
    """main() as a process of its own, in which SIGTERM is as Ctrl-C: nothing is left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()


if __name__ == "__main__":
    run()
