"""Public checkpoints in, a weights folder out, and back.

    python convert_weights.py             lists what to get, and the commands that convert it
    python convert_weights.py --weights weights/artgpt4 --export ArtGPT-4.pth

Names, shapes, settings and checksums are checked before the first byte is written, values while
they are written. The folder appears when it is complete.
"""
import re
import shutil
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache, partial, reduce
from glob import escape
from pathlib import Path

import sentencepiece
import torch

from artgpt4 import PROMPTS, ArtGPT4, Config, errors_naming
from common.command_line import Misuse, Progress, command_parser, number, printable, run_command
from common.files import check_file, save_tensors, write_json, written_beside
from common.int8 import quantise
from conversion.checkpoints import (
    compare_checksum, open_checkpoint, open_file, take, take_adapter, take_sum,
)
from conversion.formats import llama_sizes, their_names, vision_sizes

SHARD = 2_000_000_000                                         # bytes: so much is in memory at once
V0 = "it has a token more than its tokenizer"                 # how Vicuna v0 is known

def open_llm(path, delta_path):
    """The Checkpoint of the language model, and {name in Config: value}."""
    llm = open_checkpoint(path, "llm")
    if llm.kind == "instructblip_llm":                        # it has rows that its config lacks
        text, (rows, _) = llm.config.get("text_config"), llm.shape("llama.embed.weight")
        llm.config = (text if isinstance(text, dict) else {}) | {"vocab_size": rows}
    layers = llm.count("llama.blocks.0.attn_norm.weight")
    sizes = llama_sizes(llm.config, llm.config_file, layers)
    head_dim = sizes["llama_width"] // sizes["llama_heads"]
    expected = sizes["rope_theta"] ** -(torch.arange(0, head_dim, 2) / head_dim)
    for name in llm.tensors:                                  # older files have the frequencies
        if name.endswith(("rotary_emb.inv_freq", "rope.freqs")):
            found = llm.read(name, "cpu").float()
            if found.shape != expected.shape or not found.allclose(expected, rtol=1e-2, atol=0):
                raise ValueError(f"{llm.path}: {name} is of another rope_theta, or other heads")
    if llm.config.get("tie_word_embeddings"):
        [embed] = their_names(llm.kind, "llama.embed.weight")
        [head] = their_names(llm.kind, "llama.head.weight")
        llm.tensors[head] = lambda device: llm.read(embed, device).clone()
    if delta_path is None:
        return llm, sizes
    delta = open_checkpoint(delta_path, "delta")
    delta.base, changed = llm, llama_sizes(delta.config, delta.config_file, layers)
    for key in sizes.keys() - {"vocab_size"}:
        if sizes[key] != changed[key]:
            raise ValueError(f"{delta.path}: {key} is {changed[key]}, but {sizes[key]} in {path}")
    if not delta.tokenizer.exists():
        delta.tokenizer = llm.tokenizer
    return delta, changed


def check_tokenizer(file, rows):
    """How many rows of a language model's embedding are beyond the pieces of a tokenizer.model.
    Raises ValueError unless they fit together."""
    check_file(file)
    with errors_naming(file):
        tokenizer = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes() or b"empty")
        pieces, special = tokenizer.get_piece_size(), [tokenizer.bos_id(), tokenizer.eos_id()]
        if special != [tokenizer.piece_to_id(piece) for piece in ("<s>", "</s>")]:
            raise ValueError("its BOS and EOS are not LLaMA's <s> and </s>")
        if not pieces <= rows < pieces + 64:
            raise ValueError(f"{pieces} pieces, but the language model has {rows} tokens")
    return rows - pieces


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


def convert(args):
    """Convert public checkpoints to a weights folder."""
    vit, qformer = open_checkpoint(args.vit, "vit"), open_checkpoint(args.qformer, "qformer")
    llm, sizes = open_llm(args.llm, args.delta)
    adapter = open_checkpoint(args.adapter, "adapter") if args.adapter else None
    is_trained = adapter is not None and adapter.kind == "artgpt4"
    sizes |= vision_sizes(vit, qformer)
    if vit.kind == "eva" and sizes["vit_layers"] != 39:       # BLIP-2 does not read the last of 40
        sizes["vit_layers"] -= 1
        vit.tensors = {name: read for name, read in vit.tensors.items()
                       if not name.startswith(f"blocks.{sizes['vit_layers']}.")}
    sizes["image_size"] = args.image_size or sizes["image_size"]
    if sizes["image_size"] % sizes["patch_size"]:
        raise ValueError(f"--image-size {args.image_size}: no multiple of {sizes['patch_size']}")
    sizes["adapter_width"] = sizes["llama_width"] // 4
    if is_trained:
        sizes["adapter_width"], _ = adapter.shape("llama.blocks.0.adapter.down.weight")
    extra = check_tokenizer(llm.tokenizer, sizes["vocab_size"])
    prompt, why = recognised_prompt(llm, extra)
    config = Config(**sizes, prompt=args.prompt or prompt)
    files = plan(config, vit, qformer, llm, adapter)
    sources = {file for each in (vit, qformer, llm, llm.base) if each for file in each.files}
    progress = Progress("checksums compared", len(sources), "files")
    with ThreadPoolExecutor() as pool:
        for done, _ in enumerate(pool.map(compare_checksum, sorted(sources)), 1):
            progress.show(done)
    write_folder(args.out, files, config, llm.tokenizer, args.int8)
    print(f"prompt format: {config.prompt} ({'as given' if args.prompt else why})")
    if adapter is not None and why != V0:
        print(f"warning: {printable(adapter.path)} was trained with Vicuna v0; with this model its "
              "answers are noise", file=sys.stderr)
    weights = printable(args.out)
    print(f"next: python chat.py --weights {weights} image.jpg" if is_trained else
          "The adapters are untrained. next: python train.py --stage 1 --recipe paper --dtype "
          f"bfloat16 --weights {weights} --init {weights} --data 'laion/*.tar'")


def plan(config, vit, qformer, llm, adapter):
    """{file: {name: function of a device -> tensor}} of a weights folder, from Checkpoints. Raises
    ValueError for other names and shapes than the model's."""
    with torch.device("meta"):
        model = ArtGPT4(config, None)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    def part(source, *prefixes):
        source.check_names(shapes)
        read = take if source.base is None else take_sum
        return in_one_dtype({name: partial(read, source, name, shape)
                             for name, shape in shapes.items()
                             if name.startswith(prefixes) and ".adapter." not in name})

    @cache
    def start(device):                                        # 2 GB of a 13B: when it is its turn
        torch.manual_seed(42)
        return model.state_dict() if device == "meta" else model.start_adapter()

    llama = part(llm, "llama.")
    trainable = {name: shapes[name] for name in model.trainable_names()}
    trained = {name: llama.get(name, lambda device, name=name: start(device)[name])
               for name in trainable}
    if adapter is not None:
        trained |= take_adapter(adapter, config, trainable)
    vision = part(vit, "vit.") | part(qformer, "ln_vision.", "qformer.")
    return {"vision.safetensors": vision, **in_shards(llama),
            "adapter.safetensors": in_one_dtype(trained, torch.float32)}


def in_one_dtype(tensors, dtype=None):
    """{name: function of a device -> tensor}, tried on "meta", all in one dtype: the smallest that
    holds the values of all."""
    found = [read("meta").dtype for read in tensors.values()]
    dtype = dtype or reduce(torch.promote_types, found)
    return {name: lambda device, read=read: read(device).to(dtype)
            for name, read in tensors.items()}


def in_shards(tensors):
    """{file: tensors} of the language model: one file, or shards of about SHARD bytes."""
    shards, size = {}, 0
    for name, read in tensors.items():
        shards.setdefault(f"llama-{size // SHARD + 1:05d}.safetensors", {})[name] = read
        size += read("meta").nbytes
    return shards if len(shards) > 1 else {"llama.safetensors": tensors}


def as_int8(tensors):
    """Put int8 matrices, and the float32 scales of their rows, in place of those of LLaMA's blocks
    in {name: tensor}."""
    for name in list(tensors):
        tensor = tensors.pop(name)
        if re.match(r"llama\.blocks\.\d+\.(attn|mlp)\.", name):
            weights, scales = zip(*map(quantise, tensor.split(64)), strict=True)  # in a cache
            tensor = torch.cat(weights)
            tensors[name.replace(".weight", ".scale")] = torch.cat(scales)[:, 0]
        tensors[name] = tensor


def write_folder(out, files, config, tokenizer, int8):
    """Write a weights folder, whole or not at all. files: as plan() returns them. tokenizer: the
    path of its tokenizer.model."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{escape(out.name)}.*"):
        print(f"{printable(left)}: left by a conversion that was killed, or runs", file=sys.stderr)
    progress, where = Progress("written", len(files), "files"), {}
    with tempfile.TemporaryDirectory(
            prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True) as beside:
        folder = Path(beside) / out.name
        for done, (file, tensors) in enumerate(files.items(), 1):
            tensors = {name: read("cpu") for name, read in tensors.items()}
            if "llama" in file and int8:
                as_int8(tensors)
            save_tensors(tensors, folder / file)
            where |= dict.fromkeys(tensors if "llama-" in file else (), file)
            progress.show(done)
        if where:
            write_json({"metadata": {}, "weight_map": where},
                       folder / "llama.safetensors.index.json")
        with written_beside(folder / "tokenizer.model") as path:
            shutil.copyfile(tokenizer, path)
        write_json(asdict(config), folder / "config.json")
        folder.rename(out)


def export(args):
    """Write adapter.safetensors of a weights folder or a run in the layout of ArtGPT-4.pth."""
    file = args.weights / "adapter.safetensors"
    ours = open_file(file)
    with errors_naming(f"{file}: not what train.py writes"), torch.device("meta"):
        (width, inputs), rows = ours["proj.weight"].shape, ours["llama.blocks.0.adapter.down.bias"]
        layers = sum(name.endswith("mlp_norm.weight") for name in ours)
        model = ArtGPT4(Config(qformer_width=inputs, qformer_heads=1, llama_width=width,
                               llama_heads=1, llama_layers=layers, adapter_width=len(rows)), None)
        found = {name: tensor.shape for name, tensor in ours.items()
                 if tensor.is_floating_point() and tensor.isfinite().all()}
        if found != {name: model.get_parameter(name).shape for name in model.trainable_names()}:
            raise ValueError("tensors are missing, foreign, not finite or of other shapes")
    theirs = {released: tensor for name, tensor in ours.items()
              for released in their_names("artgpt4", name)}
    with written_beside(args.export) as path:
        torch.save({"model": theirs}, path)


WAYS = """\
1. ArtGPT-4 as released, a 13B (47.8 GB):
   39.1 GB  huggingface-cli download Vision-CAIR/vicuna --local-dir checkpoints/vicuna
    6.3 GB  huggingface-cli download Tyrannosaurus/ArtGPT-4 ArtGPT-4.pth --local-dir checkpoints
    2.4 GB  eva_vit_g.pth and blip2_pretrained_flant5xxl.pth, linked in docs/weights.md
   python convert_weights.py --llm checkpoints/vicuna --adapter checkpoints/ArtGPT-4.pth \\
       --vit checkpoints/eva_vit_g.pth --qformer checkpoints/blip2_pretrained_flant5xxl.pth \\
       --out weights/artgpt4
2. A 7B, whose adapters you train in stages 1 and 2 (15.9 GB):
   13.5 GB  huggingface-cli download lmsys/vicuna-7b-v1.5 --local-dir checkpoints/vicuna-7b-v1.5
    2.4 GB  eva_vit_g.pth and blip2_pretrained_flant5xxl.pth, as above
   python convert_weights.py --llm checkpoints/vicuna-7b-v1.5 \\
       --vit checkpoints/eva_vit_g.pth --qformer checkpoints/blip2_pretrained_flant5xxl.pth \\
       --out weights/artgpt4-7b
docs/weights.md has other ways."""
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


def command_line():
    parser = command_parser("convert_weights.py", __doc__)
    add = parser.add_argument
    for flag, what in FLAGS.items():
        add(f"--{flag}", type=Path, metavar="PATH", help=what)
    add("--image-size", metavar="N", type=number(int, 1, 10_000),
        help="pixels per side (default: that of the ViT's position embedding)")
    add("--prompt", choices=PROMPTS, help="the conversation format of --llm (default: recognised)")
    add("--int8", action="store_true", help="store the language model's large matrices as int8")
    return parser


def main(args):
    """Do what the flags ask for. Raises Misuse for flags that do not go together."""
    given = {name for name, value in vars(args).items() if value}
    run, needed = convert, {"vit", "qformer", "llm", "out"}
    if given & {"export", "weights"}:
        run, needed = export, {"export", "weights"}
        if given - needed - {"debug"}:
            raise Misuse(f"not used by --export: --{', --'.join(sorted(given - needed))}")
    if not given:
        return print(WAYS)
    if needed - given:
        raise Misuse(f"also needed: --{', --'.join(sorted(needed - given))}")
    out = args.out or args.export
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out}: exists already; remove it or give another name")
    torch.set_num_threads(1)                                  # beside other work threads wait
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))   # as Ctrl-C: nothing is left
    run(args)


if __name__ == "__main__":
    run_command(main, command_line())
