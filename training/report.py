"""What a person looks at during a run: samples.png and report.html."""
import contextlib
import json
import math

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


def draw_samples(model, pictures, stage, file, columns=4):
    """Write the pictures, each with what the model says of it, as one picture."""
    texts = on_rank_0(describe, model, pictures, stage)
    if RANK == 0:
        images = [Image.fromarray(picture) for picture in pictures]
        with written_beside(file) as path:
            contact_sheet(images, columns, captions=texts).save(path, format="PNG")


def curve(log, key):
    """[(step, value), ...] of a key of the log; with many steps, a point is the mean of several."""
    every = math.ceil(len(log) / POINTS)
    points = []
    for i in range(0, len(log), every):
        entries = [entry for entry in log[i:i + every] if entry[key] is not None]
        if entries:
            mean = sum(entry[key] for entry in entries) / len(entries)
            points.append((entries[-1]["step"], mean))
    return points


def run_totals(log, batch_size):
    """{name: text} of what a run has done so far."""
    seconds = sum(batch_size / entry["samples_per_s"] for entry in log)
    return {
        "steps": len(log),
        "pairs": batch_size * len(log),
        "hours": f"{seconds / 3600:.2f}",
        "peak memory": f"{log[-1]['memory'] / 1e9:.2f} GB",
        "bad samples": log[-1]["skipped"],
        "steps without a finite loss": log[-1]["skipped_steps"],
    }


def write_report(folder, identity):
    """Write RUN/report.html, one page without other files: curves, samples, totals, flags.

    identity: {flag: value} of the run, among them batch_size.
    """
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = {"training": curve(log, "loss")}
    validation = [(entry["step"], entry["val_loss"]) for entry in log if "val_loss" in entry]
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
