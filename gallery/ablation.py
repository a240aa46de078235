"""The paper's parts one by one: `python -m gallery.ablation` trains every mode of TRAINS through both stages and
prints how many attributes of held-out paintings each names rightly. Same data and steps for all; one run a seed."""
import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from common.command_line import run_command

MODES = {"minigpt4": "projection alone (MiniGPT-4)", "norms": "projection + norms",
         "adapters": "projection + adapters", "artgpt4": "projection + norms + adapters (ArtGPT-4)"}


def main(args):
    results = {}
    for seed in args.seeds:
        for mode in MODES:
            run = args.out / "-".join([mode, str(seed), *(flag.lstrip("-") for flag in args.flags)])
            if not (run / "stage2/score.json").is_file():     # so that an interrupted ablation goes on
                for stage in (1, 2):
                    init = ["--init", run / "stage1/adapter.safetensors"] * (stage == 2)
                    command = [sys.executable, "train.py", "--stage", stage, "--mode", mode, "--seed", seed,
                               "--out", run / f"stage{stage}", "--resume", *init, *args.flags]
                    if code := subprocess.run([str(word) for word in command]).returncode:
                        raise ValueError(f"train.py ended with code {code}; the same command goes on from here")
            results[mode, seed] = json.loads((run / "stage2/score.json").read_text())
    print("| what trains | seen pairs | unseen pairs |\n|---|---|---|")
    for mode, name in MODES.items():
        cells = []
        for pairs in ("seen pairs", "unseen pairs"):
            shares = [100 * results[mode, seed][pairs]["all"] for seed in args.seeds]
            cells.append(f"{mean(shares):.1f} % ({', '.join(f'{share:.1f}' for share in shares)})")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gallery.ablation", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("flags", nargs="*", help="further flags for train.py, after --")
    run_command(main, parser)
