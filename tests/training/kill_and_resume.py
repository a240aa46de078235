"""Kill a training run again and again, and compare its end with that of an undisturbed run.

    python tests/training/kill_and_resume.py KILLS

A kill is SIGKILL, of which the process hears nothing before. The first kill and every second one
after it come while a checkpoint is half-written, the others at a random moment.
"""
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
# train.py, but with a checkpoint after every step
SAVING = "import train; train.SAVE_EVERY = 1; train.run_command(train.main, train.command_line())"
PART = ".checkpoint-*.part"


def small_data(folder, pairs=12):
    """A folder of small pictures of one colour, with a caption each."""
    folder.mkdir(parents=True)
    for i in range(pairs):
        Image.new("RGB", (40, 40), (20 * i, 255 - 20 * i, 99)).save(folder / f"{i}.jpg")
        (folder / f"{i}.txt").write_text(f"A picture with {i} red houses and a lake.")
    return folder


def flags_of(data, out, steps):
    """The flags of a short run."""
    return ["--stage", "1", "--data", data, "--out", out, "--batch-size", "4",
            "--steps", str(steps), "--workers", "0"]


def run_and_kill(flags, out, kills):
    """Start train.py with flags and --resume `kills` times, and kill it each time."""
    rng = random.Random(0)
    for number in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVING, *flags, "--resume"], env=ENVIRONMENT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(number % 2 * rng.uniform(0, 4))
        old, seen, wanted = set(out.glob(PART)), set(), rng.randrange(1, 6)
        while number % 2 == 0 and process.poll() is None and not seen & set(out.glob(PART)):
            process.send_signal(signal.SIGCONT)
            while process.poll() is None and len(seen) < wanted:
                seen.update(set(out.glob(PART)) - old)
            process.send_signal(signal.SIGSTOP)               # is it whole by now? then the next
            time.sleep(0.01)
            wanted += 1
        process.kill()
        if process.wait() != -9:
            raise SystemExit(f"the run ended with {process.returncode}, before kill {number + 1}")
        saved = [file.name for file in sorted(out.glob("checkpoint-*.pt"))]
        half = [f"half-written {file.stat().st_size} bytes" for file in out.glob(PART)]
        print(f"kill {number + 1}:", *saved[-1:], *half)


def losses(out):
    """(step, loss) of every line of a run's log."""
    entries = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [(entry["step"], entry["loss"]) for entry in entries]


def same_files(one, other):
    """Whether the results of two runs are the same to the bit."""
    names = ("adapter.safetensors", "best.safetensors", "samples.png")
    return [(one / name).read_bytes() for name in names if (one / name).exists()] == [
        (other / name).read_bytes() for name in names if (other / name).exists()]


def main(run, kills):
    """Whether a run that is killed and resumed ends as an undisturbed one. run(flags): train.py."""
    with tempfile.TemporaryDirectory() as folder:
        data, steps = small_data(Path(folder) / "data"), 20 * kills
        undisturbed, killed = Path(folder) / "undisturbed", Path(folder) / "killed"
        run(flags_of(data, undisturbed, steps))
        run_and_kill(flags_of(data, killed, steps), killed, kills)
        run([*flags_of(data, killed, steps), "--resume"])
        return (same_files(undisturbed, killed) and losses(undisturbed) == losses(killed)
                and len(losses(killed)) == steps and not list(killed.glob(".*")))


if __name__ == "__main__":
    def in_a_process(flags):
        subprocess.run([sys.executable, "-c", SAVING, *flags], env=ENVIRONMENT, check=True)

    same = main(in_a_process, int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    print("all losses and files:", "the same to the bit" if same else "DIFFERENT")
    sys.exit(0 if same else 1)
