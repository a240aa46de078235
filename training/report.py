"""What a person looks at during a run: samples.png and report.html."""
import contextlib
import json
import math
import statistics

import numpy as np
from PIL import Image

from common.files import written_beside
from common.page import html_table, line_chart, page, paragraph, picture_tag
from gallery.painting import contact_sheet
from gallery.score import describe
from training.processes import RANK, on_rank_0

POINTS = 500            # of a curve, at most
CHARTS = (              # key of log.jsonl, title, unit
    ("lr", "Learning rate", "of the step"),
    ("samples_per_s", "Speed", "pairs per second"),
    ("grad_norm", "Gradient", "norm before clipping"),
)


def sample_pictures(source, count=8):
    """The first pictures of a source that can be read, a list of uint8 (224, 224, 3)."""
    pictures = []
    for i in range(min(len(source), 1000)):
        with contextlib.suppress(ValueError):
            pictures.append(np.asarray(source.picture(i, 224).resize((224, 224))))
        if len(pictures) == count:
            break
    return pictures


def draw_samples(model, pictures, stage, file, features=None, columns=4):
    """Write the pictures, each with what the model says of it, as one picture. features: as for
    gallery.score.describe."""
    texts = on_rank_0(describe, model, pictures, stage, None, features)
    if RANK == 0:
        images = [Image.fromarray(picture) for picture in pictures]
        with written_beside(file) as path:
            contact_sheet(images, columns, captions=texts).save(path, format="PNG")


def curve(log, key):
    """[(step, value), ...] of a key of the log; with many steps, a point is the mean of several."""
    every = max(1, math.ceil(len(log) / POINTS))
    points = []
    for i in range(0, len(log), every):
        entries = [entry for entry in log[i:i + every] if entry.get(key) is not None]
        if entries:
            mean = sum(entry[key] for entry in entries) / len(entries)
            points.append((entries[-1]["step"], mean))
    return points


def read_log(folder):
    """The entries of a run's log.jsonl, one for each step, in order; damaged lines are left out."""
    file, entries = folder / "log.jsonl", {}
    lines = file.read_bytes().splitlines() if file.is_file() else []
    for line in lines:
        with contextlib.suppress(ValueError, LookupError, TypeError):         # half a line
            entry = json.loads(line)
            entries[int(entry["step"])] = entry
    return [entries[step] for step in sorted(entries)]


def run_totals(log, batch_size):
    """{name: text} of what a run has done so far."""
    last, steps = log[-1], log[-1]["step"]
    seconds = sum(batch_size / entry["samples_per_s"] for entry in log)
    totals = {
        "steps": steps,
        "epochs: how often each pair was seen": f"{last['epoch']:.2f}",
        "pairs": f"{batch_size * steps:,}",
        "tokens, with prompts and image vectors": f"{last['tokens']:,}",
        "steps whose gradient was clipped": f"{last['clipped'] / steps:.0%}",
        "texts cut at --max-text-tokens": last["texts_cut"],
        "hours": f"{seconds / 3600:.2f}",
        "peak memory": f"{last['memory'] / 1e9:.2f} GB",
        "bad samples": last["skipped"],
        "steps without a finite loss": last["skipped_steps"],
    }
    for key, name in (("share_of_machine", "of the machine's matrix product, the last 100 steps"),
                      ("waiting_for_data", "of a step spent waiting for data, the last 100 steps")):
        shares = [entry[key] for entry in log[-100:] if key in entry]
        if shares:
            totals[name] = f"{statistics.median(shares):.1%}"
    return totals


def write_report(folder, identity):
    """Write RUN/report.html, one page without other files: curves, samples, totals, flags.

    identity: {flag: value} of the run, among them batch_size.
    """
    log = read_log(folder)
    losses = {"training": curve(log, "loss")}
    validation = curve([entry for entry in log if "val_loss" in entry], "val_loss")
    if validation:
        losses["validation"] = validation
    parts = [
        paragraph(f"Step {log[-1]['step']}. This page is written at every checkpoint and reloads "
                  "itself every minute."),
        '<meta http-equiv="refresh" content="60">',
        line_chart(losses, "Loss", "step", "nats per token"),
    ]
    for key, title, unit in CHARTS:
        parts.append(line_chart({unit: curve(log, key)}, title, "step", log_y=key == "grad_norm"))
    if (folder / "samples.png").is_file():
        picture = Image.open(folder / "samples.png")
        parts += ["<h2>What the model says</h2>", picture_tag(picture, 1000, "samples.png")]
    totals = run_totals(log, identity["batch_size"])
    parts += ["<h2>The run</h2>", html_table(("so far", ""), totals.items()),
              html_table(("flag", ""), identity.items())]
    with written_beside(folder / "report.html") as path:
        path.write_text(page(f"Training {folder}", "\n".join(parts)), encoding="utf-8")
