"""Public checkpoints in, a weights folder out, and back.

    python convert_weights.py             lists what checkpoints/ holds and what is missing
    python convert_weights.py --vit eva_vit_g.pth --qformer blip2_pretrained_flant5xxl.pth \\
        --llm vicuna-13b-v0 --adapter ArtGPT-4.pth --out weights/artgpt4
    python convert_weights.py --weights weights/artgpt4 --export ArtGPT-4.pth

One tensor of the source is in memory at a time, and the output is written tensor by tensor, header
first: a 13B model converts in 1 GB. All shapes are checked before the first byte is written, all
values while they are written. The folder appears when it is complete.
"""
from common.start import start_command

if __name__ == "__main__":
    start_command()                                           # before the slow imports

import argparse
import contextlib
import shlex
import signal
import sys
from dataclasses import replace
from glob import escape
from pathlib import Path

import torch

from artgpt4 import PROMPTS, ArtGPT4, Config
from common.command_line import number, printable, run_command
from common.files import read_tensors, written_beside
from conversion.assembly import fit_vit, settle_head, take, take_adapter, to_int8
from conversion.checkpoints import open_checkpoint
from conversion.discovery import alternatives, choose, list_checkpoints, missing_kinds
from conversion.formats import FORMATS, their_names
from conversion.language_models import add_delta
from conversion.sizes import check_vocabulary, config_of
from conversion.writing import check_rows, in_shards, remove_leftovers, write_folder

VISION = ("vit.", "ln_vision.", "qformer.")


def convert(args):
    """Convert public checkpoints to a weights folder."""
    out = Path(args.out)
    if out.exists():
        raise ValueError(f"{out}: exists already; remove it or give another --out")
    remove_leftovers(out.parent)
    vit = open_checkpoint(args.vit, "eva", "blip2_hf")
    qformer = open_checkpoint(args.qformer, "blip2", "blip2_hf")
    base = open_checkpoint(args.llm, "llama", "meta")
    llm = add_delta(base, open_checkpoint(args.delta, "delta")) if args.delta else base
    adapter = open_checkpoint(args.adapter, "artgpt4", "minigpt4") if args.adapter else None

    config = config_of(vit, qformer, llm, adapter, args.vit_layers, args.image_size)
    config = replace(config, prompt=args.prompt or Config.prompt)
    check_vocabulary(llm, base, adapter, config)
    fit_vit(vit, qformer, config)
    settle_head(llm, config)

    with torch.device("meta"):
        model = ArtGPT4(config, None)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    in_vision = {name: shape for name, shape in shapes.items() if name.startswith(VISION)}
    in_llama = {name: shape for name, shape in shapes.items()
                if name.startswith("llama.") and ".adapter." not in name}
    trainable = {name: shapes[name] for name in model.trainable_names()}

    vision = take(vit, in_vision, "vit.") | take(qformer, in_vision, ("ln_vision.", "qformer."))
    llama = take(llm, in_llama)
    trained = take_adapter(adapter, config, trainable, llama)
    if args.int8:
        config.llama.int8, llama = True, to_int8(llama)
    files = {
        "vision.safetensors": vision,
        **in_shards(llama),
        "adapter.safetensors": trained,                       # last: its norms replace the others
    }
    write_folder(out, files, config, llm.tokenizer)
    weights = printable(shlex.quote(str(out)))
    if adapter is not None and adapter.kind == "artgpt4":
        print(f"next: python chat.py --weights {weights} image.jpg")
    else:
        init = f" --init {weights}" if adapter else ""        # MiniGPT-4's projection
        print("The adapters are untrained. next: python train.py --stage 1 --recipe paper "
              f"--dtype bfloat16 --weights {weights}{init} --data 'laion/*.tar'")


def export(args):
    """Write adapter.safetensors of a weights folder or a run in the layout of ArtGPT-4.pth."""
    out, file = Path(args.export), Path(args.weights) / "adapter.safetensors"
    if out.exists():
        raise ValueError(f"{out}: exists already; remove it or give another name")
    for left in sorted(out.parent.glob(f".{escape(out.name)}.*.part")):
        print(f"{printable(left)}: {left.stat().st_size / 1e9:.2f} GB, left by an export that was "
              "killed; remove it, unless another process is writing it now", file=sys.stderr)
    tensors = {}
    for name, tensor in read_tensors(file):
        theirs = their_names("artgpt4", name)
        if not theirs:
            raise ValueError(f"{file}: {name} is not part of ArtGPT-4.pth")
        check_rows(f"{file}: {name}", tensor)
        tensors[theirs[0]] = tensor
    with written_beside(out) as path:
        torch.save({"model": tensors}, path)
    print(f"{printable(out)}  {out.stat().st_size / 1e9:.3f} GB, {len(tensors)} tensors")


def discover(args):
    """List what checkpoints/ holds, what is missing, and the command that converts it.

    With --yes, run that command. Raises ValueError if it is given and something is missing, or if
    there are two files for one part.
    """
    found = list_checkpoints(Path("checkpoints"))
    chosen = choose(found)
    missing = missing_kinds(found, chosen)
    for kind in missing:
        optional = "; without it the adapters start untrained" if kind == "artgpt4" else ""
        known = FORMATS[kind]
        print(f"missing in checkpoints/: {known.what}: {known.published}{optional}")
    if set(missing) - {"artgpt4"}:
        if args.yes:
            raise ValueError("checkpoints/ is not complete; what is missing is listed above")
        print("next: put it there, under any name, and run this again")
        return

    others = alternatives(found, chosen)
    for flag, path in others:
        print(f"also possible: --{flag} {printable(shlex.quote(str(path)))}")
    vars(args).update(chosen, out="weights/artgpt4")
    line = printable(shlex.join(["python", "convert_weights.py", *given_flags(args)]))
    if args.yes and others:
        raise ValueError("checkpoints/ holds two candidates for one part; "
                         f"leave one there, or type: {line}")
    if args.yes:
        print(f"running: {line}")
        convert(args)
    else:
        print(f"next: {line}")


def given_flags(args):
    """The flags of a conversion, as they would be typed."""
    flags = []
    for name, value in vars(args).items():
        if value is True and name != "yes":
            flags.append(f"--{name}")
        elif value is not None and not isinstance(value, bool):
            flags += [f"--{name.replace('_', '-')}", str(value)]
    return flags


@contextlib.contextmanager
def signals_clean_up():
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that nothing is left; then the process
    ends with the code that shells give such an end. One that is ignored, by nohup, stays so."""
    def end(number, _):
        for each in before:
            signal.signal(each, signal.SIG_IGN)               # one is enough: let it clean up
        print(f"\nended by {signal.Signals(number).name}; nothing was kept", file=sys.stderr)
        sys.exit(128 + number)

    before = {}
    for each in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) != signal.SIG_IGN:
            before[each] = signal.signal(each, end)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--vit", metavar="FILE", help="eva_vit_g.pth, or the folder of BLIP-2 from transformers")
    add("--qformer", metavar="FILE", help="blip2_pretrained_flant5xxl.pth, or that folder")
    add("--llm", metavar="FOLDER", help="Vicuna or LLaMA, in transformers' or Meta's format")
    add("--delta", metavar="FOLDER", help="a Vicuna delta, to be added to --llm")
    add("--adapter", metavar="FILE",
        help="ArtGPT-4.pth or pretrained_minigpt4.pth (default: untrained)")
    add("--out", metavar="FOLDER", help="the weights folder to make")
    add("--vit-layers", metavar="N", type=number(int, 1, 1000),
        help="blocks of the ViT to keep (default: 39 of 40)")
    add("--image-size", metavar="N", type=number(int, 1, 10_000),
        help="pixels per side (default: that of the ViT's position embedding)")
    add("--prompt", choices=PROMPTS,
        help="the prompt format that --llm was trained with (vicuna_v0)")
    add("--int8", action="store_true", help="store the language model's large matrices as int8")
    add("--yes", action="store_true", help="with no checkpoint given: run the command it finds")
    add("--export", metavar="FILE",
        help="write the trainable parameters of --weights in the layout of ArtGPT-4.pth")
    add("--weights", metavar="FOLDER", help="the weights folder or the run to --export")
    return parser


def main(arguments=None):
    parser = make_parser()

    def command(args):
        given = {name for name, value in vars(args).items() if value not in (None, False)}
        given.discard("debug")
        checkpoints = {"vit", "qformer", "llm", "delta", "adapter", "out"}
        options = {"prompt", "int8", "vit_layers", "image_size"}
        if given & {"export", "weights"}:
            run, required, optional = export, {"export", "weights"}, set()
        elif given & checkpoints:
            run, required = convert, {"vit", "qformer", "llm", "out"}
            optional = checkpoints | options
        else:
            run, required, optional = discover, set(), options | {"yes"}
        for names, problem in ((required - given, "also needed"),
                               (given - required - optional, "not used here")):
            if names:
                flags = ", ".join("--" + name.replace("_", "-") for name in sorted(names))
                parser.error(f"{problem}: {flags}")
        torch.set_num_threads(1)              # for a few rows at a time: threads would only wait
        with signals_clean_up():
            run(args)
    run_command(command, parser, arguments)


if __name__ == "__main__":
    main()
