"""ArtGPT-4 against controls of the same size: `python -m gallery.ablation`.

Every arm trains the projection, and most as many parameters beside it as ArtGPT-4 does, through
both stages, with the same data and steps. First a sweep: four rates on a seed that no result uses,
judged on validation paintings; then five seeds at each arm's best rate. Named beforehand were the
measure, the share of the four attributes that texts about held-out paintings of unseen pairs name
rightly, and the first question, whether ArtGPT-4 differs from the projection alone (MiniGPT-4).

OUT has a JSON file for each run; the same command continues after an interruption. When all are
there, docs/ablation.json holds their raw scores. --table prints its tables again.
"""
import argparse
import json
import multiprocessing
import random
import re
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import nn

from artgpt4 import (
    IGNORE, IMAGE_MARK, INSTRUCTIONS, PROMPTS, TRAINABLE, Adapter, ArtGPT4, example,
    instruction_prompt, pad_examples,
)
from common.command_line import Misuse, number, run_command
from common.files import read_json, write_json, written_beside
from common.models import TINY, device
from common.page import markdown_table
from common.paired import cells, paired_difference
from gallery.album import painted
from gallery.conversations import about_one, prompt_and_answer
from gallery.pretrain import end_with_parent, train
from gallery.scenes import random_scenes
from gallery.score import ATTRIBUTES, PAIRS, rightly, seen, tell
from gallery.words import caption, description

STAGES = {1: (660, 32, 3e-3, 40), 2: (525, 16, 1e-3, 240)}   # steps, batch, rate, longest text
FACTORS = (1 / 3, 1, 3, 9)                                    # of the rates, in the sweep
SWEEP_SEED = 1000
MEASURE = "unseen pairs"

# ---- Arms: the label, the beginnings of the names that are trained, what is changed before

class LowRank(nn.Module):
    """LoRA on the queries and values of a fused qkv matrix: W x + B A x, B zero at first."""

    def __init__(self, attention, rank):
        super().__init__()
        self.qkv, self.widths = attention.qkv, attention.widths
        q, _, v = self.widths
        self.down = nn.ModuleList(nn.Linear(self.qkv.in_features, rank, bias=False) for _ in "qv")
        self.up = nn.ModuleList(nn.Linear(rank, width, bias=False) for width in (q, v))
        for up in self.up:
            nn.init.zeros_(up.weight)

    def forward(self, x):
        q, k, v = self.qkv(x).split(self.widths, dim=-1)
        return torch.cat((q + self.up[0](self.down[0](x)), k, v + self.up[1](self.down[1](x))), -1)


def with_mlp(model, goal):
    width = model.config.llama_width
    model.proj = nn.Sequential(model.proj, Adapter(width, round((goal - width) / (2 * width + 1))))


def with_adapters(model, goal):
    width, goal = model.config.llama_width, goal / len(model.llama.blocks)
    for block in model.llama.blocks:
        block.adapter = Adapter(width, round((goal - width) / (2 * width + 1)))


def with_low_rank(model, goal):
    for block in model.llama.blocks:
        q, _, v = block.attn.widths
        rank = goal / len(model.llama.blocks) / (2 * model.config.llama_width + q + v)
        block.attn.qkv = LowRank(block.attn, round(rank))


BLOCK = r"proj\.|llama\.blocks\.\d+\."
ARMS = {
    "artgpt4": ("projection, norms and adapters (ArtGPT-4)", TRAINABLE["artgpt4"], None),
    "projection": ("projection alone (MiniGPT-4)", r"proj\.", None),
    "mlp": ("projection and an MLP after it", r"proj\.", with_mlp),
    "lora": ("projection and LoRA on q and v", BLOCK + r"attn\.qkv\.(down|up)\.", with_low_rank),
    "norms": ("projection and norms", TRAINABLE["artgpt4"].replace("adapter|", ""), None),
    "adapters": ("projection and adapters", BLOCK + r"adapter\.", with_adapters),
    "shuffled": ("ArtGPT-4, trained with shuffled pictures", TRAINABLE["artgpt4"], None)}


def attach(model, arm):
    """Make a model that starts as MiniGPT-4 an arm. Returns what is trained, in float32."""
    _, names, change = ARMS[arm]
    goal = sum(model.get_parameter(name).numel() for name in model.trainable_names()
               if not name.startswith("proj."))
    if change:
        change(model, goal)
    model.to(model.llama.embed.weight.device).requires_grad_(False)
    found = [p for name, p in model.named_parameters() if re.match(names, name)]
    return [parameter.requires_grad_(True) for parameter in found]


# ---- One run

@cache
def pictures_of(weights, device, count, seed, pairs):
    """(`count` scenes, their queries (count, Q, D of the Q-Former), which no arm changes)."""
    scenes = random_scenes(count, seed, pairs)
    model = ArtGPT4.from_pretrained(weights, device, torch.float32)
    return scenes, seen(model, painted(scenes))[0].clone()


def text_of(stage, scene, rng, style):
    """What a stage teaches about a scene: (prompt, answer)."""
    if stage == 1:
        return IMAGE_MARK, caption(scene, rng) + "\n"
    if rng.random() < 0.5:
        prompt, answer = prompt_and_answer(about_one(scene, rng), rng)
    else:
        prompt = instruction_prompt(rng.choice(INSTRUCTIONS), style)
        answer = description(scene, rng)
    return prompt, answer + PROMPTS[style][-1]


def train_stage(model, parameters, run, stage, args):
    """Train one stage of a run: (arm, factor, seed, sweep)."""
    arm, factor, seed, _ = run
    steps, size, rate, longest = STAGES[stage]
    steps, size = (args.steps, 2) if args.steps else (steps, size)
    scenes, queries = pictures_of(args.weights, args.device, args.paintings, "training",
                                  PAIRS["seen pairs"])
    style, count = model.config.prompt, model.config.queries

    def loss_of_step(step):
        rng = random.Random(f"{seed} {stage} {step}")
        numbers = rng.sample(range(len(scenes)), size)
        texts = [text_of(stage, scenes[i], rng, style) for i in numbers]
        ids, targets = pad_examples([example(model.tokenizer, count, prompt, answer, longest)
                                     for prompt, answer in texts])
        if arm == "shuffled":
            numbers = numbers[size // 2:] + numbers[:size // 2]
        return model(queries[numbers], ids, targets) / (targets != IGNORE).sum(), ""

    what = f"{arm}, rate x {factor:.2g}, seed {seed}, stage {stage}"
    train((parameters, loss_of_step), steps, factor * rate, what)


def one_run(run, args):
    """Train and score one arm. Returns what its JSON file holds."""
    arm, factor, seed, sweep = run
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = ArtGPT4.from_pretrained(args.weights, args.device, torch.float32, adapter=False)
    parameters, found = attach(model, arm), {}
    model.encode_image = lambda queries: model.proj(queries)  # the towers have done their part
    for stage in STAGES:
        train_stage(model, parameters, run, stage, args)
    for name in (MEASURE,) if sweep else PAIRS:
        scenes, queries = pictures_of(args.weights, args.device, args.pictures,
                                      "validation" if sweep else "held out", PAIRS[name])
        right = rightly(scenes, tell(model, queries, 2))
        found[name] = {attribute: "".join(str(int(value)) for value in right[attribute])
                       for attribute in ATTRIBUTES}
    return {"arm": arm, "factor": factor, "seed": seed, "sweep": sweep,
            "parameters": sum(parameter.numel() for parameter in parameters),
            "rates": [factor * STAGES[stage][2] for stage in STAGES], "rightly": found}


# ---- All runs

def kept_run(run, args):
    """What one_run returns, from the run's file or made now. Raises ValueError, naming the file, if
    it is of other weights or settings."""
    files = [args.weights / f"{name}.safetensors" for name in ("vision", "llama")]
    same = [*(zlib.crc32(file.read_bytes()) for file in files), args.pictures, args.paintings,
            args.steps]
    file = args.out / "{}-{:.3g}-{}.json".format(*run)
    if not file.is_file():
        found = one_run(run, args) | {"identity": same}
        write_json(found, file)
    found = read_json(file)
    if found.pop("identity", None) != same:
        raise ValueError(f"{file}: a run with other weights or settings; give another --out")
    return found


def share(rightly):
    """The mean over attributes and paintings of a run's digits."""
    return fmean(int(digit) for row in rightly.values() for digit in row)


def finished(runs, args):
    """kept_run of each, in turn or args.jobs at once."""
    if args.jobs == 1:
        return [kept_run(run, args) for run in runs]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, spawn, end_with_parent) as pool:
        return list(pool.map(kept_run, runs, [args] * len(runs)))


def all_runs(args):
    """The runs of the sweep, and those of the comparison at each arm's best rate."""
    sweep, best = finished([(arm, factor, SWEEP_SEED, True) for arm in args.arms
                            for factor in FACTORS], args), {}
    for run in sorted(sweep, key=lambda run: share(run["rightly"][MEASURE])):
        best[run["arm"]] = run["factor"]
    return sweep + finished([(arm, best[arm], seed, False) for seed in args.seeds
                             for arm in args.arms], args)


def tables(runs):
    """The tables of the raw scores, in Markdown."""
    results, differences, swept = [], [], []
    shares = {}                                               # arm: (seeds, paintings)
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = [run for run in runs if run["arm"] == arm]
        final = [run for run in own if not run["sweep"]]
        label = ARMS[arm][0] if arm in ARMS else arm
        tried = {run["factor"]: share(run["rightly"][MEASURE]) for run in own if run["sweep"]}
        swept.append([label, *(f"{100 * tried[factor]:.1f} %" for factor in sorted(tried))])
        if not final:
            continue
        digits = np.array([[list(map(int, row)) for row in run["rightly"][MEASURE].values()]
                           for run in final])                 # (seeds, attributes, paintings)
        shares[arm] = digits.mean(axis=1)
        seen_pairs = fmean(share(run["rightly"]["seen pairs"]) for run in final)
        each = ", ".join(f"{100 * value:.1f}" for value in shares[arm].mean(axis=1))
        results.append([
            label, f"{final[0]['parameters']:,}",
            " and ".join(f"{rate:.0e}" for rate in final[0]["rates"]),
            f"{100 * shares[arm].mean():.1f} % ({each})", f"{100 * seen_pairs:.1f} %",
            f"{100 * digits[:, 0].mean():.1f} %", f"{100 * digits.min(axis=1).mean():.1f} %"])
        if arm != "artgpt4" and "artgpt4" in shares:
            pair = shares["artgpt4"], shares[arm]
            wide = paired_difference(*pair, level=1 - 0.05 / (len(ARMS) - 1))
            differences.append([label, *cells(paired_difference(*pair), 1, 100),
                                cells(wide, 1, 100)[1]])
    return "\n\n".join(markdown_table(heading, rows) for heading, rows in (
        (("trained", "parameters", "rates", MEASURE, "seen pairs", f"subject, {MEASURE}",
          f"all four at once, {MEASURE}"), results),
        ((f"ArtGPT-4 minus the arm, {MEASURE}", "points", "95 % interval", "wins, ties, losses",
          "for all at once"), differences),
        (("sweep, one seed", *(f"rates x {factor:.2g}" for factor in FACTORS)), swept)) if rows)


def main(args):
    if SWEEP_SEED in args.seeds:
        raise Misuse(f"--seeds: {SWEEP_SEED} is the seed of the sweep, which no result uses")
    if not args.table:
        lines = ",\n".join(map(json.dumps, all_runs(args)))
        with written_beside(args.scores) as path:
            path.write_text(f'{{"runs": [\n{lines}\n]}}\n', encoding="utf-8")
    print(tables(read_json(args.scores)["runs"]))


def command_line():
    parser = argparse.ArgumentParser(prog="python -m gallery.ablation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add, count = parser.add_argument, number(int, 1, 10**6)
    add("--weights", type=Path, default=TINY, metavar="FOLDER", help="default: weights/tiny")
    add("--device", type=device, default="cpu", help="default: %(default)s")
    add("--out", type=Path, default=Path("runs/ablation"), metavar="FOLDER",
        help="folder of the runs; default: %(default)s")
    add("--scores", type=Path, default=Path("docs/ablation.json"), metavar="FILE",
        help="the raw scores of all runs; default: %(default)s")
    add("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS), help="default: all")
    add("--seeds", type=int, nargs="*", default=[1, 2, 3, 4, 5], help="default: 1 to 5")
    add("--pictures", type=count, default=200, help="held-out, of each kind; default: 200")
    add("--paintings", type=count, default=3000, help="to train on; default: 3000")
    add("--steps", type=count, help="of each stage, with batches of 2: a trial of the command")
    add("--jobs", type=count, default=1, help="runs at the same time; default: 1")
    add("--table", action="store_true", help="train nothing; print the tables of --scores")
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
