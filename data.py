"""Image-text pairs for both stages of training: the gallery, and cc_sbu_align.

A source knows how many pairs it has and gives picture(i) and words(i, stage, rng, batch_rng) -> (prompt, text), where
batch_rng draws alike for all pairs of a batch. Which pair comes when, how it is cropped and which of its texts is taken
are a pure function of seed, step and pair, for any number of workers.
"""
import json
import math
import random
import re
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from artgpt4 import IMAGE_SLOT, INSTRUCTIONS, chat_prompt, instruction_prompt, preprocess
from command import Progress, open_image, written_beside
from gallery import painting, words
from gallery import scenes as scenes_module
from gallery.scenes import random_scenes

# ---- Texts and crops


def clean_caption(text, max_words=50):
    """The caption cleaner of stage 1: lower case, marks to spaces, runs of spaces to one, at most max_words words."""
    text = re.sub(r'[.!"()*#:;~]', " ", text.lower())
    return " ".join(re.sub(r"\s{2,}", " ", text).strip().split(" ")[:max_words])


def random_crop(image, rng, min_area):
    """Random resized crop, without the resizing: a share min_area to 1 of the area, aspect 3/4 to 4/3 (log-uniform)."""
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(min_area, 1)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            break
    else:                                                     # a very long picture: its middle
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h))


# ---- Sources


def painted(scenes, folder="runs/gallery", size=224):
    """Paintings of the scenes, uint8 (N, size, size, 3), mapped from a file in `folder`; painted when it is not there.

    A painting takes tens of milliseconds, more than a training step has for it: hence the file.
    """
    sources = Path(painting.__file__).read_bytes() + Path(scenes_module.__file__).read_bytes()
    key = zlib.crc32(sources + repr((scenes, size)).encode())
    file = Path(folder) / f"{len(scenes)}-{key:08x}.npy"
    if not file.is_file():
        progress = Progress("painting", len(scenes), "pictures")
        with written_beside(file) as path, ProcessPoolExecutor() as pool:
            array = np.lib.format.open_memmap(path, "w+", np.uint8, (len(scenes), size, size, 3))
            for i, image in enumerate(pool.map(painting.paint, scenes, [size] * len(scenes), chunksize=16)):
                array[i] = image
                progress.show(i + 1)
            array.flush()
    return np.load(file, mmap_mode="r")


class Gallery:
    """The embedded default: painted scenes, and what gallery/words.py says about each."""

    def __init__(self, pictures):
        self.scenes = random_scenes(pictures, "training")
        self.paintings = painted(self.scenes)

    def __len__(self):
        return len(self.scenes)

    def picture(self, i):
        return Image.fromarray(self.paintings[i])

    def words(self, i, stage, rng, batch_rng):
        scene = self.scenes[i]
        if stage == 1:
            return None, clean_caption(words.caption(scene, rng))
        description = words.description(scene, rng)
        if batch_rng.random() < 0.4:
            return instruction_prompt(batch_rng.choice(INSTRUCTIONS)), description
        asked = [*words.questions(scene, rng), (rng.choice(INSTRUCTIONS), description)]
        question, answer = asked.pop(batch_rng.randrange(len(asked)))       # alike, so texts of like length
        before = rng.choice(asked) if batch_rng.random() < 0.2 else ()      # a second question in a conversation
        first, *others = *before, question
        return chat_prompt([f"{IMAGE_SLOT} {first}", *others]), answer


class CCSBUAlign:
    """cc_sbu_align: filter_cap.json and image/ID.jpg. Raises ValueError if the folder is not laid out so."""

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            annotations = json.loads((self.folder / "filter_cap.json").read_text(encoding="utf-8"))["annotations"]
            self.pairs = [(str(pair["image_id"]), pair["caption"]) for pair in annotations]
        except FileNotFoundError:
            raise ValueError(f"{folder}: no filter_cap.json in it; --data takes the folder cc_sbu_align") from None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.folder / 'filter_cap.json'}: not a list of annotations ({error!r})") from None
        if not self.pairs:
            raise ValueError(f"{self.folder / 'filter_cap.json'}: no annotations in it")
        for i, (name, caption) in enumerate(self.pairs):
            if not isinstance(caption, str):
                raise ValueError(f"{self.folder / 'filter_cap.json'}: the caption of {name} is {caption!r}, not a text")
            if not self.file(i).is_file():
                raise ValueError(f"{self.file(i)}: no such file, but filter_cap.json has a caption for it")

    def __len__(self):
        return len(self.pairs)

    def file(self, i):
        return self.folder / "image" / f"{self.pairs[i][0]}.jpg"

    def picture(self, i):
        return open_image(self.file(i))

    def words(self, i, stage, rng, batch_rng):
        caption = self.pairs[i][1]
        if stage == 1:
            return None, clean_caption(caption)
        return instruction_prompt(batch_rng.choice(INSTRUCTIONS)), caption


# ---- Batches


class Pairs(Dataset):
    """(step, i) -> (pixels (3, S, S), prompt or None, text) of a source's pair i, as it is seen in that step."""

    def __init__(self, source, stage, image_size, min_crop_area, seed):
        self.source, self.stage, self.seed = source, stage, seed
        self.image_size, self.min_crop_area = image_size, min_crop_area

    def __getitem__(self, key):
        step, i = key
        rng, batch_rng = random.Random(f"{self.seed} {step} {i}"), random.Random(f"{self.seed} {step}")
        crop = random_crop(self.source.picture(i), rng, self.min_crop_area)
        return preprocess(crop, self.image_size), *self.source.words(i, self.stage, rng, batch_rng)


def order(count, batch_size, steps, seed):
    """Yield the keys (step, i) of each step's batch: every epoch a new shuffle of all `count` pairs, at least one."""
    pairs, epoch = [], 0
    for step in range(steps):
        while len(pairs) < batch_size:
            pairs += random.Random(f"{seed} epoch {epoch}").sample(range(count), count)
            epoch += 1
        yield [(step, i) for i in pairs[:batch_size]]
        pairs = pairs[batch_size:]


def collate(pairs):
    pixels, prompts, texts = zip(*pairs, strict=True)
    return torch.stack(pixels), list(prompts), list(texts)


def batches(source, stage, image_size, batch_size, steps, seed, min_crop_area=0.5, workers=1):
    """`steps` batches: pixels (B, 3, S, S), B prompts (None in stage 1), B texts."""
    return DataLoader(Pairs(source, stage, image_size, min_crop_area, seed), collate_fn=collate, num_workers=workers,
                      batch_sampler=list(order(len(source), batch_size, steps, seed)))
