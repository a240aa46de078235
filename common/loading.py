"""A model from flags: which weights, on which device, in which precision."""
import argparse
import os

import torch

from artgpt4 import ArtGPT4


def load_model(args):
    """The model that the flags describe. Without --dtype a CPU computes in float32 if half of its memory holds that:
    it is slow in half precision."""
    model = ArtGPT4.from_pretrained(args.weights, args.device, args.dtype and getattr(torch, args.dtype),
                                    int8=args.int8, vision_int8=args.vision_int8)
    if args.adapter:
        model.load_adapter(args.adapter)
    if not args.dtype and torch.device(args.device).type == "cpu" and hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if sum(p.numel() * (4 if p.is_floating_point() else 1) for p in model.parameters()) <= memory / 2:
            model.float()
    return model


def precision(model):
    """What a model computes in, in words."""
    int8 = [part for part, config in (("language", model.config.llama), ("vision", model.config.vit)) if config.int8]
    dtype = str(model.llama.embed.weight.dtype).removeprefix("torch.")
    return f"{dtype}, {' and '.join(int8)} in int8" if int8 else dtype


def device(text):
    """An argparse type: a device on which this machine can compute."""
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return text
