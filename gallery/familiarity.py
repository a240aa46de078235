"""Whether a picture is like those that a model was trained on: `python -m gallery.familiarity`.

The mean of a picture's query outputs lies near those of other pictures of the gallery. What is
measured is the sum of its squared deviations along the 32 directions in which those hardly differ,
each in units of the gallery's own: there a foreign picture stands out. 98 % of held-out paintings
stay below the threshold; other held-out ones, noise and files that are given are measured too.
"""
import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from artgpt4 import preprocess
from common.command_line import run_command
from common.files import open_image, save_tensors
from common.models import load, model_flags
from common.page import markdown_table
from gallery.album import painted
from gallery.scenes import SEEN_PAIRS, UNSEEN_PAIRS, random_scenes

FILE, DIRECTIONS = "familiarity.safetensors", 32


def mean_query(model, image_vectors):
    """Image vectors (..., Q, D) as encode_image gives them -> the mean query output before the
    projection, which is undone: (..., width of the Q-Former)."""
    undo = torch.linalg.pinv(model.proj.weight.float())
    return (image_vectors.float().mean(dim=-2) - model.proj.bias.float()) @ undo.T


def distance(measure, query):
    """How far mean queries (..., width) are from the gallery's. measure: of `fit`."""
    directions = measure["directions"].float()                # scaled, and each one's offset
    return (query.cpu() @ directions[:, :-1].T - directions[:, -1]).square().sum(dim=-1)


def read_measure(folder):
    """The measure of a weights folder: {"directions": (32, width + 1), "threshold": (1,)}, or None
    where it has no such file. Raises ValueError, naming the file, for a damaged one."""
    file = Path(folder) / FILE
    if not file.exists():
        return None
    try:
        measure = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: {error}") from None
    if measure.keys() != {"directions", "threshold"}:
        raise ValueError(f"{file}: expected directions and a threshold")
    return measure


def unfamiliar(model, measure, image_vectors):
    """Whether a picture's vectors (Q, D) are unlike those of the pictures the model was trained on.
    measure: of read_measure; without one the answer is None."""
    if measure is None:
        return None
    return bool(distance(measure, mean_query(model, image_vectors)) > measure["threshold"])


def fit(trained, held_out):
    """The measure, from mean queries (N, width) of training pictures and of others."""
    centre = trained.mean(dim=0)
    variances, axes = torch.linalg.eigh(torch.cov((trained - centre).T))
    # From the second on: LayerNorm leaves no variance at all along one direction.
    scaled = (axes / variances.clamp(min=1e-8).sqrt())[:, 1:DIRECTIONS + 1].T
    measure = {"directions": torch.cat((scaled, (scaled @ centre)[:, None]), dim=1).half()}
    threshold = distance(measure, held_out).quantile(0.98).item()
    return measure | {"threshold": torch.tensor([round(threshold, 1)])}


@torch.inference_mode()
def mean_queries(model, images):
    """mean_query of PIL images, (N, width), on the CPU."""
    pixels = torch.stack([preprocess(image, model.config.image_size) for image in images])
    means = [mean_query(model, model.encode_image(part)) for part in pixels.split(50)]
    return torch.cat(means).cpu()


def fitted(model, paintings=3000):
    """(the measure of a model, mean queries of held-out paintings to which it was not fitted)."""
    def seen(every, scenes):
        return mean_queries(model, map(Image.fromarray, painted(scenes)[::every]))
    held_out = torch.cat([seen(1, random_scenes(max(2, paintings // 15), "held out", pairs))
                          for pairs in (SEEN_PAIRS, UNSEEN_PAIRS)])
    return fit(seen(3, random_scenes(paintings, "training")), held_out[::2]), held_out[1::2]


def main(args):
    model = load(args)
    measure, held_out = fitted(model)
    noise = np.random.default_rng(0).integers(0, 256, (40, 224, 224, 3), dtype=np.uint8)
    kinds = {"held-out paintings, wrongly": held_out,
             "noise": mean_queries(model, map(Image.fromarray, noise))}
    if args.pictures:
        kinds["the given pictures"] = mean_queries(model, map(open_image, args.pictures))
    far = {kind: distance(measure, rows) > measure["threshold"] for kind, rows in kinds.items()}
    print(markdown_table(("said to be unfamiliar", "of", "share"), (
        (kind, len(row), f"{row.float().mean():.1%}") for kind, row in far.items())))
    if args.save:
        save_tensors(measure, args.weights / FILE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gallery.familiarity",
                                     description=__doc__.partition("\n")[0])
    model_flags(parser)
    parser.add_argument("pictures", nargs="*", help="files of pictures that no gallery has")
    parser.add_argument("--save", action="store_true", help=f"write the measure, as {FILE}")
    run_command(main, parser)
