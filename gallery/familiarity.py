"""Whether a picture is like those that a model was trained on: `python -m gallery.familiarity`.

The mean of a picture's query outputs lies near those of other pictures of the gallery. Along the
directions in which those hardly differ, a foreign picture stands out: what is measured is the sum
of squared deviations along 32 of these, each in units of the gallery's own. The threshold is what
98 % of held-out paintings stay below; other held-out paintings show how often it errs. Foreign
pictures are made here, and files that are given are measured too. With --save the numbers go into
the folder's config.json, as "familiar".
"""
from common.start import start_command

if __name__ == "__main__":
    start_command()                                           # before the slow imports

import argparse
import base64
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from artgpt4 import preprocess
from common.command_line import run_command
from common.files import open_image, written_beside
from common.loading import load_folder
from gallery.album import painted
from gallery.scenes import SEEN_PAIRS, UNSEEN_PAIRS, random_scenes

DIRECTIONS = 32


def mean_query(model, image_vectors):
    """Image vectors (..., Q, D) as encode_image gives them -> the mean query output before the
    projection, which is undone: (..., width of the Q-Former)."""
    undo = torch.linalg.pinv(model.proj.weight.float())
    return (image_vectors.float().mean(dim=-2) - model.proj.bias.float()) @ undo.T


def distance(about, query):
    """How far mean queries (..., width) are from the gallery's, given what `fit` returns."""
    table = np.frombuffer(base64.b64decode(about["directions"]), dtype=np.float16)
    table = torch.from_numpy(table.astype(np.float32)).view(DIRECTIONS, -1)
    deviations = query.cpu() @ table[:, :-1].T - table[:, -1]
    return deviations.square().sum(dim=-1)


def unfamiliar(model, image_vectors):
    """Whether a picture's vectors (Q, D) are unlike those of the pictures the model was trained on.

    None if the weights folder has no measure.
    """
    about = model.config.about.get("familiar")
    if about is None:
        return None
    return distance(about, mean_query(model, image_vectors)).item() > about["threshold"]


def fit(trained, held_out):
    """The measure for config.json, from mean queries (N, width) of training pictures, of others."""
    centre = trained.mean(dim=0)
    variances, axes = torch.linalg.eigh(torch.cov((trained - centre).T))
    # From the second on: LayerNorm leaves no variance at all along one direction.
    scaled = (axes / variances.clamp(min=1e-8).sqrt())[:, 1:DIRECTIONS + 1].T
    table = torch.cat((scaled, (scaled @ centre)[:, None]), dim=1)
    coded = base64.b64encode(table.numpy().astype(np.float16).tobytes()).decode()
    about = {"directions": coded}
    return about | {"threshold": round(distance(about, held_out).quantile(0.98).item(), 1)}


def foreign_pictures(count=20, seed=0):
    """{kind: PIL images} that no gallery has."""
    rng = np.random.default_rng(seed)
    kinds = {kind: [] for kind in ("noise", "soft noise", "gradients", "screens", "line drawings")}
    for _ in range(count):
        noise = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
        kinds["noise"].append(Image.fromarray(noise))
        side = int(rng.integers(4, 17))
        soft = Image.fromarray(noise[:side, :side])
        kinds["soft noise"].append(soft.resize((224, 224), Image.Resampling.BICUBIC))
        top, bottom = rng.integers(0, 256, (2, 3))
        down = np.linspace(0, 1, 224)[:, None, None]
        gradient = (top * (1 - down) + bottom * down).repeat(224, axis=1)
        kinds["gradients"].append(Image.fromarray(gradient.astype(np.uint8)))

        screen = Image.new("RGB", (640, 480), tuple(rng.integers(200, 256, 3).tolist()))
        draw = ImageDraw.Draw(screen)
        draw.rectangle((0, 0, 640, 30), fill=tuple(rng.integers(0, 200, 3).tolist()))
        for y in range(50, 470, 14):
            letters = rng.choice(list("abcdefgh ijklmno pqrst"), int(rng.integers(10, 75)))
            draw.text((130, y), "".join(letters), fill="black")
        kinds["screens"].append(screen)

        drawing = Image.new("RGB", (224, 224), "white")
        draw = ImageDraw.Draw(drawing)
        for _ in range(int(rng.integers(4, 14))):
            draw.line(rng.integers(0, 224, 6).tolist(), fill="black", width=2)
        kinds["line drawings"].append(drawing)
    return kinds


@torch.inference_mode()
def mean_queries(model, images):
    pixels = torch.stack([preprocess(image, model.config.image_size) for image in images])
    return torch.cat([mean_query(model, model.encode_image(part)) for part in pixels.split(50)])


def main(args):
    model = load_folder(args.weights, dtype=torch.float32)
    scenes = {"training": random_scenes(3000, "training"),
              "seen": random_scenes(200, "held out", SEEN_PAIRS),
              "unseen": random_scenes(200, "held out", UNSEEN_PAIRS)}
    queries = {}
    for name, row in scenes.items():
        paintings = painted(row)[::3 if name == "training" else 1]
        queries[name] = mean_queries(model, [Image.fromarray(painting) for painting in paintings])
    held_out = torch.cat((queries["seen"], queries["unseen"]))
    about = fit(queries["training"], held_out[::2])
    kinds = {"held-out paintings, wrongly": held_out[1::2]}
    kinds |= {kind: mean_queries(model, images) for kind, images in foreign_pictures().items()}
    crops = [image.convert("RGB").crop((x, y, x + 200, y + 200))
             for image in map(Image.open, sorted(Path("docs").glob("*.png")))
             for x in range(0, image.width - 199, 200) for y in range(0, image.height - 199, 200)]
    if crops:
        kinds["crops of docs/*.png"] = mean_queries(model, crops)
    if args.pictures:
        kinds["the given pictures"] = mean_queries(model, map(open_image, args.pictures))
    print("| said to be unfamiliar | share |\n|---|---|")
    for kind, rows in kinds.items():
        far = (distance(about, rows) > about["threshold"]).float().mean().item()
        print(f"| {kind} ({len(rows)}) | {far:.1%} |")
    if args.save:
        file = Path(args.weights) / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config["about"] = config.get("about", {}) | {"familiar": about}
        with written_beside(file) as path:
            path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gallery.familiarity",
                                     description=__doc__.partition("\n")[0])
    folder = Path(__file__).parent.parent / "weights" / "tiny"
    parser.add_argument("--weights", default=folder, help="weights folder (default: weights/tiny)")
    parser.add_argument("pictures", nargs="*", help="files of pictures that no gallery has")
    parser.add_argument("--save", action="store_true", help="write the measure to its config.json")
    run_command(main, parser)
