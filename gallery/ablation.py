"""ArtGPT-4 against controls of the same size: `python -m gallery.ablation`.

Every arm of gallery/arms.py is trained through both stages, with the same data and steps. First a
sweep: four rates on a seed that no result uses, judged on validation paintings; then five
seeds at each arm's best rate. The measure was named beforehand: the share of the four attributes
that texts about held-out paintings of unseen pairs name rightly; so was the first question, whether
ArtGPT-4 differs from the projection alone (MiniGPT-4). ViT and Q-Former are frozen in all arms, so
what they find in each painting is computed once, without random crops.

    python -m gallery.ablation              all of it, some hours on two cores; after an
                                            interruption the same command continues with the runs
                                            that were not finished
    python -m gallery.ablation --device cuda --jobs 16             16 runs at once, on a GPU
    python -m gallery.ablation --table      the tables and curves from docs/ablation.json alone

OUT has a JSON file for each run. When all are there, docs/ablation.json holds their raw scores and
docs/ablation.html the tables and learning curves.
"""
from common.start import start_command

if __name__ == "__main__":
    start_command()                                           # before the slow imports

import argparse
import json
import multiprocessing
import os
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

import torch

from common.command_line import Misuse, number, run_command
from common.files import read_json, weight_files, written_beside
from common.loading import device, load_folder
from common.page import html_table, line_chart, markdown_table, page, paragraph
from common.paired import cells, paired_difference
from common.progress import Progress
from gallery import words
from gallery.album import painted
from gallery.arms import ARMS, attach
from gallery.scenes import SEEN_PAIRS, UNSEEN_PAIRS, random_scenes
from gallery.score import ATTRIBUTES, describe, held_out
from train import RECIPES, backward, learning_rate, optimizer_for, set_rate
from training.cached_vision import cached_vision
from training.data import Gallery, batches, in_parts
from training.flags import PARTS
from training.processes import mean_over_tokens

HERE = Path(__file__).resolve().parent.parent
FACTORS = (1 / 3, 1, 3, 9)                                    # of the recipe's rates, in the sweep
SWEEP_SEED = 1000
EVERY = 15                                                    # steps of a point of a curve
MEASURE = "unseen pairs"
AT_ONCE = 1 - 0.05 / (len(ARMS) - 1)      # of intervals that shall hold for all other arms at once

# ---- One run


def train_stage(model, arm, parameters, stage, recipe, source, what, workers):
    """Train `parameters` by a recipe; the batches hold features in place of pixels. Returns the
    mean loss of every EVERY steps."""
    optimizer = optimizer_for(parameters, recipe)
    loader = batches(source, stage, model.config.image_size, recipe.batch_size, recipe.steps,
                     recipe.seed, recipe.min_crop_area, workers)
    progress, losses = Progress(what, recipe.steps, "steps"), []
    for step, [batch] in enumerate(loader):
        set_rate(optimizer, learning_rate(step, recipe))
        if arm.shuffled:
            away = len(batch.pixels) // 2                     # beyond the pictures of one prompt
            batch = batch._replace(pixels=batch.pixels.roll(away, dims=0))
        parts = in_parts(batch, PARTS.get(("tiny", stage), 1))    # as train.py computes it
        loss, tokens = backward(model, parts, stage, recipe.max_text_tokens)
        mean_over_tokens(parameters, tokens)
        torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss / tokens)
        progress.show(step + 1, f"loss {losses[-1]:.3f}")
    return [fmean(losses[i:i + EVERY]) for i in range(0, len(losses), EVERY)]


def rightly(model, scenes):
    """{attribute: a text of 0 and 1, whether each scene's description names it rightly}."""
    texts = describe(model, painted(scenes), 2)
    named = [words.named(text) for text in texts]
    return {attribute: "".join(str(int(found[attribute] == scene.attributes[attribute]))
                               for found, scene in zip(named, scenes, strict=True))
            for attribute in ATTRIBUTES}


def scenes_of(sweep, count):
    """{name: held-out scenes}: those of gallery.score, or for the sweep others."""
    if sweep:
        return {MEASURE: random_scenes(count, "validation", UNSEEN_PAIRS)}
    return {"seen pairs": held_out(SEEN_PAIRS, count), MEASURE: held_out(UNSEEN_PAIRS, count)}


def recipe_of(stage, args, factor=1, seed=0):
    """The recipe of a stage for all arms, without random crops; rates are times `factor`."""
    recipe = RECIPES["tiny", stage]
    recipe = replace(recipe, lr=factor * recipe.lr, min_lr=factor * recipe.min_lr, seed=seed,
                     min_crop_area=1)
    if args.steps:
        recipe = replace(recipe, steps=args.steps, warmup_steps=1, batch_size=2)
    return recipe


def identity(args):
    """What must be the same in all runs that are compared."""
    sums = {file.name: zlib.crc32(file.read_bytes()) for file in weight_files(args.weights, False)}
    return {"weights": sums, "recipes": [asdict(recipe_of(stage, args)) for stage in (1, 2)],
            "pictures": args.pictures, "paintings": args.paintings}


def source_of(model, args):
    """What the arms train on: what the model's towers find in the paintings, computed once."""
    return cached_vision(model, Gallery(args.paintings), workers=args.workers)


def one_run(name, factor, seed, sweep, args):
    """Train and score one arm. Returns what its JSON file holds."""
    arm, losses = ARMS[name], {}
    torch.manual_seed(seed)
    model = load_folder(args.weights, args.device, torch.float32, adapter=False)
    source = source_of(model, args)
    parameters = attach(model, arm)
    for stage in (1, 2):
        recipe = recipe_of(stage, args, factor, seed)
        what = f"{name}, rate x {factor:.2g}, seed {seed}, stage {stage}"
        losses[stage] = train_stage(model, arm, parameters, stage, recipe, source, what,
                                    args.workers)
    model.eval()
    found = {pairs: rightly(model, scenes)
             for pairs, scenes in scenes_of(sweep, args.pictures).items()}
    return {"arm": name, "factor": factor, "seed": seed, "sweep": sweep, "device": args.device,
            "parameters": sum(parameter.numel() for parameter in parameters),
            "rates": [recipe_of(stage, args, factor).lr for stage in (1, 2)],
            "losses": losses, "rightly": found}


def share(rightly):
    """The mean over attributes and paintings of what `rightly` returns."""
    return fmean(int(digit) for row in rightly.values() for digit in row)


# ---- All runs


def kept_run(name, factor, seed, sweep, args):
    """What one_run returns, from the run's file or made now. Raises ValueError if the file is of
    other weights or settings."""
    same = identity(args)
    file = args.out / f"{name}-{factor:.3g}-{seed}.json"
    if not file.is_file():
        found = one_run(name, factor, seed, sweep, args) | {"identity": same}
        with written_beside(file) as path:
            path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    run = read_json(file)
    if run.get("identity") != same:
        raise ValueError(f"{file}: a run with other weights, recipes or settings; give another "
                         "--out")
    return run


def in_turn(runs, args):
    """kept_run of each (name, factor, seed, sweep), one after the other or args.jobs at once."""
    if args.jobs == 1:
        return [kept_run(*run, args) for run in runs]
    source_of(load_folder(args.weights, args.device, torch.float32), args)     # once for all jobs
    for sweep in (True, False):
        for scenes in scenes_of(sweep, args.pictures).values():
            painted(scenes)
    spawn, threads = multiprocessing.get_context("spawn"), max(1, os.cpu_count() // args.jobs)
    with ProcessPoolExecutor(args.jobs, spawn, torch.set_num_threads, (threads,)) as pool:
        return [done.result() for done in [pool.submit(kept_run, *run, args) for run in runs]]


def restore(args):
    """Where no run has been made, write the files of those whose raw scores are kept and fit."""
    if args.out.is_dir() or not args.scores.is_file():
        return
    same, kept = identity(args), read_json(args.scores)
    for run in kept["runs"] if kept.get("identity") == same else ():
        file = args.out / f"{run['arm']}-{run['factor']:.3g}-{run['seed']}.json"
        with written_beside(file) as path:
            path.write_text(json.dumps(run | {"identity": same}) + "\n", encoding="utf-8")


def all_runs(args):
    """The runs of the sweep and of the comparison: kept ones, or made now."""
    restore(args)
    sweep = in_turn([(name, factor, SWEEP_SEED, True) for name in args.arms for factor in FACTORS],
                    args)
    best = {}
    for name in args.arms:
        scores = {run["factor"]: share(run["rightly"][MEASURE])
                  for run in sweep if run["arm"] == name}
        best[name] = max(scores, key=scores.get)
    return sweep + in_turn([(name, best[name], seed, False)   # soon every arm has a seed
                            for seed in args.seeds for name in args.arms], args)


# ---- Tables and curves


def matrix(runs, name, pairs):
    """(seeds, paintings): the share of attributes that are right in each text of an arm's runs."""
    rows = []
    for run in runs:
        if run["arm"] == name and not run["sweep"]:
            columns = zip(*run["rightly"][pairs].values(), strict=True)
            rows.append([fmean(map(int, digits)) for digits in columns])
    return rows


def made_tables(runs):
    """[(caption, heading, lines)] of the raw scores."""
    names = [name for name in ARMS if any(run["arm"] == name for run in runs)]
    results, differences, sweep = [], [], []
    for name in names:
        of_arm = [run for run in runs if run["arm"] == name]
        final = [run for run in of_arm if not run["sweep"]]
        tried = [(run["factor"], share(run["rightly"][MEASURE])) for run in of_arm if run["sweep"]]
        sweep.append([ARMS[name].label, *(f"{100 * value:.1f} %" for _, value in sorted(tried))])
        if not final:
            continue
        line = [ARMS[name].label, f"{final[0]['parameters']:,}",
                " and ".join(f"{rate:.0e}" for rate in final[0]["rates"])]
        for pairs in (MEASURE, "seen pairs"):
            shares = [100 * share(run["rightly"][pairs]) for run in final]
            each = ", ".join(f"{value:.1f}" for value in shares)
            line.append(f"{fmean(shares):.1f} % ({each})")
        subjects = [share({"": run["rightly"][MEASURE]["subject"]}) for run in final]
        loss = fmean(run["losses"]["2"][-1] for run in final)
        results.append([*line, f"{100 * fmean(subjects):.1f} %", f"{loss:.3f}"])
        if name != "artgpt4" and "artgpt4" in names:
            pair = matrix(runs, "artgpt4", MEASURE), matrix(runs, name, MEASURE)
            difference, interval, _, counts = cells(paired_difference(*pair), 1, 100)
            _, wide, _, _ = cells(paired_difference(*pair, level=AT_ONCE, draws=40_000), 1, 100)
            differences.append([ARMS[name].label, difference, interval, wide, counts])
    swept = sorted({run["factor"] for run in runs if run["sweep"]})
    factors = [f"rates x {factor:.2g}" for factor in swept]
    heading = ["arm", "difference", "95 % interval", f"{100 * AT_ONCE:.1f} % interval",
               "wins, ties, losses"]
    tables = [
        ("Attributes named rightly, mean and each seed",
         ["trained", "parameters", "rates", MEASURE, "seen pairs", f"subject, {MEASURE}",
          "last loss"], results),
        (f"ArtGPT-4 minus the arm, {MEASURE}, percentage points", heading, differences),
        (f"Sweep: validation paintings of {MEASURE}, one seed", ["trained", *factors], sweep)]
    return [table for table in tables if table[-1]]           # those that have lines


def curves(runs):
    """The chart of the loss of stage 2 in training, an arm's mean over its seeds."""
    series = {}
    for name in ARMS:
        rows = [run["losses"]["2"] for run in runs if run["arm"] == name and not run["sweep"]]
        if rows:
            means = map(fmean, zip(*rows, strict=True))
            series[name] = [((i + 1) * EVERY, loss) for i, loss in enumerate(means)]
    return line_chart(series, "Stage 2", "step", "loss, nats per token", log_y=True)


def report(runs, file):
    """Print the tables, and write them with the curves to an HTML file."""
    body = [paragraph("Made by python -m gallery.ablation --table from the raw scores. The "
                      "intervals are of a bootstrap over paintings and training seeds; the wider "
                      "ones are for all comparisons at once (Bonferroni).")]
    if not all(run["sweep"] for run in runs):
        body.append(curves(runs))
    for caption, heading, lines in made_tables(runs):
        print(f"{caption}\n\n{markdown_table(heading, lines)}\n")
        body += [f"<h2>{caption}</h2>", html_table(heading, lines)]
    with written_beside(file) as path:
        path.write_text(page("ArtGPT-4 and controls of the same size", "\n".join(body)),
                        encoding="utf-8")


def main(args):
    if SWEEP_SEED in args.seeds:
        raise Misuse(f"--seeds: {SWEEP_SEED} is the seed of the sweep, which no result uses")
    if args.table:
        runs = read_json(args.scores)["runs"]
    else:
        runs = all_runs(args)
        with written_beside(args.scores) as path:
            raw = [{key: value for key, value in run.items() if key != "identity"} for run in runs]
            lines = ",\n".join(map(json.dumps, raw))
            same = json.dumps(identity(args))
            path.write_text(f'{{"identity": {same},\n"runs": [\n{lines}\n]}}\n', encoding="utf-8")
    report(runs, args.scores.with_suffix(".html"))


def command_line():
    parser = argparse.ArgumentParser(prog="python -m gallery.ablation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=HERE / "weights" / "tiny",
                        help="the weights folder whose frozen parts are used; default: "
                             "weights/tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"),
                        help="folder of the runs; default: %(default)s")
    parser.add_argument("--scores", type=Path, default=Path("docs/ablation.json"), metavar="FILE",
                        help="the raw scores of all runs; default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3, 4, 5],
                        help="none: the sweep alone; default: 1 to 5")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS),
                        help="default: all")
    parser.add_argument("--pictures", type=int, default=200, help="held-out, of each kind; "
                        "default: %(default)s")
    parser.add_argument("--paintings", type=int, default=3000, help="to train on; default: "
                        "%(default)s")
    parser.add_argument("--steps", type=int, help="of each stage, with batches of 2: a trial of "
                        "the command, whose scores mean nothing; needs another --out and --scores")
    parser.add_argument("--workers", type=int, default=1, help="processes that load texts, for "
                        "each run; default: %(default)s")
    parser.add_argument("--jobs", type=number(int, 1, 256), default=1, help="runs at the same "
                        "time; default: %(default)s")
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda, ...; default: "
                        "%(default)s")
    parser.add_argument("--table", action="store_true",
                        help="train nothing; make tables and curves from --scores")
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
