"""Examples for the model in a fixed order: what a step trains on is a function of (seed, step),
for any number of workers and processes. An example is (pixels uint8 (N, S, S, 3), ids, targets),
made in a worker; N is 1, but for a conversation about several pictures.
"""
import math
import random
import signal
from functools import lru_cache, partial

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from artgpt4 import PROMPTS, example, pad_examples, token_ids
from common.command_line import one_line
from gallery.language import answers_of
from training.processes import RANK, WORLD

TRIES = 20              # bad samples in a row that make the data unusable


class Examples(Dataset):
    """The pairs `numbers` of a source as a training set: (step, epoch, i) -> an example and its
    faults, [[name, what], ...]: pairs that were bad, a text that was cut. A bad pair is replaced by
    another one, the same in every run. Raises ValueError if TRIES pairs in a row are bad."""

    def __init__(self, source, numbers, recipe, model):
        self.source, self.numbers, self.recipe = source, list(numbers), recipe
        self.tokenizer, self.config = model.tokenizer, model.config
        self.end = "\n" if source.stage == 1 else PROMPTS[model.config.prompt][-1]

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, key):
        step, epoch, i = key
        seed, faults = self.recipe.seed, []
        others = random.Random(f"{seed} {epoch} instead of {i}")
        for _ in range(TRIES):
            rng, batch_rng = random.Random(f"{seed} {epoch} {i}"), random.Random(f"{seed} {step}")
            try:
                return *self.example(i, rng, batch_rng, faults), faults
            except Exception as error:                        # a damaged file can raise anything
                name = self.source.name(i)
                faults.append([name, one_line(error).removeprefix(f"{name}: ")])
                i = others.choice(self.numbers)
        raise ValueError(f"nothing usable to train on, or held out: {TRIES} samples in a row "
                         f"are bad, the last of them {': '.join(faults[-1])}")

    def example(self, i, rng, batch_rng, faults):
        pictures, prompt, answer = self.source.example(i, rng, batch_rng)
        size, longest, text = self.config.image_size, self.recipe.max_text_tokens, answer + self.end
        crops = [random_crop(picture, rng, self.recipe.min_crop_area) for picture in pictures]
        pixels = [crop.resize((size, size), Image.Resampling.BICUBIC) for crop in crops]
        if len(token_ids(self.tokenizer, 0, text)) > longest:
            faults.append([self.source.name(i), f"its text is cut after {longest} tokens"])
        ids, targets = example(self.tokenizer, self.config.queries, prompt, text, longest)
        if prompt.count("Human:") > 1:                        # a talk: all its answers count
            targets = answers_of([*ids, targets[-1]], self.tokenizer)
        return torch.from_numpy(np.stack(pixels)), ids, targets

    def keys(self, first_step):
        """Yield [(step, epoch, i), ...] of each step's batch of all processes, from the step after
        first_step on. Every epoch has its own order."""
        size = self.recipe.batch_size

        @lru_cache(2)
        def order(epoch):
            rng = random.Random(f"{self.recipe.seed} epoch {epoch}")
            return rng.sample(self.numbers, len(self))

        for step in range(first_step, self.recipe.steps):
            places = [divmod(at, len(self)) for at in range(step * size, (step + 1) * size)]
            yield [(step, epoch, order(epoch)[place]) for epoch, place in places]


def random_crop(image, rng, min_area):
    """A random crop: a share min_area to 1 of the area, aspect ratio 3/4 to 4/3 (log-uniform). With
    min_area 1, and where ten do not fit, the whole picture."""
    width, height = image.size
    for _ in range(10 if min_area < 1 else 0):
        area = width * height * rng.uniform(min_area, 1)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return image.crop((left, top, left + w, top + h))
    return image


def in_parts(count, examples):
    """Examples of a batch -> ([(pixels, ids, targets), ...] of `count` parts of one size, faults).
    Texts of like length share a part, which has less padding; the sum of the losses is the same."""
    if count > 1:
        examples = sorted(examples, key=lambda example: len(example[1]))
    size, parts = len(examples) // count, []
    for start in range(0, len(examples), size):
        pixels, ids, targets, _ = zip(*examples[start:start + size], strict=True)
        parts.append((torch.cat(pixels), *pad_examples(zip(ids, targets, strict=True))))
    return parts, [fault for *_, faults in examples for fault in faults]


def load_data(dataset, workers=0, **options):
    """A torch DataLoader whose workers are new processes, on any system: nothing is inherited from
    this one. They end with it, after some seconds, however it ended."""
    return DataLoader(dataset, num_workers=workers, generator=torch.Generator(),
                      worker_init_fn=without_ctrl_c,
                      multiprocessing_context="spawn" if workers else None, **options)


def without_ctrl_c(_):
    """In a worker: leave Ctrl-C, which the terminal sends to all, to the process that reads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def batches(examples, first_step=0, workers=0):
    """Yield what in_parts returns for each step after first_step: the share of this process."""
    keys = (keys[RANK::WORLD] for keys in examples.keys(first_step))
    return load_data(examples, workers, batch_sampler=keys,
                     collate_fn=partial(in_parts, examples.recipe.accumulate))


def held_out_batches(examples, faults):
    """Yield (pixels, ids, targets) of this process's share of held-out examples, whose faults are
    added to a list. All processes have as many, as FSDP2 needs it: a few may be left out."""
    each, size = len(examples) // WORLD, max(examples.recipe.batch_size // WORLD, 1)
    own = examples.numbers[RANK:each * WORLD:WORLD]
    for start in range(0, each, size):
        [part], found = in_parts(1, [examples[start, 0, i] for i in own[start:start + size]])
        faults += found
        yield part
