"""Speed beside the machine's limits, measured in one run.

    python bench.py --weights FOLDER             a weights folder
    python bench.py --shape 1b --int8            random weights of a shape
    python bench.py --shape 1b --int8 --peers    beside llama.cpp and transformers, if installed

Encode and prefill are compared with the machine's matrix product, decode with the bytes that it
reads from memory in a second, since every weight is read once for a token.
"""
import resource

import torch

from benchmarks.costs import int8_error_table, memory_table
from benchmarks.speed import SHAPES, model_table, peers_table, random_model
from common.command_line import command_parser, run_command
from common.int8 import pack
from common.models import SAMPLES, describe, load, model_flags


def main(args):
    if args.memory:
        print(memory_table())
    elif args.int8_error:
        print(int8_error_table(args.weights, sorted(SAMPLES.glob("*.png"))))
    else:
        if args.shape:
            model = random_model(SHAPES[args.shape], getattr(torch, args.dtype or "float32"),
                                 args.device, args.int8, args.vision_int8)
            pack(model)
        else:
            model = load(args)
        print(f"{args.shape or args.weights.name}, {describe(model)}, {torch.get_num_threads()} "
              "threads\n", flush=True)
        table = peers_table(model.llama) if args.peers else model_table(model)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{table}\n\npeak memory {memory:.1f} GB")


def command_line():
    parser = command_parser("bench.py", __doc__)
    add, measured = parser.add_argument, parser.add_mutually_exclusive_group()
    measured.add_argument("--shape", choices=SHAPES,
                          help="random weights of this shape, in place of --weights")
    model_flags(parser)
    add("--peers", action="store_true", help="also llama.cpp and transformers, if installed")
    measured.add_argument("--memory", action="store_true", help="the memory of training the 13B")
    measured.add_argument("--int8-error", action="store_true", help="relative errors of int8")
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
