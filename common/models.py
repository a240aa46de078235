"""A model from the flags that the commands share, and its answers to many prompts at once."""
import argparse
import os
import sys
from pathlib import Path

import torch

from artgpt4 import ArtGPT4, errors_naming
from common.command_line import Progress
from common.files import check_file, what_it_is
from common.int8 import is_int8, pack, quantised

ROOT = Path(__file__).resolve().parent.parent
TINY, SAMPLES = ROOT / "weights" / "tiny", ROOT / "samples"
WIDE = 1024         # from this width of LLaMA on, a token's products are worth several threads


def device(text):
    """An argparse type: a device on which this machine can compute."""
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {reason}") from None
    return text


def model_flags(parser):
    """Add the flags that say which model it is and how it computes."""
    parser.add_argument("--weights", type=Path, default=TINY, metavar="FOLDER",
                        help="as convert_weights.py makes them; default: weights/tiny")
    parser.add_argument("--adapter", type=Path, metavar="FILE",
                        help="an adapter.safetensors of train.py in place of the folder's")
    parser.add_argument("--device", type=device, default="cpu", help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"),
                        help="of frozen weights; default: as stored, on a CPU float32 where it "
                             "fits into half of the memory")
    parser.add_argument("--int8", action="store_true", help="int8 language model: half the memory")
    parser.add_argument("--vision-int8", action="store_true", help="int8 ViT too")


def load(args, train=False):
    """The model that the flags of model_flags describe; to train: with the adapter as training
    starts it unless a file is given, and nothing packed. Raises ValueError, naming the file and
    what it is."""
    folder, adapter = args.weights, args.adapter
    if adapter:
        check_file(adapter)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9
    if size > 2:                                              # less takes a few seconds
        print(f"loading {folder}, {size:.1f} GB", file=sys.stderr)
    try:
        model = ArtGPT4.from_pretrained(
            folder, args.device, args.dtype and getattr(torch, args.dtype),
            adapter or (False if train else None), quantised(args.int8, args.vision_int8))
    except ValueError as error:
        name, _, reason = str(error).partition(": ")
        if name.endswith(".json"):
            reason += "; convert_weights.py makes a weights folder"
        elif os.path.isfile(name):
            with open(name, "rb") as file:
                reason = what_it_is(file.read(300)) or reason
        raise ValueError(f"{name}: {reason}") from None
    with errors_naming(folder):                               # float8 has no aminmax
        for name, parameter in model.named_parameters():
            if parameter.dtype != torch.int8 and not all(map(torch.isfinite, parameter.aminmax())):
                raise ValueError(f"{name} holds NaN or infinity")
    if not (train or model.config.llama_width >= WIDE or os.environ.get("OMP_NUM_THREADS")):
        torch.set_num_threads(1)          # beside a busy process two would wait for each other
    if model.proj.weight.is_cpu and not args.dtype and hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        sizes = [p.numel() * (4 if p.is_floating_point() else 1) for p in model.parameters()]
        if sum(sizes) <= memory / 2:
            model.float()                                     # a CPU is slow in half precision
    if not train:
        pack(model, Progress if size > 2 else None)
    return model


def describe(model):
    """What a model computes in, in words: its dtype, and which parts are int8."""
    parts = [name for name, part in (("language", model.llama), ("vision", model.vit))
             if is_int8(part)]
    dtype = str(model.llama.embed.weight.dtype).removeprefix("torch.")
    return f"{dtype}, {' and '.join(parts)} in int8" if parts else dtype


def answers(model, embeds, max_new_tokens=300, **sampling):
    """Whole answers to B prompts of equal length, embeds (B, T, D) -> B texts. sampling: see
    ArtGPT4.generate."""
    steps = []
    for ids in model.generate(embeds, max_new_tokens, **sampling):
        steps.append(ids.tolist())
        texts = [model.decode(row) for row in zip(*steps, strict=True)]
        if all(ended for _, ended in texts):
            break
    return [text.strip() for text, _ in texts]
