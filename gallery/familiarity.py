"""Whether a picture is like those that a model was trained on.

The mean of a picture's query outputs lies near those of other pictures of the gallery. What is
measured is the sum of its squared deviations along the 32 directions in which those hardly differ,
each in units of the gallery's own: there a foreign picture stands out. 98 % of held-out paintings
stay below the threshold. A model that was trained on other pictures knows these instead: the
nearest one counts.
"""
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from artgpt4 import errors_naming
from gallery.album import painted
from gallery.scenes import random_scenes
from gallery.score import PAIRS, held_out, seen

FILE, DIRECTIONS = "familiarity.safetensors", 32


def placed(measure, queries):
    """Mean queries (N, width) by the measure's directions, (N, 32), on the CPU."""
    return queries.cpu() @ measure["directions"].float().T


def distance(measure, queries):
    """How far mean queries (N, width) are from what is known, (N,). measure: of `fitted`."""
    away = placed(measure, queries)[:, None] - measure["centres"]            # (N, C, 32)
    return away.square().sum(dim=-1).amin(dim=-1)


def read_measure(folder, adapter=None):
    """The measure of a weights folder, or of the run whose adapter file is given: {"directions":
    (32, width), "centres": (C, 32), "threshold": (1,)}. None where no such file is. Raises
    ValueError, naming the file, for a damaged one."""
    files = [Path(place) / FILE for place in (adapter and adapter.parent, folder) if place]
    file = next(filter(Path.exists, files), None)
    if file is None:
        return None
    with errors_naming(file):
        measure = load_file(file)
        finite = {name for name, tensor in measure.items() if tensor.isfinite().all()}
        if finite != {"directions", "centres", "threshold"} or measure["threshold"].numel() != 1:
            raise ValueError("expected directions, centres and a threshold")
    return measure


def unfamiliar(model, measure, image_vectors):
    """Whether a picture's vectors (Q, D), of encode_image, are unlike those of the pictures the
    model was trained on. measure: of read_measure; without one the answer is None."""
    if measure is None:
        return None
    undo = torch.linalg.pinv(model.proj.weight.float())       # the projection, undone
    query = (image_vectors.float().mean(dim=0) - model.proj.bias.float()) @ undo.T
    return bool(distance(measure, query[None]) > measure["threshold"])


def knowing(model, measure, pictures):
    """The measure that knows some pictures instead, uint8 (N, S, S, 3)."""
    return measure | {"centres": placed(measure, mean_queries(model, pictures))}


def mean_queries(model, pictures):
    """The mean query outputs of pictures, uint8 (N, S, S, 3): (N, width), on the CPU."""
    return seen(model, pictures)[0].float().mean(dim=1).cpu()


@torch.inference_mode()
def fitted(model, paintings=3000):
    """The measure of a model."""
    trained = mean_queries(model, painted(random_scenes(paintings, "training"))[::3])
    centre = trained.mean(dim=0)
    variances, axes = torch.linalg.eigh(torch.cov((trained - centre).T))
    # From the second on: LayerNorm leaves no variance at all along one direction.
    scaled = (axes / variances.clamp(min=1e-8).sqrt())[:, 1:DIRECTIONS + 1].T
    measure = {"directions": scaled.half()}
    measure["centres"] = placed(measure, centre[None])
    others = [painted(held_out(pairs, max(2, paintings // 15)))[::2] for pairs in PAIRS.values()]
    others = mean_queries(model, np.concatenate(others))
    threshold = distance(measure, others).quantile(0.98).item()
    return measure | {"threshold": torch.tensor([round(threshold, 1)])}
