"""The flags of train.py: the hyperparameters of a recipe, and how and where to run it."""
import argparse
from dataclasses import fields, replace
from pathlib import Path

import torch

from artgpt4 import MODES
from training.processes import UNDER_TORCHRUN, WORLD

TINY = Path(__file__).parent.parent / "weights" / "tiny"


def train_parser(description, recipes):
    """The parser of train.py. recipes: {(name, stage): a dataclass of hyperparameters}."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--stage", type=int, choices=(1, 2), required=True)
    add("--weights", type=Path, default=TINY, help="weights folder (default: weights/tiny)")
    add("--data", help="'laion/{00000..00301}.tar', a folder of NAME.jpg with NAME.txt, or the "
                       "folder cc_sbu_align (default: the gallery)")
    add("--val", type=int, default=0, metavar="PAIRS",
        help="keep the last PAIRS of the data out of training, for the validation loss and "
             "samples.png (default: %(default)s)")
    add("--pictures", type=int, default=3000,
        help="paintings of the gallery to train on (default: %(default)s)")
    add("--out", type=Path, help="the run's folder (default: runs/stage1 or runs/stage2)")
    add("--init", type=Path,
        help="adapter.safetensors to start from (default: in stage 1 an untrained adapter, in "
             "stage 2 runs/stage1/adapter.safetensors)")
    add("--recipe", choices=sorted({name for name, _ in recipes}), default="tiny",
        help="the hyperparameters (default: %(default)s)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true",
                          help="continue from the run's last checkpoint, if it has one")
    existing.add_argument("--overwrite", action="store_true",
                          help="start a new run in a folder that holds an unfinished one")
    add("--save-every", type=int, metavar="STEPS",
        help="steps between checkpoints (default: at evaluations only)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu",
        help="cuda, cuda:1, cpu, ... (default: cuda if there is one)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of frozen weights and activations; trainable parameters are float32 (default: "
             "%(default)s)")
    add("--int8", action="store_true",
        help="store the language model's frozen matrices with one byte per weight")
    add("--accumulate", type=int, default=1, metavar="N",
        help="compute a batch in N parts, to save memory (default: %(default)s)")
    add("--checkpointing", action="store_true",
        help="compute the blocks a second time in the backward pass, to save memory")
    add("--window", type=int, default=1, metavar="N",
        help="sort the pairs of N batches by length, for less padding (default: %(default)s)")
    add("--compile", action="store_true", help="use torch.compile on the blocks")
    add("--fsdp", action="store_true",
        help="spread the model over torchrun's processes, frozen weights included")
    add("--workers", type=int, default=1,
        help="processes that read pictures, for each training process (default: %(default)s)")
    group = parser.add_argument_group("hyperparameters (default: those of the recipe)")
    for field in fields(next(iter(recipes.values()))):
        choices = sorted(MODES) if field.name == "mode" else None
        group.add_argument(flag(field.name), type=field.type, choices=choices)
    return parser


def flag(name):
    return f"--{name.replace('_', '-')}"


def chosen_recipe(args, recipes):
    """The recipe that the flags name, with the hyperparameters that they change.

    Raises ValueError, naming the flag, for a number that is out of range.
    """
    if (args.recipe, args.stage) not in recipes:
        raise ValueError(f"the recipe {args.recipe} has no stage {args.stage}")
    recipe = recipes[args.recipe, args.stage]
    given = {field.name: getattr(args, field.name) for field in fields(recipe)}
    recipe = replace(recipe, **{name: value for name, value in given.items() if value is not None})
    of_recipe = ("batch_size", "steps_per_epoch", "epochs", "max_text_tokens", "eval_every")
    counts = {name: getattr(recipe, name) for name in of_recipe}
    counts |= {name: getattr(args, name) for name in
               ("pictures", "accumulate", "window", "save_every")}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{flag(name)} is {value}; it must be at least 1")
    if not 0 < recipe.min_crop_area <= 1:
        raise ValueError(f"--min-crop-area is {recipe.min_crop_area}; it is a share of the "
                         "picture, above 0 and at most 1")
    if recipe.batch_size % (WORLD * args.accumulate) != 0:
        raise ValueError(f"--batch-size is {recipe.batch_size}; {WORLD} processes with "
                         f"--accumulate {args.accumulate} cannot share it evenly")
    if args.fsdp and not UNDER_TORCHRUN:
        raise ValueError("--fsdp spreads the model over processes; start them with torchrun "
                         "--nproc-per-node N train.py ...")
    return recipe


def first_adapter(args):
    """The adapter.safetensors to start from, or None. Raises ValueError if it is not there."""
    file, cure = args.init, ""
    if file is None and args.stage == 2:
        file = Path("runs/stage1/adapter.safetensors")
        cure = "; stage 2 starts where stage 1 ended: run stage 1 first, or give --init FILE"
    if file is not None and not file.is_file():
        raise ValueError(f"{file}: no such file{cure}")
    return file
