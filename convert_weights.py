"""Public checkpoints in, a weights folder out, and back. The formats are in formats.py.

    python convert_weights.py                          says what lies in checkpoints/ and what is missing
    python convert_weights.py --vit eva_vit_g.pth --qformer blip2_pretrained_flant5xxl.pth --llm vicuna-13b-v0 \\
        --adapter ArtGPT-4.pth --out weights/artgpt4
    python convert_weights.py --weights weights/artgpt4 --export ArtGPT-4.pth

One tensor of the source is in memory at a time, and the output is written tensor after tensor, header first: a 13B
converts in 1 GB. A fused matrix is its parts, written one after the other. All shapes are checked before the first byte
is written, all values while it is. The folder appears when it is whole.
"""
import argparse
import contextlib
import json
import math
import os
import re
import shlex
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from artgpt4 import PROMPTS, ArtGPT4, Config, LlamaConfig, QFormerConfig, ViTConfig, initial_adapter, trainable_names
from common.command_line import run_command
from common.files import load_tokenizer, read_tensors, written_beside
from common.progress import Progress
from conversion.formats import DTYPES, FORMATS, Stored, add_delta, candidates, open_checkpoint, resize_pos_embed, their_names

# ---- Sizes: from the shapes, but for what only a config.json says

SUPPORTED = {  # keys of config.json that change the arithmetic, and the one value that artgpt4.py computes
    "llm": {"model_type": "llama", "hidden_act": "silu", "rope_scaling": None, "attention_bias": False,
            "mlp_bias": False, "attention_dropout": 0, "sliding_window": None, "quantization_config": None,
            "partial_rotary_factor": 1},
    "vision_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    "qformer_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "cross_attention_frequency": 2},
}


def refuse_unsupported(values, part, file):
    """Raises ValueError for a setting of config.json that artgpt4.py does not compute."""
    for key, supported in SUPPORTED[part].items():
        if values.get(key, supported) != supported:
            raise ValueError(f"{file}: {key} is {json.dumps(values[key])}; only {json.dumps(supported)} is supported")


def vit_config(vit, layers):
    """ViTConfig and the image size of the position embedding. layers: --vit-layers or None."""
    _, patches, width = vit.shape("vit.pos_embed", 3)
    found = vit.count("vit.blocks.{i}.fc1.weight")
    layers = layers or (found - 1 if vit.kind == "eva" else found)
    if not 0 < layers <= found:
        raise ValueError(f"{vit.path}: {found} blocks, but --vit-layers is {layers}")
    patch_size, grid = vit.shape("vit.patch_embed.weight", 4)[-1], math.isqrt(patches - 1)
    if grid * grid + 1 != patches:
        raise ValueError(f"{vit.path}: a position embedding of {patches} rows; expected a square and 1")
    return ViTConfig(width, layers, width // 88, vit.shape("vit.blocks.0.fc1.weight")[0], patch_size), grid * patch_size


def qformer_config(qformer):
    """QFormerConfig of either format."""
    _, queries, width = qformer.shape("qformer.queries", 3)
    return QFormerConfig(width, qformer.count("qformer.layers.{i}.fc1.weight"), width // 64,
                         qformer.shape("qformer.layers.0.fc1.weight")[0], queries)


def llama_config(values, file):
    """LlamaConfig from config.json's values. Raises ValueError for what would change the arithmetic."""
    rope = values.get("rope_parameters") or {}                # where newer transformers releases keep rope_theta
    values = {"rope_theta": 10000.0, "tie_word_embeddings": False} | values | rope
    if rope.get("rope_type", "default") != "default":
        values["rope_scaling"] = rope["rope_type"]
    values["num_key_value_heads"] = values.get("num_key_value_heads") or values.get("num_attention_heads")
    refuse_unsupported(values, "llm", file)
    sizes = {}
    for key, example in asdict(LlamaConfig()).items():
        sizes[key] = values.get(key, False if key == "int8" else None)
        number = (int, float) if isinstance(example, float) else type(example)
        if not isinstance(sizes[key], number) or (sizes[key] <= 0 and example is not False):
            raise ValueError(f"{file}: {key} is {json.dumps(sizes[key])}; expected something like {example}")
    config = LlamaConfig(**sizes)
    if config.hidden_size % config.num_attention_heads or config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(f"{file}: num_attention_heads is {config.num_attention_heads}; expected a divisor of "
                         "hidden_size and a multiple of num_key_value_heads")
    if values.get("head_dim") not in (None, config.hidden_size // config.num_attention_heads):
        raise ValueError(f"{file}: head_dim is {values['head_dim']}; only hidden_size / heads is supported")
    return config


# ---- From their names to ours


@dataclass
class Fused:
    """A tensor of the output: parts that are written one after another, each first through `pack`."""
    shape: tuple
    dtype: torch.dtype
    parts: list
    pack: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous

    @property
    def nbytes(self):
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def fuse(parts, shape):
    """The parts stacked along their first dimension. Raises ValueError unless that gives `shape` and one dtype."""
    dtypes = {part.dtype for part in parts}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float16, torch.bfloat16}:
        raise ValueError(f"{parts[0].where}: {', '.join(map(str, dtypes))}; expected float16, bfloat16 or float32")
    stacked = (sum(part.shape[0] for part in parts if part.shape), *parts[0].shape[1:])
    if stacked != shape or any(part.shape[1:] != parts[0].shape[1:] for part in parts):
        raise ValueError(f"{parts[0].where}: {' + '.join(str(part.shape) for part in parts)}; {shape} was expected")
    return Fused(shape, parts[0].dtype, parts)


def take(checkpoint, shapes, only=""):
    """The tensors of a checkpoint whose names in artgpt4.py begin with `only`, {name: Fused}.

    shapes: {name: shape} of all that the checkpoint may hold. Raises ValueError, naming them, for tensors that are
    missing, unknown, or of another shape or type.
    """
    known, found, theirs, missing = FORMATS[checkpoint.kind], {}, set(), []
    for name, shape in shapes.items():
        sources, parts = their_names(checkpoint.kind, name), []
        theirs.update(sources)
        for source in sources if name.startswith(only) else ():
            if source == "zeros":
                parts.append(replace(parts[-1], read=lambda like=parts[-1]: torch.zeros_like(like.read())))
            elif source in checkpoint.tensors:
                parts.append(checkpoint.tensors[source])
            else:
                missing.append(source)
        if parts and not missing:
            found[name] = fuse(parts, shape)
    unknown = [name for name in checkpoint.tensors if name not in theirs and not re.fullmatch(known.unused, name)]
    for names, what in ((missing, "is missing"), (unknown, f"is no part of {known.what}")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ValueError(f"{checkpoint.path}: {names[0]} {what}{more}")
    return found


def take_adapter(checkpoint, config, shapes, llm):
    """All that trains, float32, {name: Fused}: from the checkpoint; what it lacks starts as training does.

    checkpoint: ArtGPT-4.pth, pretrained_minigpt4.pth or None. Norms that it lacks are those of `llm`, {name: Fused}.
    Raises ValueError if it was made for another language model.
    """
    found = {}
    if checkpoint is not None:
        sizes = {"width": (checkpoint.shape("proj.weight")[0], config.llama.hidden_size)}
        if checkpoint.kind == "artgpt4":
            sizes["number of blocks"] = (checkpoint.count("llama.blocks.{i}.adapter.down.weight"),
                                         config.llama.num_hidden_layers)
        for size, (made_for, given) in sizes.items():
            if made_for != given:
                raise ValueError(f"{checkpoint.path}: made for a language model whose {size} is {made_for}; "
                                 f"that of --llm is {given}")
        found = take(checkpoint, shapes, "proj." if checkpoint.kind == "minigpt4" else "")
    torch.manual_seed(42)
    start = initial_adapter(config)

    def initial(name):
        return next(tensor for produced, tensor in start if produced == name)
    tensors = {}
    for name, shape in shapes.items():
        at_start = Fused(shape, torch.float32, [Stored(name, shape, torch.float32, lambda name=name: initial(name))])
        source = found.get(name) or llm.get(name) or at_start
        tensors[name] = replace(source, dtype=torch.float32, pack=torch.Tensor.float)
    return tensors


def int8_rows(count):
    """What packs the rows of a matrix of `count` rows as int8, and the float32 scales (count,) that it leaves."""
    scales, done = torch.empty(count), 0                      # in one tensor: small ones would fragment memory

    def pack(rows):
        nonlocal done
        scale = scales[done:done + len(rows)]
        done += len(rows)
        torch.div(rows.abs().amax(dim=1).float().clamp(min=1e-30), 127, out=scale)
        return (rows.float() / scale[:, None]).round().to(torch.int8)
    return pack, scales


def to_int8(tensors):
    """{name: Fused} with the blocks' matrices as int8, each with one float32 scale a row, absmax / 127, beside it."""
    matrices, rest = {}, {}
    for name, tensor in tensors.items():
        if not re.search(r"\.(attn|mlp)\.", name):
            rest[name] = tensor
            continue
        pack, scales = int8_rows(tensor.shape[0])
        matrices[name] = replace(tensor, dtype=torch.int8, pack=pack)
        scale = Stored(f"{name}, scale", tuple(scales.shape), torch.float32, lambda scales=scales: scales)
        rest[name.replace(".weight", ".scale")] = fuse([scale], scale.shape)      # written after its matrix
    return matrices | dict(sorted(rest.items(), key=lambda item: -item[1].dtype.itemsize))  # keeps the tensors aligned


# ---- Writing


SHARD = 4_000_000_000


def write_safetensors(file, tensors, written):
    """Write {name: Fused} to a safetensors file, header first, then a few rows at a time.

    written(bytes, where) is called after each of them. Raises ValueError for a NaN or an infinity.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            for part in tensor.parts:
                for rows in part.read().split(256):
                    if not torch.stack(rows.aminmax()).isfinite().all():
                        raise ValueError(f"{part.where}: holds NaN or infinity; the file is damaged")
                    packed = tensor.pack(rows).contiguous()
                    out.write(packed.view(torch.uint8).numpy().data)
                    written(packed.nbytes, part.where)
                del rows, packed                              # they hold the whole tensor; the next one comes
        out.flush()
        os.fsync(out.fileno())


def in_shards(tensors):
    """{file: {name: Fused}} of the language model: one file, or shards of SHARD bytes that a small machine can map."""
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > SHARD and shards[-1]:
            shards, size = [*shards, {}], 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        return {"llama.safetensors": tensors}
    return {f"llama-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


@contextlib.contextmanager
def folder_beside(out, size):
    """A folder beside `out` to write `size` bytes to; once the block is done it is renamed to `out`, else removed."""
    beside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        beside.mkdir(parents=True)
        if (free := shutil.disk_usage(beside).free) < size:
            raise ValueError(f"{out}: {size / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free")
        yield beside
        beside.rename(out)
    except OSError as error:
        raise ValueError(f"{out}: {error.strerror}; nothing was kept") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_folder(out, files, config, tokenizer):
    """Write a weights folder: files {name: {name: Fused}}, config.json, tokenizer.model; then say what was written."""
    total, done = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values()), 0
    progress = Progress("written", total / 1e9, "GB")

    def written(size, where):
        nonlocal done
        done += size
        progress.show(done / 1e9, where.rpartition(" ")[2])
    with folder_beside(out, total) as folder:
        for file, tensors in files.items():
            write_safetensors(folder / file, tensors, written)
        weight_map = {name: file for file in files if file.startswith("llama-") for name in files[file]}
        if weight_map:
            (folder / "llama.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        shutil.copyfile(tokenizer, folder / "tokenizer.model")
        (folder / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
    for file, tensors in files.items():
        dtypes = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))
        print(f"{out / file}  {(out / file).stat().st_size / 1e9:.3f} GB  {dtypes}")


# ---- Commands


def read_config(args, vit, qformer, llm, adapter):
    """The Config that follows from the checkpoints. Raises ValueError for what artgpt4.py does not compute."""
    config = Config(llama=llama_config(llm.config, llm.path / "config.json"), qformer=qformer_config(qformer))
    for checkpoint in (vit, qformer):
        for part in ("vision_config", "qformer_config"):
            refuse_unsupported(checkpoint.config.get(part, {}), part, checkpoint.path / "config.json")
    config.vit, trained_size = vit_config(vit, args.vit_layers)
    config.image_size = trained_size if args.image_size is None else args.image_size
    if config.image_size <= 0 or config.image_size % config.vit.patch_size:
        raise ValueError(f"--image-size {config.image_size}: expected a multiple of {config.vit.patch_size}")
    for checkpoint, width, head_width in ((vit, config.vit.width, 88), (qformer, config.qformer.width, 64)):
        if width % head_width:
            raise ValueError(f"{checkpoint.path}: width {width}; expected a multiple of {head_width}, a head's width")
    config.ln_vision_eps = 1e-5 if qformer.kind == "blip2" else 1e-6
    config.adapter_width = config.llama.hidden_size // 4
    if adapter is not None and adapter.kind == "artgpt4":
        config.adapter_width = adapter.shape("llama.blocks.0.adapter.down.weight")[0]
    return config


def fit_vit(vit, qformer, config):
    """Take the ViT's unread blocks from the checkpoints, and give it a position embedding of the image size."""
    for checkpoint in (vit, qformer):
        for name in list(checkpoint.tensors):
            block = re.match(r"(?:blocks|vision_model\.encoder\.layers)\.(\d+)\.", name)
            if block and int(block[1]) >= config.vit.layers:
                del checkpoint.tensors[name]
    name, patches = their_names(vit.kind, "vit.pos_embed")[0], (config.image_size // config.vit.patch_size) ** 2
    trained = vit.tensors[name]
    vit.tensors[name] = replace(trained, shape=(1, patches + 1, config.vit.width),
                                read=lambda: resize_pos_embed(trained.read(), patches))


def check_vocabulary(llm, base, adapter, config):
    """Raises ValueError unless tokenizer.model fits; warns of a language model that the adapter was not made for."""
    pieces = load_tokenizer(llm.tokenizer, config).get_piece_size()
    if llm is not base and base.shape("llama.embed.weight")[0] == config.llama.vocab_size > pieces:
        raise ValueError(f"{base.path}: more tokens than pieces, so it is Vicuna v0 already; leave --delta out")
    if adapter is not None and config.llama.vocab_size != pieces + 1:
        long = config.llama.max_position_embeddings > 2048
        version = "Vicuna v1.5 or LLaMA 2" if long else "LLaMA or Vicuna v1.1 to v1.3"
        print(f"warning: {llm.path} has {config.llama.vocab_size:,} tokens: {version}. {adapter.path} was made for "
              f"Vicuna v0, which has {pieces + 1:,}; its answers may be poor", file=sys.stderr)


def convert(args):
    """The released files -> a weights folder."""
    out = Path(args.out)
    if out.exists():
        raise ValueError(f"{out}: exists already; remove it or give another --out")
    vit = open_checkpoint(args.vit, "eva", "blip2_hf")
    qformer = open_checkpoint(args.qformer, "blip2", "blip2_hf")
    base = open_checkpoint(args.llm, "llama", "meta")
    llm = add_delta(base, open_checkpoint(args.delta, "delta")) if args.delta else base
    adapter = open_checkpoint(args.adapter, "artgpt4", "minigpt4") if args.adapter else None
    config = replace(read_config(args, vit, qformer, llm, adapter), prompt=args.prompt)
    check_vocabulary(llm, base, adapter, config)
    fit_vit(vit, qformer, config)
    if config.llama.tie_word_embeddings:
        llm.tensors.pop("lm_head.weight", None)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in ArtGPT4(config, None).state_dict().items()}
    vision = {name: shape for name, shape in shapes.items() if name.startswith(("vit.", "ln_vision.", "qformer."))}
    llama = take(llm, {n: shape for n, shape in shapes.items() if n.startswith("llama.") and ".adapter." not in n})
    trained = take_adapter(adapter, config, {name: shapes[name] for name in trainable_names(config)}, llama)
    if args.int8:
        config.llama.int8, llama = True, to_int8(llama)
    files = {"vision.safetensors": take(vit, vision, "vit.") | take(qformer, vision, ("ln_vision.", "qformer.")),
             **in_shards(llama), "adapter.safetensors": trained}
    write_folder(out, files, config, llm.tokenizer)
    if adapter is not None and adapter.kind == "artgpt4":
        print(f"next: python chat.py --weights {out} image.jpg")
    else:
        print(f"The adapters are at their start. next: python train.py --stage 1 --recipe paper --dtype bfloat16 "
              f"--weights {out} --data cc_sbu_align")


def export(args):
    """adapter.safetensors of a weights folder, or of a run -> the layout of the released ArtGPT-4.pth."""
    if Path(args.export).exists():
        raise ValueError(f"{args.export}: exists already; remove it or give another name")
    tensors = {}
    for name, tensor in read_tensors(Path(args.weights) / "adapter.safetensors"):
        theirs = their_names("artgpt4", name)
        if not theirs:
            raise ValueError(f"{args.weights}/adapter.safetensors: {name} is no part of ArtGPT-4.pth")
        tensors[theirs[0]] = tensor
    with written_beside(args.export) as path:
        torch.save({"model": tensors}, path)
    print(f"{args.export}  {Path(args.export).stat().st_size / 1e9:.3f} GB, {len(tensors)} tensors")


def discover(args):
    """Say what lies in checkpoints/, what is missing, and the command that converts; with --yes, run it."""
    found, chosen = [], {}
    for path in candidates(Path("checkpoints")) if Path("checkpoints").is_dir() else ():
        try:
            found.append(open_checkpoint(path, *FORMATS))
            size = sum(file.stat().st_size for file in (path, *path.glob("*")) if file.is_file())
            rows = found[-1].kind in ("llama", "meta", "delta") and found[-1].shape("llama.embed.weight")[0]
            tokens = f", {rows:,} tokens" if rows else ""     # Vicuna v0 has one more than the others
            print(f"{path}: {FORMATS[found[-1].kind].what}{tokens}, {size / 1e9:.2f} GB")
        except ValueError as error:
            print(f"not usable: {error}")
    for checkpoint in sorted(found, key=lambda c: list(FORMATS).index(c.kind)):   # released files before transformers'
        for flag in FORMATS[checkpoint.kind].flags:
            chosen.setdefault(flag, checkpoint.path)
    llms = sorted((c for c in found if "llm" in FORMATS[c.kind].flags), key=lambda c: c.shape("llama.embed.weight"))
    widths = [c.shape("llama.embed.weight")[1] for c in found if c.kind == "delta"]
    widths += [c.shape("proj.weight")[0] for c in found if c.kind in ("artgpt4", "minigpt4")]
    llms = [c for c in llms if c.shape("llama.embed.weight")[1] in widths[:1]] or llms      # that fits the rest
    if llms:                                                  # LLaMA for a delta, else the Vicuna with most tokens
        chosen["llm"] = llms[0 if "delta" in chosen else -1].path
    needed = {"vit": ["eva"], "qformer": ["blip2"], "llm": ["meta", "delta"], "adapter": ["artgpt4"]}
    missing = [kind for flag, kinds in needed.items() if flag not in chosen for kind in kinds if kind not in chosen]
    missing += ["delta"] * ({c.kind for c in llms} == {"meta"} and "delta" not in chosen)
    for kind in missing:
        optional = "; without it the adapters start untrained" if kind == "artgpt4" else ""
        print(f"missing in checkpoints/: {FORMATS[kind].what}: {FORMATS[kind].published}{optional}")
    if set(missing) - {"artgpt4"}:
        if args.yes:
            raise ValueError("checkpoints/ is not complete; what is missing is listed above")
        return print("next: put it there, under any name, and run this again")
    chosen |= {"out": "weights/artgpt4", "image-size": args.image_size, "vit-layers": args.vit_layers}
    command = [part for flag, value in chosen.items() if value is not None for part in (f"--{flag}", str(value))]
    command += ["--int8"] * args.int8
    print(f"{'running' if args.yes else 'next'}: {shlex.join(['python', 'convert_weights.py', *command])}")
    if args.yes:
        main(command)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="With no argument: say what lies in checkpoints/ and what is missing.")
    parser.add_argument("--vit", metavar="FILE", help="eva_vit_g.pth, or the folder of BLIP-2 as transformers keeps it")
    parser.add_argument("--qformer", metavar="FILE", help="blip2_pretrained_flant5xxl.pth, or that folder")
    parser.add_argument("--llm", metavar="FOLDER", help="Vicuna or LLaMA, as transformers keeps it or Meta released it")
    parser.add_argument("--delta", metavar="FOLDER", help="a Vicuna delta, to be added to --llm")
    parser.add_argument("--adapter", metavar="FILE", help="ArtGPT-4.pth or pretrained_minigpt4.pth; else untrained")
    parser.add_argument("--out", metavar="FOLDER", help="the weights folder to make")
    parser.add_argument("--vit-layers", metavar="N", type=int, help="blocks of the ViT to keep (default: 39 of 40)")
    parser.add_argument("--image-size", metavar="N", type=int, help="pixels a side (default: what the ViT has)")
    parser.add_argument("--prompt", choices=PROMPTS, default="vicuna_v0", help="what --llm was taught (%(default)s)")
    parser.add_argument("--int8", action="store_true", help="store the language model's large matrices as int8")
    parser.add_argument("--yes", action="store_true", help="with no other argument: run the command that is found")
    parser.add_argument("--export", metavar="FILE", help="write what trains of --weights as the released ArtGPT-4.pth")
    parser.add_argument("--weights", metavar="FOLDER", help="the weights folder, or the run, to --export")

    def command(args):
        given = [flag for flag in ("vit", "qformer", "llm", "delta", "adapter", "out") if getattr(args, flag)]
        exporting = args.export or args.weights
        required = ("export", "weights") if exporting else ("vit", "qformer", "llm", "out") if given else ()
        if missing := [f"--{flag}" for flag in required if not getattr(args, flag)]:
            parser.error(f"also needed: {', '.join(missing)}")
        torch.set_num_threads(1)                              # few rows at a time: threads would wait for each other
        (export if exporting else convert if given else discover)(args)
    run_command(command, parser, arguments)


if __name__ == "__main__":
    main()
