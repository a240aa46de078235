"""Public checkpoints in, a weights folder out, and back.

    python convert_weights.py             lists what to get and how to convert it
    python convert_weights.py --vit eva_vit_g.pth --qformer blip2_pretrained_flant5xxl.pth \\
        --llm vicuna-13b-v0 --adapter ArtGPT-4.pth --out weights/artgpt4
    python convert_weights.py --weights weights/artgpt4 --export ArtGPT-4.pth

Names, shapes, settings and checksums are checked before the first byte is written, values while
they are written. The folder appears when it is complete.
"""
import argparse
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from functools import cache, lru_cache, partial
from glob import escape
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file

from artgpt4 import PROMPTS, ArtGPT4, Config
from common.command_line import Misuse, Progress, number, printable, run_command
from common.files import check_file, what_it_is, written_beside
from common.int8 import quantise
from conversion.checkpoints import (
    compare_checksum,
    open_checkpoint,
    take,
    take_adapter,
    take_sum,
)
from conversion.formats import llama_sizes, their_names, vision_sizes

SHARD = 4_000_000_000                                         # bytes, which a small machine maps
PIECE = 2_000_000                                             # bytes written at once: in a cache
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8"}

V0 = "it has a token more than its tokenizer"                 # how Vicuna v0 is known

# ---- The language model


def open_llm(path, delta_path):
    """The Checkpoint of the language model, and {name in Config: value}."""
    llm = open_checkpoint(path, "llm")
    if llm.kind == "instructblip_llm":                        # it has rows that its config lacks
        text, rows = llm.config.get("text_config"), llm.shape("llama.embed.weight")[0]
        llm.config = (text if isinstance(text, dict) else {}) | {"vocab_size": rows}
    sizes = llama_sizes(llm.config, llm.config_file)
    layers = llm.count("llama.blocks.0.attn_norm.weight")
    if layers != sizes["llama_layers"]:
        raise ValueError(f"{llm.config_file}: num_hidden_layers is {sizes['llama_layers']}, but "
                         f"the tensors are of {layers} blocks")
    head_dim = sizes["llama_width"] // sizes["llama_heads"]
    expected = sizes["rope_theta"] ** -(torch.arange(0, head_dim, 2) / head_dim)
    for name in llm.tensors:                                  # older files have the frequencies
        if name.endswith(("rotary_emb.inv_freq", "rope.freqs")):
            found = llm.read(name, "cpu").float()
            if found.shape != expected.shape or not found.allclose(expected, rtol=1e-2, atol=0):
                raise ValueError(f"{llm.path}: {name}: not the frequencies of the heads and the "
                                 f"rope_theta in {llm.config_file.name}")
    if llm.config.get("tie_word_embeddings"):
        embed, head = (their_names(llm.kind, name)[0]
                       for name in ("llama.embed.weight", "llama.head.weight"))
        llm.tensors.setdefault(head, llm.tensors[embed])
        if not torch.equal(llm.read(head, "cpu"), llm.read(embed, "cpu")):
            raise ValueError(f"{llm.config_file}: tie_word_embeddings is true, but {head} differs")
    if delta_path is None:
        return llm, sizes
    delta = open_checkpoint(delta_path, "delta")
    delta.base, changed = llm, llama_sizes(delta.config, delta.config_file)
    for key in sizes.keys() - {"vocab_size"}:
        if sizes[key] != changed[key]:
            raise ValueError(f"{delta.path}: {key} is {changed[key]}, but {sizes[key]} in {path}; "
                             "give the LLaMA that it is the delta of")
    if not delta.tokenizer.exists():
        delta.tokenizer = llm.tokenizer
    return delta, changed


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
        return "vicuna_v0", "StableVicuna's is like it" if "stable" in name else V0
    if "v1" in name or (llm.path / "generation_config.json").exists():
        return "vicuna_v1", "by its name or its generation_config.json"
    return "vicuna_v0", "nothing says which; --prompt does"


# ---- Conversion


def convert(args):
    """Convert public checkpoints to a weights folder."""
    out = Path(args.out)
    if out.exists():
        raise ValueError(f"{out}: exists already; remove it or give another --out")
    vit, qformer = open_checkpoint(args.vit, "vit"), open_checkpoint(args.qformer, "qformer")
    llm, sizes = open_llm(args.llm, args.delta)
    adapter = open_checkpoint(args.adapter, "adapter") if args.adapter else None
    sizes |= vision_sizes(vit, qformer)
    if vit.kind == "eva" and (sizes["vit_width"] != 1408 or sizes["vit_layers"] > 39):
        sizes["vit_layers"] -= 1                              # BLIP-2 does not read the last one
        prefix = f"blocks.{sizes['vit_layers']}."
        vit.tensors = {name: value for name, value in vit.tensors.items()
                       if not name.startswith(prefix)}
    sizes["image_size"] = args.image_size or sizes["image_size"]
    if sizes["image_size"] % sizes["patch_size"]:
        raise ValueError(f"--image-size {args.image_size}: no multiple of {sizes['patch_size']}")
    sizes["adapter_width"] = sizes["llama_width"] // 4
    if adapter is not None and adapter.kind == "artgpt4":
        sizes["adapter_width"] = adapter.shape("llama.blocks.0.adapter.down.weight")[0]
    extra = sizes["vocab_size"] - check_tokenizer(llm.tokenizer, llm, sizes["vocab_size"])
    prompt, why = recognised_prompt(llm, extra)
    config = Config(**sizes, prompt=args.prompt or prompt)

    parts = plan(config, vit, qformer, llm, adapter)
    if args.int8:
        parts["llama"] = as_int8(parts["llama"])
    files = {file for each in (vit, qformer, llm, llm.base) if each for file in each.files}
    progress = Progress("checked", len(files), "files")
    for done, file in enumerate(sorted(files), 1):
        compare_checksum(file)
        progress.show(done)
    write_folder(out, parts, config, llm.tokenizer)
    print(f"prompt format: {config.prompt} ({'as given' if args.prompt else why})")
    if adapter is not None and why != V0:
        print(f"warning: {printable(adapter.path)} was trained with Vicuna v0, which has one token "
              "more than LLaMA and another format; with this model its answers are noise",
              file=sys.stderr)
    weights = printable(shlex.quote(str(out)))
    init = f" --init {weights}" if adapter else ""            # MiniGPT-4's projection
    print(f"next: python chat.py --weights {weights} image.jpg"
          if adapter is not None and adapter.kind == "artgpt4" else
          "The adapters are untrained. next: python train.py --stage 1 --recipe paper "
          f"--dtype bfloat16 --weights {weights}{init} --data 'laion/*.tar'")


def plan(config, vit, qformer, llm, adapter):
    """{"vision", "llama", "adapter": {name: function of a device -> tensor}} of a weights folder,
    from Checkpoints. Raises ValueError for other names and shapes than the model's."""
    with torch.device("meta"):
        model = ArtGPT4(config, None)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    def part(source, *prefixes):
        source.check_names(shapes)
        read = take if source.base is None else take_sum
        return settled({name: partial(read, source, name, shape, config)
                        for name, shape in shapes.items()
                        if name.startswith(prefixes) and ".adapter." not in name})

    @cache
    def start():                                              # 2 GB of a 13B: when it is its turn
        torch.manual_seed(42)
        return model.start_adapter()

    def initial(name, device):
        return torch.empty(shapes[name], device="meta") if device == "meta" else start()[name]
    llama = part(llm, "llama.")
    trainable = {name: shapes[name] for name in model.trainable_names()}
    trained = {name: llama.get(name, partial(initial, name)) for name in trainable}
    if adapter is not None:
        trained |= take_adapter(adapter, config, trainable)
    return {"vision": part(vit, "vit.") | part(qformer, "ln_vision.", "qformer."),
            "llama": llama, "adapter": settled(trained, torch.float32)}


def settled(tensors, dtype=None):
    """{name: function of a device -> tensor}, tried on "meta", all in one dtype: float32 if theirs
    differ. Norms of LLaMA keep theirs, since they compute in float32."""
    tried = {name: read("meta") for name, read in tensors.items()}
    norms = {name for name in tried if re.match(r"llama\..*norm\.weight", name) and not dtype}
    found = {tensor.dtype for name, tensor in tried.items() if name not in norms}
    common = dtype or (found.pop() if len(found) == 1 else torch.float32)

    def read(name, device):
        return tensors[name](device).to(tried[name].dtype if name in norms else common)
    return {name: partial(read, name) for name in tensors}


def as_int8(tensors):
    """The tensors of LLaMA, with the matrices of its blocks as int8, each followed by the float32
    scale of its rows."""
    @lru_cache(maxsize=1)
    def both(name, device):
        matrix = tensors[name](device)
        rows = len(matrix) if device == "meta" else 64        # so many stay in a cache
        parts = [quantise(part) for part in matrix.split(rows)]
        weight, scale = map(torch.cat, zip(*parts, strict=True))
        return weight, scale[:, 0]
    small = {}
    for name, read in tensors.items():
        small[name] = read
        if re.match(r"llama\.blocks\.\d+\.(attn|mlp)\.", name):
            small[name] = lambda device, name=name: both(name, device)[0]
            small[name.replace(".weight", ".scale")] = (
                lambda device, name=name: both(name, device)[1])
    return small


def in_shards(tensors):
    """{file: tensors} of the language model: one file, or shards of about SHARD bytes."""
    shards, size = {}, 0
    for name, read in tensors.items():
        shards.setdefault(f"llama-{size // SHARD + 1:05d}.safetensors", {})[name] = read
        size += read("meta").nbytes
    return shards if len(shards) > 1 else {"llama.safetensors": tensors}


def write_tensors(file, tensors):
    """Write {name: function of a device -> tensor} to a safetensors file, one after another, and
    yield the bytes and the name of each. (save_file needs all in memory, and more time.)"""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, read in tensors.items():
        tensor = read("meta")
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)                           # the values begin at a multiple of 8
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, read in tensors.items():
            value = read("cpu").contiguous()
            for piece in value.view(-1).view(torch.uint8).split(PIECE):
                out.write(piece.numpy().data)
            yield value.nbytes, name
        out.flush()
        os.fsync(out.fileno())


def write_folder(out, parts, config, tokenizer):
    """Write a weights folder, whole or not at all, and print what was written.

    parts: as plan() returns them. tokenizer: the path of its tokenizer.model.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{escape(out.name)}.*"):
        print(f"{printable(left)}: left by a conversion that was killed, unless one is running; "
              "remove it", file=sys.stderr)
    files = {"vision.safetensors": parts["vision"], **in_shards(parts["llama"]),
             "adapter.safetensors": parts["adapter"]}
    total = sum(read("meta").nbytes for tensors in files.values() for read in tensors.values())
    progress, done = Progress("written", total / 1e9, "GB"), 0
    with tempfile.TemporaryDirectory(
            prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True) as beside:
        folder = Path(beside) / out.name
        folder.mkdir()
        free = shutil.disk_usage(folder).free
        if free < total:
            raise ValueError(f"{out}: needs {total / 1e9:.2f} GB, but {free / 1e9:.2f} are free")
        for file, tensors in files.items():
            for nbytes, name in write_tensors(folder / file, tensors):
                done += nbytes
                progress.show(done / 1e9, name)
        if "llama.safetensors" not in files:
            where = {name: file for file in files if "llama" in file for name in files[file]}
            index = json.dumps({"metadata": {}, "weight_map": where})
            (folder / "llama.safetensors.index.json").write_text(index)
        shutil.copyfile(tokenizer, folder / "tokenizer.model")
        (folder / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
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


# ---- What to get

WAYS = """\
1. ArtGPT-4 as released, a 13B (47.8 GB):
   39.1 GB  huggingface-cli download Vision-CAIR/vicuna --local-dir checkpoints/vicuna
    6.3 GB  huggingface-cli download Tyrannosaurus/ArtGPT-4 ArtGPT-4.pth --local-dir checkpoints
    2.0 GB  eva_vit_g.pth, linked in docs/weights.md
    0.4 GB  blip2_pretrained_flant5xxl.pth, linked there too
   python convert_weights.py --llm checkpoints/vicuna --adapter checkpoints/ArtGPT-4.pth \\
       --vit checkpoints/eva_vit_g.pth --qformer checkpoints/blip2_pretrained_flant5xxl.pth \\
       --out weights/artgpt4
2. A 7B, whose adapters you train in stages 1 and 2 (15.9 GB):
   13.5 GB  huggingface-cli download lmsys/vicuna-7b-v1.5 --local-dir checkpoints/vicuna-7b-v1.5
    2.4 GB  eva_vit_g.pth and blip2_pretrained_flant5xxl.pth, as above
   python convert_weights.py --llm checkpoints/vicuna-7b-v1.5 \\
       --vit checkpoints/eva_vit_g.pth --qformer checkpoints/blip2_pretrained_flant5xxl.pth \\
       --out weights/artgpt4-7b"""


def discover(_):
    """Print what to get for each of two models, what is in checkpoints/ already, and what to type
    then."""
    print(WAYS)
    names = re.findall(r"checkpoints/([\w.-]+)", WAYS)
    there = [name for name in dict.fromkeys(names) if Path("checkpoints", name).exists()]
    print(f"There already: {', '.join(there) or 'nothing'}. docs/weights.md has other ways.")


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    for flag, what in FLAGS.items():
        add(f"--{flag}", metavar="PATH", help=what)
    add("--image-size", metavar="N", type=number(int, 1, 10_000),
        help="pixels per side (default: that of the ViT's position embedding)")
    add("--prompt", choices=PROMPTS, help="the conversation format of --llm (default: recognised)")
    add("--int8", action="store_true", help="store the language model's large matrices as int8")
    return parser


FLAGS = {
    "vit": "eva_vit_g.pth, or the folder of BLIP-2 or InstructBLIP from transformers",
    "qformer": "blip2_pretrained_flant5xxl.pth, or such a folder",
    "llm": "the folder of Vicuna or LLaMA, in transformers' or Meta's format, or of InstructBLIP",
    "delta": "the folder of a Vicuna delta, to be added to --llm",
    "adapter": "ArtGPT-4.pth or pretrained_minigpt4.pth (default: untrained)",
    "out": "the weights folder to make",
    "weights": "the weights folder or the run to --export",
    "export": "write the trainable parameters of --weights in the layout of ArtGPT-4.pth",
}


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
    torch.set_num_threads(1)                                  # beside other work threads wait
    run(args)


def main(arguments=None):
    if arguments is None:                                     # SIGTERM as Ctrl-C: nothing is left
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run_command(command, make_parser(), arguments)


if __name__ == "__main__":
    main()
