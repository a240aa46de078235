"""Image-text pairs for both stages of training: the gallery, tar files, cc_sbu_align, a folder of one's own pictures.

A source gives picture(i) and words(i, stage, rng, batch_rng) -> (prompt, text), where batch_rng draws alike for all
pairs of a batch. Which pair comes when, how it is cropped and which of its texts is taken are a pure function of seed,
epoch, step and pair, for any number of workers and processes.
"""
import contextlib
import json
import math
import os
import random
import sys
from collections import deque
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from artgpt4 import IMAGE_SLOT, INSTRUCTIONS, PIXEL_MEAN, PIXEL_STD, chat_prompt, instruction_prompt
from common.files import written_beside
from gallery import words
from gallery.album import painted
from gallery.scenes import random_scenes
from training.sources import SampleError, Shards, Source, cc_sbu_align, clean_caption, expand, own_pictures

MAX_BAD, RECENT = 50, 1000      # so many bad samples of so many in a row: 5 %
TRIES = 20                      # to read a sample or one in its place: where 5 % are bad, so many in a row never are


# ---- Sources


class Gallery(Source):
    """The embedded default: painted scenes, and what gallery/words.py says about each."""

    def __init__(self, pictures):
        self.scenes = random_scenes(pictures, "training")
        self.paintings = painted(self.scenes)

    def __len__(self):
        return len(self.scenes)

    def name(self, i):
        return f"painting {i}"

    def picture(self, i, size=0):
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


def open_source(spec=None, index_folder="runs/index", pictures=3000):
    """The training data that --data names; so many pictures of the gallery if it names none.

    spec: tar files by name or pattern ('laion/{00000..00301}.tar', 'laion/*.tar') or a folder of them, whose indices
    are kept in index_folder; the folder cc_sbu_align; or one of pictures with captions. Raises ValueError otherwise.
    """
    if spec is None:
        return Gallery(pictures)
    paths = expand(str(spec))
    tars = [tar for path in paths for tar in (sorted(path.glob("*.tar")) if path.is_dir() else [path])]
    if tars and all(tar.suffix == ".tar" for tar in tars):
        return Shards(tars, index_folder)
    if len(paths) == 1 and paths[0].is_dir():
        return (cc_sbu_align if (paths[0] / "filter_cap.json").is_file() else own_pictures)(paths[0])
    other = next((tar for tar in tars if tar.suffix != ".tar"), spec)
    raise ValueError(f"{other}: not a tar file; --data takes img2dataset's tar files, a folder of them or of pictures "
                     "with captions, or cc_sbu_align")


# ---- Batches


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


class Batch(NamedTuple):
    pixels: torch.Tensor    # (B, 3, S, S), normalised
    prompts: list           # B, None in stage 1
    texts: list             # B
    skipped: list           # {"step" (from 1), "sample", "reason"} of each bad sample that another one stands for


class Pairs(Dataset):
    """(step, epoch, i) -> (pixels uint8 (S, S, 3), prompt or None, text, skipped) of a source's pair i, or if it is bad
    of another one, the same in every run. Raises ValueError if TRIES in a row are bad."""

    def __init__(self, source, stage, image_size, min_crop_area, seed):
        self.source, self.stage, self.seed = source, stage, seed
        self.image_size, self.min_crop_area = image_size, min_crop_area

    def __getitem__(self, key):
        step, epoch, i = key
        others, skipped = random.Random(f"{self.seed} {epoch} instead of {i}"), []
        for _ in range(TRIES):
            rng, batch_rng = random.Random(f"{self.seed} {epoch} {i}"), random.Random(f"{self.seed} {step}")
            try:
                prompt, text = self.source.words(i, self.stage, rng, batch_rng)
                crop = random_crop(self.source.picture(i, self.image_size), rng, self.min_crop_area)
                pixels = crop.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
                return torch.from_numpy(np.array(pixels)), prompt, text, skipped
            except SampleError as error:
                skipped.append({"step": step + 1, "sample": self.source.name(i), "reason": str(error)})
                i = others.randrange(len(self.source))
        raise ValueError(f"nothing usable in the training data: {TRIES} samples in a row are bad, the last of them "
                         f"{skipped[-1]['sample']}: {skipped[-1]['reason']}")


def collate(pairs):
    pixels, prompts, texts, skipped = zip(*pairs, strict=True)
    return Batch(torch.stack(pixels), list(prompts), list(texts), sum(skipped, []))


def normalised(pixels):
    """Pixels uint8 (B, S, S, 3) as artgpt4.preprocess gives them, float32 (B, 3, S, S)."""
    pixels = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return pixels.sub_(torch.tensor(PIXEL_MEAN)[:, None, None]).div_(torch.tensor(PIXEL_STD)[:, None, None])


def global_batches(source, batch_size, steps, seed, first_step=0, window=0):
    """Yield the keys (step, epoch, i) of the batch of each step from first_step on; every epoch has its own order.

    With a window, the pairs of so many batches are sorted by the length of their texts and cut into batches anew, which
    come in random order: a batch has texts of like length, so little of it is padding.
    """
    @lru_cache(2)
    def order(epoch):
        return source.order(seed, epoch)
    span = max(window, 1)
    for first in range(first_step // span * span, steps, span):
        places = (divmod(at, len(source)) for at in range(first * batch_size, (first + span) * batch_size))
        pairs = [(epoch, int(order(epoch)[at])) for epoch, at in places]
        if window > 1:
            pairs.sort(key=lambda pair: source.text_length(pair[1]))
        which = random.Random(f"{seed} window {first}").sample(range(span), span)
        for step in range(max(first, first_step), min(first + span, steps)):
            at = which[step - first] * batch_size
            yield [(step, *pair) for pair in pairs[at:at + batch_size]]


def quiet_worker(_):
    """Ctrl-C is for the main process, which ends its workers itself: they get a process group of their own. What they
    raise is raised there as well, so they print nothing, not even when it is killed while they hand a batch over."""
    os.setpgid(0, 0)
    sys.excepthook = lambda *_: None


def batches(source, stage, image_size, batch_size, steps, seed, min_crop_area=0.5, workers=1, first_step=0, rank=0,
            world=1, accumulate=1, window=0):
    """For each step from first_step on, the `accumulate` batches of process `rank` of `world`, which together hold
    batch_size pairs in all processes. Raises ValueError if that does not divide, or nothing usable is found."""
    size, rest = divmod(batch_size, world * accumulate)
    if rest or not size:
        raise ValueError(f"a batch of {batch_size} cannot be shared by {world} processes x {accumulate} parts each")
    keys = (batch[part * size:(part + 1) * size]
            for batch in global_batches(source, batch_size, steps, seed, first_step, window)
            for part in range(rank, world * accumulate, world))
    loader = DataLoader(Pairs(source, stage, image_size, min_crop_area, seed), batch_sampler=keys, collate_fn=collate,
                        num_workers=workers, worker_init_fn=quiet_worker, generator=torch.Generator(),
                        multiprocessing_context="fork" if workers and os.name == "posix" else None)

    def micro_batches():
        try:
            for batch in loader:                              # as bytes: a quarter of what the floats are
                yield batch._replace(pixels=normalised(batch.pixels))
        except ValueError as error:                           # a worker's brings its traceback
            raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from None
    return zip(*[micro_batches()] * accumulate, strict=True)


class Skipped:
    """Counts the samples that were skipped, and names them in `file`, a line of JSON each.

    state: that of a checkpoint to go on from. One process of all calls cut(steps done) before the first step.
    """

    def __init__(self, file, state=None):
        self.file, self.count, self.recent = Path(file), 0, deque(maxlen=RECENT)
        if state:
            self.count = state["count"]
            self.recent.extend(state["recent"])

    @property
    def state(self):
        return {"count": self.count, "recent": list(self.recent)}

    def cut(self, step):
        """Keep what the file says of the first `step` steps: the others will come again."""
        kept = []
        for line in self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []:
            with contextlib.suppress(ValueError):             # half a line, where a run was killed
                kept += [line + "\n"] * (json.loads(line)["step"] <= step)
        with written_beside(self.file) as path:
            path.write_text("".join(kept), encoding="utf-8")

    def add(self, batches):
        """How many were skipped for the batches of one step. Raises ValueError if more than MAX_BAD of RECENT samples
        in a row were bad."""
        skipped = [entry for batch in batches for entry in batch.skipped]
        self.count += len(skipped)
        self.recent.extend([1] * len(skipped) + [0] * sum(len(batch.texts) for batch in batches))
        if skipped:
            with open(self.file, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(entry) + "\n" for entry in skipped))
        if sum(self.recent) > MAX_BAD:
            raise ValueError(f"{self.file}: {sum(self.recent)} of the last {len(self.recent)} samples were bad, more "
                             f"than {MAX_BAD} of {RECENT}; mend the training data or leave them out")
        return len(skipped)
