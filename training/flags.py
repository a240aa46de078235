"""The flags of train.py: the hyperparameters of a recipe, and how and where to run it."""
import argparse
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import torch

from artgpt4 import MODES
from common.command_line import Misuse, number
from training.processes import UNDER_TORCHRUN, WORLD, say

TINY = Path(__file__).parent.parent / "weights" / "tiny"

PARTS = {("tiny", 2): 2}     # of a batch, where that is faster: by recipe and stage
MEANING = {             # of each hyperparameter
    "batch_size": "pairs per step, of all processes together",
    "warmup_lr": "learning rate of the first step",
    "lr": "learning rate at the end of warm-up",
    "min_lr": "learning rate at the end of the run, after a cosine",
    "warmup_steps": "steps of linear warm-up",
    "steps": "length of the run, in optimizer steps",
    "max_text_tokens": "longest text; a longer one is cut and loses its end",
    "epochs": "length of the run, in passes over the pairs; in place of --steps",
    "min_crop_area": "smallest share of a picture that a random crop keeps; 1: no crops",
    "weight_decay": "of AdamW, on matrices only",
    "max_grad_norm": "gradients are clipped to this norm",
    "mode": "which parameters are trained, beside the projection",
    "eval_every": "steps between evaluations",
    "seed": "of the order, the crops and the start of the adapters",
}


def train_parser(description, recipes):
    """The parser of train.py. recipes: {(name, stage): a dataclass of hyperparameters}."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--stage", type=int, choices=(1, 2), required=True,
        help="1: short captions, without a prompt; 2: descriptions, after an instruction")
    add("--weights", type=Path, default=TINY, help="weights folder (default: weights/tiny)")
    add("--data", help="'laion/{00000..00301}.tar', a folder of NAME.jpg with NAME.txt, or the "
                       "folder cc_sbu_align (default: the gallery)")
    add("--val", type=int, default=0, metavar="PAIRS",
        help="keep PAIRS of the data, drawn with --seed, out of training, for the validation loss "
             "and samples.png (default: %(default)s)")
    add("--patience", type=int, metavar="N",
        help="end the run after N evaluations without a lower validation loss")
    add("--max-bad", type=number(float, 0, 1), default=0.05, metavar="SHARE",
        help="share of bad samples that ends the run (default: %(default)s)")
    add("--pictures", type=int, default=3000,
        help="paintings of the gallery to train on (default: %(default)s)")
    add("--out", type=Path, help="the run's folder (default: runs/stage1 or runs/stage2)")
    add("--init", type=Path,
        help="trainable parameters to start from: an adapter.safetensors, a weights folder, "
             "ArtGPT-4.pth or pretrained_minigpt4.pth (default: in stage 1 an untrained adapter, "
             "in stage 2 runs/stage1/adapter.safetensors)")
    add("--recipe", choices=sorted({name for name, _ in recipes}),
        help="the hyperparameters (default: tiny for weights of the tiny model's size; for others "
             "finetune with --stage 2 --init, else paper)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true",
                          help="continue from the run's last checkpoint, if it has one")
    existing.add_argument("--overwrite", action="store_true",
                          help="start a new run in a folder that holds one, which is deleted")
    add("--save-every", type=int, metavar="STEPS",
        help="steps between checkpoints (default: at evaluations only)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu",
        help="cuda, cuda:1, cpu, ... (default: cuda if there is one)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of frozen weights and activations; trainable parameters are float32. bfloat16 takes "
             "half the memory; on a CPU it is faster only with AMX or AVX-512 BF16, which `python "
             "bench.py --train` measures (default: %(default)s)")
    add("--int8", action="store_true",
        help="store the language model's frozen matrices with one byte per weight")
    add("--vision-int8", action="store_true", help="the same for the image encoder")
    add("--optimizer-bits", type=int, choices=(8, 32), default=32,
        help="of each of AdamW's two moments (default: %(default)s)")
    add("--accumulate", type=int, metavar="N",
        help="compute a batch in N parts, each of texts of like length: less memory, less padding "
             "(default: 2 in stage 2 of the tiny recipe, else 1)")
    add("--checkpointing", action="store_true",
        help="compute the blocks a second time in the backward pass, to save memory")
    add("--window", type=int, default=1, metavar="N",
        help="sort the pairs of N batches by length, for less padding (default: %(default)s)")
    add("--compile", action="store_true", help="use torch.compile on the blocks")
    add("--fsdp", action="store_true",
        help="spread the model over torchrun's processes, frozen weights included")
    add("--cache-vision", action="store_const", const=True,
        help="compute what the frozen ViT and Q-Former find in each picture once, keep it in a "
             "file, and train without them; needs --min-crop-area 1")
    add("--workers", type=int, default=1,
        help="processes that read pictures, for each training process (default: %(default)s)")
    group = parser.add_argument_group("hyperparameters (default: those of the recipe)")
    for field in fields(next(iter(recipes.values()))):
        choices, metavar = None, "N" if field.type is int else "X"
        if field.name == "mode":
            choices, metavar = sorted(MODES), None
        group.add_argument(flag(field.name), type=field.type, choices=choices, metavar=metavar,
                           help=MEANING[field.name])
    return parser


def flag(name):
    return f"--{name.replace('_', '-')}"


def default_recipe(args):
    """The name of the recipe for what the flags give: never rates that the weights do not suit."""
    if sizes(args.weights) == sizes(TINY):
        return "tiny"
    return "finetune" if args.stage == 2 and args.init else "paper"


def read_config(folder):
    """A weights folder's config.json; {} if something is wrong with it, which loading says."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config if isinstance(config, dict) else {}
    except (OSError, ValueError):
        return {}


def sizes(folder):
    """Width and depth of a weights folder's language model, or None."""
    try:
        llama = read_config(folder)["llama"]
        return llama["hidden_size"], llama["num_hidden_layers"]
    except (LookupError, TypeError):
        return None


def chosen_recipe(args, recipes):
    """The recipe that the flags name, with the hyperparameters that they change.

    Raises Misuse, naming the flag, for a number that is out of range.
    """
    name = args.recipe or default_recipe(args)
    if (name, args.stage) not in recipes:
        raise Misuse(f"the recipe {name} has no stage {args.stage}")
    prompt = read_config(args.weights).get("prompt", "vicuna_v0")
    if args.stage == 2 and prompt != "vicuna_v0":
        raise Misuse(f"--stage 2 writes its prompts in Vicuna's format, but {args.weights} is for "
                     f"{prompt}: such a model can be trained in stage 1 alone")
    recipe = recipes[name, args.stage]
    given = {field.name: getattr(args, field.name) for field in fields(recipe)}
    given = {name: value for name, value in given.items() if value is not None}
    if {"steps", "epochs"} <= given.keys():
        raise Misuse("--steps and --epochs both say how long to train; give one of them")
    if "epochs" in given:
        recipe = replace(recipe, steps=0)
    check_flags(args, given)
    recipe = replace(recipe, **given)
    if args.cache_vision and recipe.min_crop_area < 1:
        raise Misuse(
            f"--cache-vision keeps what the model sees in whole pictures, but --min-crop-area is "
            f"{recipe.min_crop_area}: pictures are cropped at random; give --min-crop-area 1 too")
    if args.accumulate is None:
        parts = PARTS.get((name, args.stage), 1)
        args.accumulate = parts if recipe.batch_size % (WORLD * parts) == 0 else 1
    if recipe.batch_size % (WORLD * args.accumulate) != 0:
        raise Misuse(f"--batch-size is {recipe.batch_size}; {WORLD} processes with "
                     f"--accumulate {args.accumulate} cannot share it evenly")
    say(f"recipe {name}{'' if args.recipe else ', chosen by the weights and flags'}")
    return recipe


def check_flags(args, given):
    """Raise Misuse, naming the flag, for a number that is out of range, or for flags that do
    not go together. given: {name: value} of the hyperparameters among the flags."""
    counts = ("batch_size", "steps", "epochs", "max_text_tokens", "eval_every", "pictures",
              "accumulate", "window", "save_every", "patience")
    for name in counts:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise Misuse(f"{flag(name)} is {value}; it must be at least 1")
    for name, value in given.items():
        if name in ("max_grad_norm", "min_crop_area"):
            fits, expected = value > 0, "above 0"
        else:
            fits, expected = isinstance(value, str) or 0 <= value < math.inf, "0 or more"
        if not fits:
            raise Misuse(f"{flag(name)} is {value}; it must be a number, {expected}")
    if given.get("min_crop_area", 1) > 1:
        raise Misuse(f"--min-crop-area is {args.min_crop_area}; it is a share of the picture, "
                     "above 0 and at most 1")
    for name in ("val", "workers"):
        if getattr(args, name) < 0:
            raise Misuse(f"{flag(name)} is {getattr(args, name)}; it must be 0 or more")
    if args.patience and not args.val:
        raise Misuse("--patience waits for a lower validation loss; give --val PAIRS too")
    if args.fsdp and not UNDER_TORCHRUN:
        raise Misuse("--fsdp spreads the model over processes; start them with torchrun "
                     "--nproc-per-node N train.py ...")
    if args.fsdp and args.optimizer_bits == 8:
        raise Misuse("--optimizer-bits 8 does not go with --fsdp, which spreads the moments "
                     "over the processes; leave one of them out")


def first_adapter(args):
    """The file or folder that --init names, or its default, or None.

    Raises ValueError if it is not there.
    """
    path, cure = args.init, ""
    if path is None and args.stage == 2:
        path = Path("runs/stage1/adapter.safetensors")
        cure = "; stage 2 starts where stage 1 ended: run stage 1 first, or give --init FILE"
    if path is not None and not path.exists():
        raise ValueError(f"{path}: no such file{cure}")
    return path
