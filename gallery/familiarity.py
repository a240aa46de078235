"""Whether a picture is like those that a model was trained on: `python -m gallery.familiarity`.

The mean of a picture's query outputs lies near those of other pictures of the gallery. What is
measured is the sum of its squared deviations along the 32 directions in which those hardly differ,
each in units of the gallery's own: there a foreign picture stands out. 98 % of held-out paintings
stay below the threshold; other held-out ones, noise and files that are given are measured too. A
model that was trained on other pictures knows these besides: the nearest centre counts.
"""
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from artgpt4 import errors_naming, preprocess
from common.command_line import command_parser, run_command
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
        if measure.keys() != {"directions", "centres", "threshold"}:
            raise ValueError("expected directions, centres and a threshold")
    return measure


def unfamiliar(model, measure, image_vectors):
    """Whether a picture's vectors (Q, D) are unlike those of the pictures the model was trained on.
    measure: of read_measure; without one the answer is None."""
    if measure is None:
        return None
    return bool(distance(measure, mean_query(model, image_vectors)[None]) > measure["threshold"])


def knowing(model, measure, images):
    """The measure that knows some PIL images besides."""
    more = placed(measure, mean_queries(model, images))
    return measure | {"centres": torch.cat((measure["centres"], more))}


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

    trained = seen(3, random_scenes(paintings, "training"))
    centre = trained.mean(dim=0)
    variances, axes = torch.linalg.eigh(torch.cov((trained - centre).T))
    # From the second on: LayerNorm leaves no variance at all along one direction.
    scaled = (axes / variances.clamp(min=1e-8).sqrt())[:, 1:DIRECTIONS + 1].T
    measure = {"directions": scaled.half()}
    measure["centres"] = placed(measure, centre[None])
    held_out = torch.cat([seen(1, random_scenes(max(2, paintings // 15), "held out", pairs))
                          for pairs in (SEEN_PAIRS, UNSEEN_PAIRS)])
    threshold = distance(measure, held_out[::2]).quantile(0.98).item()
    return measure | {"threshold": torch.tensor([round(threshold, 1)])}, held_out[1::2]


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
    parser = command_parser("python -m gallery.familiarity", __doc__)
    model_flags(parser)
    parser.add_argument("pictures", nargs="*", help="files of pictures that no gallery has")
    parser.add_argument("--save", action="store_true", help=f"write the measure, as {FILE}")
    run_command(main, parser)
