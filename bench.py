"""Speed beside the machine's limits, measured in one run.

    python bench.py --shape 1b --int8            random weights of a shape: tiny, 1b, 7b, 13b
    python bench.py --weights FOLDER             a weights folder
    python bench.py --shape 1b --int8 --peers    the language model alone, in turns with llama.cpp
                                                 and transformers
    python bench.py --rounds 10                  the time to the first token of each round of a
                                                 conversation
    python bench.py --beams 5                    an answer by beam search, beside one beam
    python bench.py --int8-error                 what int8 costs in accuracy, with outliers and in
                                                 the ViT
    python bench.py --train                      a training step in float32 and in bfloat16, part
                                                 by part, at the sizes at which the released code
                                                 was timed; and which dtype to take
    python bench.py --loader                     pictures read from a tar file, beside what Pillow
                                                 alone does
    python bench.py --memory                     the memory of training: 13B on paper, small sizes
                                                 measured too

A share says how much of the machine a part uses. Encode and prefill are compared with its matrix
product, decode with the read bandwidth of its memory, since every weight is read once for a token.
Run it under /usr/bin/time -v for the memory.
"""
from common.start import start_command

if __name__ == "__main__":
    start_command()                                           # before the slow imports

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from artgpt4 import Config
from benchmarks.models import SHAPES, machine_limits, random_model
from benchmarks.speed import (
    beams_table, int8_error_table, limits_table, model_table, peers_table, rounds_table,
    speak_without_tokenizer)
from benchmarks.training_cost import loader_table, memory_tables, step_time
from common.command_line import run_command
from common.int8 import quantise_adapters
from common.loading import load_folder
from common.packing import unpacked

TINY = Path(__file__).resolve().parent / "weights" / "tiny"


def model_to_time(args):
    """(model, name): random weights of --shape, or those of --weights."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, args.dtype)
    if args.weights or args.shape == "tiny":
        weights = args.weights or TINY
        model = load_folder(weights, device, dtype, int8=args.int8, vision_int8=args.vision_int8)
        name = weights.name
    else:
        llama = replace(SHAPES[args.shape], int8=args.int8)
        config = Config(adapter_width=llama.hidden_size // 4, llama=llama)
        config.vit.int8 = args.vision_int8
        model, name = random_model(config, dtype, device), f"random weights of shape {args.shape}"
    if model.config.llama.int8:
        quantise_adapters(model)
    for layer in unpacked(model):
        layer.pack()
    return model, name


def main(args):
    if args.memory:
        print(memory_tables())
    elif args.train:
        print(step_time(args.device or ("cuda" if torch.cuda.is_available() else "cpu")))
    elif args.loader:
        print(loader_table())
    elif args.int8_error:
        print(int8_error_table(args.weights or TINY))
    else:
        time_model(args, *model_to_time(args))


def time_model(args, model, name):
    """Print the speeds of a model: of a conversation's rounds, of beams, or of its parts."""
    if args.rounds:
        if model.tokenizer is None:
            speak_without_tokenizer(model)
        print(rounds_table(model, args.rounds))
        return
    if args.beams:
        print(beams_table(model, args.beams, args.prompt_tokens, args.new_tokens))
        return
    limits = machine_limits(model.llama.embed.weight.device)
    print(limits_table(limits), "", sep="\n", flush=True)
    precision = "int8" if model.config.llama.int8 else args.dtype
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{name}, {parameters:,.0f} M parameters, language model in {precision}\n", flush=True)
    lengths = args.prompt_tokens, args.new_tokens, args.turns
    if args.peers:
        print(peers_table(model.llama, *lengths))
    else:
        print(model_table(model, limits, *lengths))


def command_line():
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", *SHAPES), default="tiny",
                        help="(default: %(default)s)")
    parser.add_argument("--weights", type=Path, metavar="FOLDER",
                        help="a weights folder in place of random weights")
    parser.add_argument("--int8", action="store_true", help="the language model in int8")
    parser.add_argument("--vision-int8", action="store_true", help="the ViT in int8")
    parser.add_argument("--peers", action="store_true",
                        help="also transformers and llama.cpp, if installed")
    parser.add_argument("--rounds", type=int, metavar="N", help="a conversation of N rounds")
    parser.add_argument("--beams", type=int, metavar="N", help="beam search with N beams")
    parser.add_argument("--int8-error", action="store_true", help="relative errors of int8")
    parser.add_argument("--train", action="store_true", help="a training step")
    parser.add_argument("--loader", action="store_true", help="reading pictures for training")
    parser.add_argument("--memory", action="store_true", help="the memory of training")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N",
                        help="length of the prompt (default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=32, metavar="N",
                        help="length of the answer (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, metavar="N",
                        help="the speeds are medians of N turns (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                        help="(default: %(default)s)")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
