"""A model from a folder and flags; whatever is wrong with a file is said in one line."""
import argparse
import os
from pathlib import Path

import torch

from artgpt4 import PROMPTS, ArtGPT4, Config
from common.files import (
    check_shards, load_tokenizer, read_json, shard_files, tensor_dtypes, weight_files,
)
from common.int8 import quantise_adapters
from common.packing import postpone_packing
from common.sizes import check_config


DTYPES = ("F32", "F16", "BF16", "I8")                         # I8: of matrices with a scale a row


def check_folder(folder, adapter=True):
    """Raises ValueError, naming the file, if a file of a weights folder is missing or damaged."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder}: no weights folder (no config.json in it); "
                         "make one with convert_weights.py")
    try:
        config = Config.from_dict(read_json(file))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{file}: {error}") from None
    check_config(file, config)
    if config.prompt not in PROMPTS:
        raise ValueError(f"{file}: prompt is {config.prompt!r}; known are {', '.join(PROMPTS)}")
    load_tokenizer(folder / "tokenizer.model", config)
    names = {file: checked_names(file) for file in weight_files(folder, adapter)}
    index = folder / "llama.safetensors.index.json"
    trained = names.pop(folder / "adapter.safetensors", [])
    check_shards(names, shard_files(index) if index.exists() else None)
    with torch.device("meta"):
        trainable = ArtGPT4(config, None).trainable_names()
    for name in sorted(set(trained) - set(trainable)):        # it would replace a frozen one
        raise ValueError(f"{folder / 'adapter.safetensors'}: {name} is not a trainable parameter")


def checked_names(file):
    """The names in a safetensors file. Raises ValueError for what no weights folder holds."""
    dtypes = tensor_dtypes(file)
    for name, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise ValueError(f"{file}: {name} is {dtype}; expected one of {', '.join(DTYPES)}")
    return list(dtypes)


def load_folder(folder, device="cpu", dtype=None, adapter=True, int8=False, vision_int8=False):
    """ArtGPT4.from_pretrained after check_folder. Raises ValueError, naming the file."""
    folder = Path(folder)
    check_folder(folder, adapter)
    return ArtGPT4.from_pretrained(folder, device, dtype, adapter, int8, vision_int8)


def load_adapter(model, file):
    """ArtGPT4.load_adapter. Raises ValueError, naming the file, if it is missing or damaged."""
    checked_names(file)
    model.load_adapter(file)


def load_model(args, train=False):
    """The model that the flags describe. With int8 the adapters' matrices are int8 too, unless
    gradients are wanted (`train`).

    Without --dtype a CPU computes in float32 if half of its memory holds that: it is slow in
    half precision.
    """
    dtype = getattr(torch, args.dtype) if args.dtype else None
    model = load_folder(args.weights, args.device, dtype, int8=args.int8,
                        vision_int8=args.vision_int8)
    if args.adapter:
        load_adapter(model, args.adapter)
    if not args.dtype and torch.device(args.device).type == "cpu" and hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        widths = [4 if p.is_floating_point() else 1 for p in model.parameters()]
        counts = [p.numel() for p in model.parameters()]
        if sum(count * width for count, width in zip(counts, widths, strict=True)) <= memory / 2:
            model.float()
    if not train:
        if model.config.llama.int8:
            quantise_adapters(model)
        postpone_packing(model)
    return model


def precision(model):
    """What a model computes in, in words."""
    parts = (("language", model.config.llama), ("vision", model.config.vit))
    int8 = [name for name, config in parts if config.int8]
    dtype = str(model.llama.embed.weight.dtype).removeprefix("torch.")
    return f"{dtype}, {' and '.join(int8)} in int8" if int8 else dtype


def device(text):
    """An argparse type: a device on which this machine can compute."""
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {reason}") from None
    return text
