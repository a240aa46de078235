"""Kill a training run again and again, and see that it ends as one left alone: python tests/robustness/kill_and_resume.py KILLS

Every second kill comes at a random moment from the start of the command on, every other one when a checkpoint is half
written. A kill is SIGKILL: nothing is said to the process before.
"""
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent.parent


def small_data(folder, pairs=12):
    """A folder in the layout of cc_sbu_align, with small pictures of one colour."""
    (folder / "image").mkdir(parents=True)
    annotations = []
    for i in range(pairs):
        Image.new("RGB", (40, 40), (20 * i, 255 - 20 * i, 99)).save(folder / "image" / f"{i}.jpg")
        annotations.append({"image_id": str(i), "caption": f"A picture with {i} red houses and a lake."})
    (folder / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))
    return folder


def train_command(data, out, steps, *flags):
    """The command of a short run that saves at every step."""
    return [sys.executable, ROOT / "train.py", "--stage", "1", "--data", data, "--out", out, "--batch-size", "4",
            "--steps-per-epoch", str(steps), "--epochs", "1", "--warmup-steps", "2", "--save-every", "1",
            "--eval-every", str(max(2, steps // 3)), "--workers", "0", *flags]


def kill_and_resume(command, out, kills, seed=0, longest=4.0):
    """Run command --resume, killed `kills` times, to its end. Returns one line about each kill.

    longest: seconds from the start of the command to the latest of the random moments.
    """
    rng, told = random.Random(seed), []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    while len(told) < kills:
        while_saving = len(told) % 2 == 1
        running = subprocess.Popen([*command, "--resume"], env=environment, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        began, moment = time.monotonic(), rng.uniform(0, longest)
        wanted = rng.randrange(1, 6)                          # the how many-eth half-written checkpoint of this process
        seen = set()
        while running.poll() is None:
            if while_saving:
                seen.update(file.name for file in out.glob(f".checkpoint-*.{running.pid}.part"))
            if len(seen) >= wanted if while_saving else time.monotonic() - began > moment:
                break
            time.sleep(0 if while_saving else 0.001)
        time.sleep(rng.uniform(0, 0.002) if while_saving else 0)
        running.kill()
        running.wait()
        if running.returncode != -9:
            raise SystemExit(f"the run ended, with code {running.returncode}, before kill {len(told) + 1}")
        files, half = sorted(out.glob("checkpoint-*.pt")), list(out.glob(f".checkpoint-*.{running.pid}.part"))
        step = int(files[-1].stem.split("-")[1]) if files else 0
        told.append(f"{time.monotonic() - began:.2f} s after the start, last checkpoint {step}"
                    + (f", half written {half[0].stat().st_size} bytes" if half else ""))
    subprocess.run([*command, "--resume"], env=environment, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return told


def losses(out):
    """(step, loss) of a run's log."""
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, open(out / "log.jsonl"))]


def main(kills):
    with tempfile.TemporaryDirectory() as folder:
        folder, steps = Path(folder), 20 * kills
        data = small_data(folder / "data")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(train_command(data, folder / "undisturbed", steps), env=environment, check=True)
        command = train_command(data, folder / "killed", steps)
        for number, line in enumerate(kill_and_resume(command, folder / "killed", kills), 1):
            print(f"kill {number}: {line}")
        for name in ("adapter.safetensors", "samples.png"):
            same = (folder / "undisturbed" / name).read_bytes() == (folder / "killed" / name).read_bytes()
            print(f"{name}: {'the same to the bit' if same else 'DIFFERS'}")
        same = losses(folder / "undisturbed") == losses(folder / "killed")
        print(f"log.jsonl, {steps} steps and losses: {'the same' if same else 'DIFFERS'}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
