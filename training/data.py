"""Image-text pairs for both stages of training: which sources there are, and batches of them.

A source gives picture(i) and words(i, stage, rng, batch_rng) -> (prompt, text), where batch_rng
draws alike for all pairs of a batch. Which pair comes when, how it is cropped and which of its
texts is taken are a pure function of seed, epoch, step and pair, for any number of workers and
processes.
"""
import math
import os
import random
import signal
import sys
import threading
import zlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from artgpt4 import IMAGE_MARK, INSTRUCTIONS, PIXEL_MEAN, PIXEL_STD, instruction_prompt
from gallery import words
from gallery.album import album_file, painted
from gallery.conversations import about_one, about_two, prompt_and_answer, some_topics
from gallery.scenes import random_scenes
from training.lock import release_locks
from training.shards import Shards
from training.sources import (
    Part, SampleError, Source, cc_sbu_align, clean_caption, expand, own_pictures,
)

TRIES = 20              # bad samples in a row that make the data unusable


# ---- Sources


class Gallery(Source):
    """The default: painted scenes, and what gallery/words.py says about each."""

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
        kind = batch_rng.random()
        if kind < 0.25:
            description = words.description(scene, rng)
            return instruction_prompt(batch_rng.choice(INSTRUCTIONS)), description
        # All pairs of a batch ask the same kind of question, so their texts have like lengths.
        [topic] = some_topics(1, batch_rng)
        if kind < 0.42:
            other = self.scenes[self.other(i)]
            last = batch_rng.choice(("both", "which", "which", "one", "description", topic))
            return prompt_and_answer(about_two(other, scene, rng, last), rng)
        if kind < 0.67:
            topic = batch_rng.choice(("presence", "kind"))
        return prompt_and_answer(about_one(scene, rng, topic, most=2), rng)

    def other(self, i):
        """The pair whose picture is shown first in a conversation about two."""
        return (7 * i + 1) % len(self)

    def shown(self, i, prompt):
        is_about_two = prompt is not None and prompt.count(IMAGE_MARK) == 2
        return [self.other(i), i] if is_about_two else [i]

    def fingerprint(self):
        return zlib.crc32(album_file(self.scenes).name.encode())


def open_source(spec=None, index_folder="runs/index", pictures=3000):
    """The training data that --data names, or without it the gallery, of `pictures` paintings.

    spec: tar files by name or pattern ('laion/{00000..00301}.tar', 'laion/*.tar') or a folder of
    them, whose indices are kept in index_folder; the folder cc_sbu_align; or a folder of pictures
    with captions. Raises ValueError for anything else.
    """
    if spec is None:
        return Gallery(pictures)
    paths, files = expand(str(spec)), []
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(file for file in path.glob("*.tar") if file.is_file())
            if len(paths) > 1 and not found:
                raise ValueError(f"{path}: a folder without tar files; --data {spec} names it")
        files += found
    if files and all(file.suffix == ".tar" for file in files):
        return Shards(files, index_folder)
    if len(paths) == 1 and paths[0].is_dir():                 # a folder x.tar too
        is_cc_sbu_align = (paths[0] / "filter_cap.json").is_file()
        return cc_sbu_align(paths[0]) if is_cc_sbu_align else own_pictures(paths[0])
    other = next((file for file in files if file.suffix != ".tar"), spec)
    raise ValueError(
        f"{other}: not a tar file; --data takes img2dataset's tar files, a folder of them or of "
        "pictures with captions, or cc_sbu_align")


def split(source, held_out, seed=42, processes=1):
    """(training source, validation source): `held_out` pairs, drawn at random, are for validation.

    Without held_out pairs the second is None. Raises ValueError for more pairs than there are, or
    for fewer than processes.
    """
    if held_out == 0:
        return source, None
    if not processes <= held_out < len(source):
        raise ValueError(f"--val is {held_out}; it must be at least {processes} and less than the "
                         f"{len(source)} pairs of the data")
    drawn = random.Random(f"{seed} validation").sample(range(len(source)), held_out)
    is_held_out = np.zeros(len(source), dtype=bool)
    is_held_out[drawn] = True
    return Part(source, (~is_held_out).nonzero()[0]), Part(source, is_held_out.nonzero()[0])


# ---- One pair


def random_crop(image, rng, min_area):
    """A random crop: a share min_area to 1 of the area, aspect ratio 3/4 to 4/3 (log-uniform).

    This is torchvision's RandomResizedCrop, without the resizing. With min_area 1 nothing is
    random: the whole picture, or the middle of a very long one.
    """
    width, height = image.size
    for _ in range(10 if min_area < 1 else 0):
        area = width * height * rng.uniform(min_area, 1)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            break
    else:                                            # a very long picture: its middle
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h))


def normalised(pixels):
    """Pixels uint8 (B, S, S, 3) as artgpt4.preprocess gives them, float32 (B, 3, S, S). Features
    stay as they are."""
    if pixels.dtype != torch.uint8:
        return pixels
    pixels = pixels.permute(0, 3, 1, 2)
    pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    mean, std = torch.tensor(PIXEL_MEAN)[:, None, None], torch.tensor(PIXEL_STD)[:, None, None]
    return pixels.sub_(mean).div_(std)


class Pairs(Dataset):
    """(step, epoch, i) -> (pixels uint8 (N, S, S, 3), prompt or None, text, skipped) of pair i.

    N is 1, but for a conversation about several pictures. Without a random crop, features that the
    source has of its pictures come in place of pixels. A bad pair is replaced by another one,
    the same in every run. Raises ValueError if TRIES pairs in a row are bad.
    """

    def __init__(self, source, stage, image_size, min_crop_area, seed):
        self.source, self.stage, self.seed = source, stage, seed
        self.image_size, self.min_crop_area = image_size, min_crop_area

    def __getitem__(self, key):
        step, epoch, i = key
        others, skipped = random.Random(f"{self.seed} {epoch} instead of {i}"), []
        for _ in range(TRIES):
            rng = random.Random(f"{self.seed} {epoch} {i}")
            batch_rng = random.Random(f"{self.seed} {step}")
            try:
                prompt, text = self.source.words(i, self.stage, rng, batch_rng)
                return self.images(i, prompt, rng), prompt, text, skipped
            except SampleError as error:
                name = self.source.name(i)
                skipped.append({"step": step + 1, "sample": name, "reason": str(error)})
                i = others.randrange(len(self.source))
        raise ValueError(
            f"nothing usable in the training data: {TRIES} samples in a row are bad, the last of "
            f"them {skipped[-1]['sample']}: {skipped[-1]['reason']}")

    def images(self, i, prompt, rng):
        """What the model is given of the pictures of pair i."""
        features = self.source.features(i, prompt) if self.min_crop_area == 1 else None
        if features is not None:
            return features
        pictures = self.source.pictures(i, self.image_size, prompt)
        crops = [random_crop(picture, rng, self.min_crop_area) for picture in pictures]
        size = (self.image_size, self.image_size)
        pixels = [np.array(crop.resize(size, Image.Resampling.BICUBIC)) for crop in crops]
        return torch.from_numpy(np.stack(pixels))


# ---- Batches


class Batch(NamedTuple):
    pixels: torch.Tensor    # (N, 3, S, S), normalised; N >= B pictures, in the prompts' order; or
                            # their features (N, Q, D of the Q-Former)
    prompts: list           # B; None in stage 1
    texts: list             # B
    skipped: list           # {"step" (from 1), "sample", "reason"} of each bad sample replaced here


def collate(pairs):
    pixels, prompts, texts, skipped = zip(*pairs, strict=True)
    return Batch(torch.cat(pixels), list(prompts), list(texts), sum(skipped, []))


def in_parts(batch, count):
    """A Batch as a tuple of `count` of one size, each with texts of like length: together they
    have less padding, and the sum of their losses is the same. With one, the order stays."""
    if count == 1:
        return (batch,)
    pictures = batch.pixels.split([(prompt or IMAGE_MARK).count(IMAGE_MARK)
                                   for prompt in batch.prompts])
    lengths = [len(prompt or "") + len(text)
               for prompt, text in zip(batch.prompts, batch.texts, strict=True)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    size, parts = len(order) // count, []
    for first in range(0, len(order), size):
        part = order[first:first + size]
        parts.append(Batch(
            torch.cat([pictures[i] for i in part]), [batch.prompts[i] for i in part],
            [batch.texts[i] for i in part], [] if parts else batch.skipped))
    return tuple(parts)


def global_batches(source, batch_size, steps, seed, first_step=0, window=0):
    """Yield the keys (step, epoch, i) of each step's batch, from first_step on.

    Every epoch has its own order. With a window, the pairs of that many batches are sorted by the
    length of their texts, cut into batches, and the batches shuffled: texts of like length share
    a batch, so there is little padding.
    """
    @lru_cache(2)
    def order(epoch):
        return source.order(seed, epoch)

    span = max(window, 1)
    for first in range(first_step // span * span, steps, span):
        pairs = []
        for at in range(first * batch_size, (first + span) * batch_size):
            epoch, place = divmod(at, len(source))
            pairs.append((epoch, int(order(epoch)[place])))
        if window > 1:
            pairs.sort(key=lambda pair: source.text_length(pair[1]))
        shuffled = random.Random(f"{seed} window {first}").sample(range(span), span)
        for step in range(max(first, first_step), min(first + span, steps)):
            at = shuffled[step - first] * batch_size
            yield [(step, *pair) for pair in pairs[at:at + batch_size]]


def quiet_worker(_):
    """Set up a loader's worker: it prints nothing and does not hear Ctrl-C.

    The main process ends its workers itself, so they get a process group of their own. It also
    raises what they raise, so they need not print it, not even if the main process is killed while
    they send it a batch.
    """
    os.setpgid(0, 0)
    sys.excepthook = lambda *_: None
    release_locks()


def batches(source, stage, image_size, batch_size, steps, seed, min_crop_area=0.5, workers=1,
            first_step=0, rank=0, world=1, accumulate=1, window=0):
    """For each step from first_step on, the parts of its batch that process `rank` computes.

    All `world` processes together have batch_size pairs a step, each in `accumulate` parts, which
    are Batches. Raises ValueError if batch_size cannot be divided so, or if no sample is usable.
    """
    if batch_size % (world * accumulate) != 0:
        raise ValueError(f"a batch of {batch_size} cannot be divided among {world} processes with "
                         f"{accumulate} parts each")

    def keys():
        for batch in global_batches(source, batch_size, steps, seed, first_step, window):
            yield batch[rank::world]

    pairs = Pairs(source, stage, image_size, min_crop_area, seed)
    return grouped(load(pairs, keys(), workers), accumulate)


def held_out_batches(source, stage, image_size, batch_size, workers=1, rank=0, world=1):
    """Yield (Batch, whether it counts) of every pair of a source once, uncropped.

    The processes share the pairs. Each has as many batches as the others, of at most
    batch_size / world pairs, because they compute together (FSDP2); one whose pairs do not suffice
    repeats a pair, which does not count.
    """
    own = range(rank, len(source), world)
    count = math.ceil(math.ceil(len(source) / world) / max(batch_size // world, 1))
    keys, counts = [], []
    for step, part in enumerate(np.array_split(own, count)):
        counts.append(len(part) > 0)
        keys.append([(step, 0, int(i)) for i in (part if len(part) else own[:1])])
    pairs = Pairs(source, stage, image_size, min_crop_area=1.0, seed=0)
    loaded = grouped(load(pairs, keys, workers), 1)
    for [batch], counted in zip(loaded, counts, strict=True):
        yield batch, counted


def load(pairs, keys, workers):
    """The DataLoader of a Batch for each of the lists of keys."""
    start_method = "fork" if workers and os.name == "posix" else None
    return DataLoader(
        pairs, batch_sampler=keys, collate_fn=collate, num_workers=workers,
        worker_init_fn=quiet_worker, generator=torch.Generator(),
        multiprocessing_context=start_method)


def grouped(loader, accumulate):
    """Yield each Batch of a loader as a tuple of `accumulate` parts, their pixels normalised.

    Workers send pixels as bytes, a quarter of the size of floats. Raises ValueError, in one line,
    for an error in a worker and for a worker that was killed.
    """
    found = iter(loader)
    if loader.num_workers and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)         # torch's raises amid any step
    while True:
        try:
            batch = next(found, None)
        except ValueError as error:                  # a worker's message ends with its traceback
            message = str(error).strip().splitlines()[-1]
            raise ValueError(message.removeprefix("ValueError: ")) from None
        except (RuntimeError, OSError, EOFError) as error:    # also of a connection that is lost
            is_connection = loader.num_workers > 0 and not isinstance(error, RuntimeError)
            if not is_connection and "DataLoader worker" not in str(error):
                raise
            raise ValueError("a process that reads pictures was killed, perhaps because "
                             "memory ran out (--workers 1 needs least)") from None
        if batch is None:
            return
        yield in_parts(batch._replace(pixels=normalised(batch.pixels)), accumulate)
