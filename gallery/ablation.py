"""ArtGPT-4's parts one by one: `python -m gallery.ablation`.

It trains every mode of MODES through both stages, with the same data and the same steps, once for
each seed. Then it prints how many attributes of held-out paintings each names rightly. The same
command continues an interrupted ablation.
"""
from common.start import start_command

if __name__ == "__main__":
    start_command()                                           # before the slow imports

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from common.command_line import run_command

MODES = {
    "minigpt4": "projection alone (MiniGPT-4)",
    "norms": "projection + norms",
    "adapters": "projection + adapters",
    "artgpt4": "projection + norms + adapters (ArtGPT-4)"}


def train_stage(stage, mode, seed, run, flags):
    """Run train.py for one stage, writing run/stage1 or run/stage2; it resumes what is there.

    Raises ValueError if train.py fails.
    """
    command = [sys.executable, "train.py", "--stage", stage, "--mode", mode, "--seed", seed,
               "--out", run / f"stage{stage}", "--resume"]
    if stage == 2:
        command += ["--init", run / "stage1/adapter.safetensors"]
    code = subprocess.run([str(word) for word in [*command, *flags]]).returncode
    if code:
        raise ValueError(f"train.py ended with code {code}; the same command continues from here")


def table(results, seeds):
    """A Markdown table of {(mode, seed): what score.json holds}: the mean and each seed's share."""
    lines = ["| trainable | seen pairs | unseen pairs |", "|---|---|---|"]
    for mode, name in MODES.items():
        cells = []
        for pairs in ("seen pairs", "unseen pairs"):
            shares = [100 * results[mode, seed][pairs]["all"] for seed in seeds]
            each = ", ".join(f"{share:.1f}" for share in shares)
            cells.append(f"{mean(shares):.1f} % ({each})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(args):
    results = {}
    for seed in args.seeds:
        for mode in MODES:
            flag_words = [flag.lstrip("-") for flag in args.flags]
            run = args.out / "-".join([mode, str(seed), *flag_words])
            score = run / "stage2/score.json"
            if not score.is_file():
                for stage in (1, 2):
                    train_stage(stage, mode, seed, run, args.flags)
            results[mode, seed] = json.loads(score.read_text())
    print(table(results, args.seeds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gallery.ablation", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"),
                        help="folder of all runs (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3],
                        help="one run of each mode for each (default: %(default)s)")
    parser.add_argument("flags", nargs="*", help="further flags for train.py, after --")
    run_command(main, parser)
