"""Train ArtGPT-4 in its two stages: `python train.py --stage 1`, then `python train.py --stage 2`.

Stage 1 teaches the projection, the adapters and their norms to read pictures, from short captions without a prompt.
Stage 2 teaches the manner of an answer, from few long descriptions after an instruction. Everything else is frozen.
"""
import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from PIL import Image

from artgpt4 import STOP, TRAINS, ArtGPT4
from command import Progress, run_command, written_beside
from data import CCSBUAlign, Gallery, batches, painted
from gallery.painting import contact_sheet
from gallery.scenes import SEEN_PAIRS
from gallery.score import describe, held_out, score, table

HERE = Path(__file__).parent


@dataclass
class Recipe:
    """The hyperparameters of one stage; each is also a flag. Rates are per step of the optimizer."""
    batch_size: int
    warmup_lr: float          # the rate rises from here linearly to lr, then goes to min_lr along a cosine
    lr: float
    min_lr: float
    warmup_steps: int
    steps_per_epoch: int
    epochs: int
    max_text_tokens: int
    min_crop_area: float = 0.5
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    mode: str = "artgpt4"     # what trains: a key of artgpt4.TRAINS
    eval_every: int = 1000    # steps between two drawings of samples.png
    seed: int = 42

    @property
    def steps(self):
        return self.steps_per_epoch * self.epochs


RECIPES = {                   # (recipe, stage)
    # The paper's own (section 3.3). Its minimum lies above its initial rate in stage 1, so the rate rises.
    ("paper", 1): Recipe(32, 1e-8, 1e-7, 8e-7, 5000, 5000, 2, max_text_tokens=32),
    ("paper", 2): Recipe(12, 1e-6, 3e-5, 1e-5, 200, 200, 5, max_text_tokens=160),
    ("minigpt4", 1): Recipe(64, 1e-6, 1e-4, 8e-5, 5000, 5000, 4, max_text_tokens=32, mode="minigpt4"),
    # For weights/tiny and the gallery: minutes on two cores.
    ("tiny", 1): Recipe(32, 1e-5, 3e-3, 1e-4, 30, 220, 3, max_text_tokens=40, min_crop_area=0.8, eval_every=220),
    ("tiny", 2): Recipe(16, 1e-5, 3e-3, 5e-5, 20, 105, 3, max_text_tokens=160, min_crop_area=0.8, eval_every=105),
}


def learning_rate(step, recipe):
    """The rate of step 0, 1, ...: linear warm-up over the first steps of the run, then a cosine of the whole run."""
    if step < recipe.warmup_steps:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * step / recipe.warmup_steps
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def optimizer_for(parameters, recipe):
    """AdamW with weight decay on matrices alone: no biases, no norms."""
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
              {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.999))


def draw_samples(model, paintings, stage, file, columns=4):
    """A picture of held-out paintings with what the model says of each."""
    sheet = contact_sheet([Image.fromarray(p) for p in paintings], columns, captions=describe(model, paintings, stage))
    with written_beside(file) as path:
        sheet.save(path, format="PNG")


def train(model, source, recipe, stage, out, workers=1):
    """Train what recipe.mode says and write out/adapter.safetensors, out/log.jsonl and out/samples.png.

    source: of data.py. The adapter is saved, and the samples are drawn, every recipe.eval_every steps and at the end.
    """
    parameters = model.freeze(recipe.mode)
    print(f"stage {stage}: {sum(p.numel() for p in parameters):,} of {sum(p.numel() for p in model.parameters()):,} "
          f"parameters train ({recipe.mode}), {recipe.steps} steps of {recipe.batch_size} pairs, {len(source)} pairs")
    optimizer = optimizer_for(parameters, recipe)
    progress, began = Progress(f"stage {stage}", recipe.steps, "steps"), time.monotonic()
    held_out_paintings = painted(held_out(SEEN_PAIRS, 8))
    end = "\n" if stage == 1 else STOP
    loader = batches(source, stage, model.config.image_size, recipe.batch_size, recipe.steps, recipe.seed,
                     recipe.min_crop_area, workers)
    with open(out / "log.jsonl", "w") as log:
        for step, (pixels, prompts, texts) in enumerate(loader):
            rate = learning_rate(step, recipe)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = model.loss(pixels, texts, prompts, end, recipe.max_text_tokens)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            done = step + 1
            entry = {"step": done, "loss": loss.item(), "lr": rate, "grad_norm": norm.item(),
                     "samples_per_s": recipe.batch_size * done / (time.monotonic() - began)}
            print(json.dumps(entry), file=log, flush=True)
            progress.show(done, f"loss {entry['loss']:.3f}, rate {rate:.2e}")
            if done % recipe.eval_every == 0 or done == recipe.steps:
                model.save_adapter(out / "adapter.safetensors")
                draw_samples(model, held_out_paintings, stage, out / "samples.png")


def main(args):
    recipe = RECIPES.get((args.recipe, args.stage))
    if recipe is None:
        raise ValueError(f"the recipe {args.recipe} has no stage {args.stage}")
    chosen = {f.name: getattr(args, f.name) for f in fields(Recipe) if getattr(args, f.name) is not None}
    recipe = Recipe(**asdict(recipe) | chosen)
    for name in ("batch_size", "steps_per_epoch", "epochs", "max_text_tokens", "eval_every", "pictures"):
        if (value := getattr(args, name) if name == "pictures" else getattr(recipe, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    if not 0 < recipe.min_crop_area <= 1:
        raise ValueError(f"--min-crop-area is {recipe.min_crop_area}; it is a share of the picture, above 0, up to 1")
    out = args.out or Path("runs") / f"stage{args.stage}"
    init = args.init or (Path("runs/stage1/adapter.safetensors") if args.stage == 2 else None)
    if init and not Path(init).is_file():
        raise ValueError(f"{init}: no such file" + ("" if args.init else "; stage 2 begins where stage 1 ended: run it "
                                                    "first, or give --init FILE"))
    torch.manual_seed(recipe.seed)
    model = ArtGPT4.from_pretrained(args.weights, args.device, getattr(torch, args.dtype), adapter=False)
    if init:
        model.load_adapter(init)
    source = CCSBUAlign(args.data) if args.data else Gallery(args.pictures)
    out.mkdir(parents=True, exist_ok=True)
    train(model, source, recipe, args.stage, out, args.workers)
    print(f"{out}/adapter.safetensors, log.jsonl and samples.png are written")
    if not args.data:
        shares = score(model, args.stage)
        with written_beside(out / "score.json") as path:
            path.write_text(json.dumps(shares, indent=1) + "\n")
        print(table(shares))


def command_line():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, choices=(1, 2), required=True)
    parser.add_argument("--weights", type=Path, default=HERE / "weights" / "tiny", help="weights folder (weights/tiny)")
    parser.add_argument("--data", type=Path, help="the folder cc_sbu_align (without it: the gallery)")
    parser.add_argument("--pictures", type=int, default=2000, help="paintings of the gallery to train on (%(default)s)")
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/stage1 or runs/stage2)")
    parser.add_argument("--init", type=Path, help="adapter.safetensors to begin with (default: stage 1 anew, stage 2 "
                                                  "runs/stage1/adapter.safetensors)")
    parser.add_argument("--recipe", choices=sorted({name for name, _ in RECIPES}), default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                        help="of the frozen weights and activations; what trains is float32 (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that read pictures (default: %(default)s)")
    of_recipe = parser.add_argument_group("hyperparameters (default: the recipe's)")
    for hyperparameter in fields(Recipe):
        choices = sorted(TRAINS) if hyperparameter.name == "mode" else None
        of_recipe.add_argument(f"--{hyperparameter.name.replace('_', '-')}", type=hyperparameter.type, choices=choices)
    run_command(main, parser)


if __name__ == "__main__":
    command_line()
