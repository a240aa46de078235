"""What training costs, on paper and measured: its memory, the time of a step, reading pictures.

    python bench.py --memory    13B on paper; two small sizes on paper beside what was measured
    python bench.py --loader    pictures read from a tar file, beside what Pillow alone does
    python bench.py --train     a step of LLaMA 1024 x 8 layers with a ViT of 352 x 8 layers, in
                                float32 and bfloat16, part by part
"""
import contextlib
import io
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from artgpt4 import IMAGE_SLOT, STOP, Config, LlamaConfig, QFormerConfig, ViTConfig
from benchmarks.models import random_model
from common.files import load_tokenizer, written_beside
from common.page import markdown_table
from training.arithmetic import machine_operations, operations
from training.data import batches, open_source
from training.memory import training_memory
from training.optimizer import AdamW8bit
from training.recomputation import recompute_blocks

ROOT = Path(__file__).resolve().parent.parent
PROMPT = f"###Human: {IMAGE_SLOT} Describe this image in detail. ###Assistant: "
SMALL = Config(224, 1e-5, 256, ViTConfig(352, 8, 4, 1536), QFormerConfig(),
               LlamaConfig(1024, 2816, 8, 16, 16, vocab_size=32000))
WIDER = Config(224, 1e-5, 384, ViTConfig(352, 4, 4, 1536), QFormerConfig(layers=2),
               LlamaConfig(1536, 4096, 12, 24, 24, vocab_size=8000))
INT8_SMALL = replace(
    SMALL, vit=replace(SMALL.vit, int8=True), llama=replace(SMALL.llama, int8=True))
SIZES = {                           # config, batch size, options of training
    "width 1024, 8 layers, batch 8": (SMALL, 8, {}),
    "width 1536, 12 layers, batch 4": (WIDER, 4, {}),
    "the same, --checkpointing --optimizer-bits 8": (
        WIDER, 4, {"checkpointing": True, "optimizer_bits": 8}),
    "width 1024, --int8 --vision-int8 --checkpointing --optimizer-bits 8, batch 1": (
        INT8_SMALL, 1, {"checkpointing": True, "optimizer_bits": 8}),
}
ONE_CARD = {"checkpointing": True, "optimizer_bits": 8}
# Ways to train the 13B model: batch on a card, int8 of the language model, of the ViT, options
CASES = {
    "one 80 GB card, batch 12": (12, False, False, {}),
    "the same, --checkpointing": (12, False, False, {"checkpointing": True}),
    "one 80 GB card, batch 32, --checkpointing": (32, False, False, {"checkpointing": True}),
    "8 x 24 GB, --fsdp, batch 16 in all": (2, False, False, {"cards": 8}),
    "8 x 24 GB, --fsdp --checkpointing, batch 32 in all": (
        4, False, False, {"cards": 8, "checkpointing": True}),
    "one 24 GB card, batch 1, --int8 --checkpointing": (1, True, False, {"checkpointing": True}),
    "the same, --vision-int8 --optimizer-bits 8": (1, True, True, ONE_CARD),
    "the same, --mode norms": (1, True, True, ONE_CARD | {"mode": "norms"}),
}

# ---- Memory


def paper_memory_table():
    """The memory of training the 13B model, for sequences of 230 tokens, 160 of them learned."""
    rows = []
    for name, (batch, int8, vision_int8, options) in CASES.items():
        config = Config(vit=ViTConfig(int8=vision_int8), llama=LlamaConfig(int8=int8))
        parts = training_memory(config, batch, 230, 160, **options)
        sizes = [*parts.values(), sum(parts.values())]
        rows.append([name, *(f"{size / 1e9:.1f}" for size in sizes)])
    return markdown_table(["13B, GB on each card", *parts, "sum"], rows)


def measured_memory_table():
    """The memory of training at the sizes of SIZES, on paper and measured."""
    rows = []
    for name in SIZES:
        peak, paper = measure_memory(name)
        rows.append([name, f"{paper / 1e9:.2f}", f"{peak / 1e9:.2f}", f"{paper / peak - 1:+.0%}"])
    return markdown_table(["float32, one CPU", "on paper, GB", "measured, GB", "difference"], rows)


def memory_tables():
    return f"{paper_memory_table()}\n\n{measured_memory_table()}"


def measure_memory(name):
    """(peak, paper) memory in bytes of training at a size of SIZES, in a process of its own.

    Raises ValueError if that process fails.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}     # freed memory is given back
    command = [sys.executable, "-m", "benchmarks.training_cost", name]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if run.returncode:
        last_line = run.stderr.strip().splitlines()[-1]
        raise ValueError(f"the measurement of {name} failed: {last_line}")
    peak, paper = run.stdout.split()
    return float(peak), float(paper)


def print_memory(name):
    """Print peak and paper memory, in bytes, of two steps of training at a size of SIZES."""
    config, batch, options = SIZES[name]
    before = peak_memory()
    caption = "a painting of a calm boat on the sea " * 8
    trainer = Trainer(random_model(config), batch, caption, **options)
    trainer.step()
    trainer.step()
    paper = training_memory(
        config, batch, trainer.tokens, trainer.text_tokens, frozen_bytes=4, **options)
    print(peak_memory() - before, sum(paper.values()))


def peak_memory():
    """The most memory that this process has had, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---- A step


class Trainer:
    """A model of random weights, one batch, and its optimizer."""

    def __init__(self, model, batch, caption, checkpointing=False, optimizer_bits=32):
        model.tokenizer = load_tokenizer(ROOT / "weights/tiny/tokenizer.model", model.config)
        self.model, self.captions = model, [caption] * batch
        self.parameters = model.freeze()
        adamw = AdamW8bit if optimizer_bits == 8 else partial(torch.optim.AdamW, fused=True)
        self.optimizer = adamw(self.parameters, lr=1e-5)
        if checkpointing:
            recompute_blocks(model.llama)
        size = model.config.image_size
        self.pixels = torch.randn(batch, 3, size, size)
        self.clock = Clock(model.proj.weight.device)
        self.text_tokens = len(model.tokenizer.encode(caption + STOP))
        self.tokens = len(model.prompt_ids(PROMPT)) + self.text_tokens - 1

    def step(self, pixels=None, clock=None):
        """One step of training, whose parts are timed by a Clock. Returns its loss."""
        pixels, clock = self.pixels if pixels is None else pixels, clock or self.clock
        loss = self.model.loss(pixels, self.captions, PROMPT, STOP, 160)
        with clock("backward"):
            loss.backward()
        with clock("clipping and AdamW"):
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


class Clock:
    """Seconds that each part of a step has taken."""

    def __init__(self, device):
        self.device, self.seconds = device, {}

    @contextlib.contextmanager
    def __call__(self, part):
        start = self.now()
        yield
        self.seconds[part] = self.seconds.get(part, 0) + self.now() - start

    def now(self):
        if self.device.type == "cuda":                        # which works while Python runs on
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def watch(self, part, function):
        """The function, whose calls are timed as `part`."""
        def timed(*arguments, **options):
            with self(part):
                return function(*arguments, **options)
        return timed


def timed_steps(trainer, loader, steps):
    """Two steps to warm up, then `steps` timed ones. Yields a Clock after each of those."""
    model = trainer.model
    watched = ((model.vit, "forward", "ViT"), (model.qformer, "forward", "Q-Former"),
               (model.llama, "hidden", "LLaMA"), (model.llama, "logits", "logits"))
    inner = [getattr(module, name) for module, name, _ in watched]
    for step in range(steps + 2):
        clock = Clock(model.proj.weight.device)
        for (module, name, part), function in zip(watched, inner, strict=True):
            setattr(module, name, clock.watch(part, function))
        with clock("whole step"):
            with clock("waiting for data"):
                [batch] = next(loader)
            trainer.step(batch.pixels, clock)
        if step > 1:
            yield clock


def step_time(device="cpu", steps=8):
    """The time of a step in float32 and in bfloat16, part by part, at the sizes at which the
    released code was timed. Both take turns; the times are medians of `steps`."""
    found, sizes, products = {}, {}, dict.fromkeys(("float32", "bfloat16"), 0)
    with TemporaryDirectory() as folder:
        tar = Path(folder) / "00000.tar"
        write_loader_tar(tar, count=64)
        source, runs = open_source(tar, folder), {}
        for dtype in products:
            kind = getattr(torch, dtype)
            trainer = Trainer(random_model(SMALL, kind, device), 8,
                              "a calm painting of a boat at dusk")
            loader = batches(source, 1, 224, 8, steps + 2, seed=0)
            runs[dtype] = timed_steps(trainer, loader, steps)
            per_pair, per_token, per_text_token = operations(trainer.model, "artgpt4")
            sizes[dtype] = 8 * (per_pair + trainer.tokens * per_token
                                + trainer.text_tokens * per_text_token)
        for clocks in zip(*runs.values(), strict=True):
            for dtype, clock in zip(runs, clocks, strict=True):
                found.setdefault(dtype, []).append(clock.seconds)
                product = machine_operations(torch.device(device), getattr(torch, dtype))
                products[dtype] = max(products[dtype], product)
    return step_tables(found, products, sizes, trainer.tokens)


def step_tables(found, products, sizes, tokens):
    """The tables of step_time, and which dtype to take.

    found: {dtype: [{part: seconds}, ...]}; products: {dtype: operations/s of the machine}; sizes:
    {dtype: operations of a step}.
    """
    times = {dtype: {part: statistics.median(seconds[part] for seconds in steps)
                     for part in steps[0]} for dtype, steps in found.items()}
    rows, parts = [], []
    for dtype, seconds in times.items():
        whole = [step["whole step"] for step in found[dtype]]
        share = sizes[dtype] / seconds["whole step"] / products[dtype]
        rows.append([dtype, f"{seconds['whole step']:.3f}", f"{min(whole):.3f} to {max(whole):.3f}",
                     f"{products[dtype] / 1e9:.0f}", f"{share:.0%}"])
    order = [part for part in times["float32"] if part not in ("whole step", "waiting for data")]
    for part in [*order, "waiting for data"]:
        parts.append([part, *(f"{1000 * seconds[part]:.0f} ms, "
                              f"{seconds[part] / seconds['whole step']:.1%}"
                              for seconds in times.values())])
    cached = [f"{seconds['whole step'] / (seconds['whole step'] - towers(seconds)):.2f} in {dtype}"
              for dtype, seconds in times.items()]
    ratio = times["float32"]["whole step"] / times["bfloat16"]["whole step"]
    better, factor = ("bfloat16", ratio) if ratio > 1 else ("float32", 1 / ratio)
    heading = ["a step", "s", "range", "the machine's product, Gop/s", "of it"]
    return (f"LLaMA 1024 x 8 layers, ViT 352 x 8, batch 8, {tokens} tokens each\n\n"
            f"{markdown_table(heading, rows)}\n\n{markdown_table(['part', *times], parts)}\n\n"
            f"Take --dtype {better} on this machine: a step is {factor:.2f} times as fast.\n"
            "How many times as fast it is without the ViT and the Q-Former (--cache-vision): "
            f"{', '.join(cached)}.")


def towers(seconds):
    """The seconds of a step that --cache-vision saves."""
    return seconds.get("ViT", 0) + seconds.get("Q-Former", 0)


# ---- Reading pictures


def soft_noise(random, size):
    """A picture that compresses about as photographs do, (size, size, 3) uint8."""
    coarse = random.randint(0, 255, (size // 16, size // 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((size, size)))
    grain = random.randint(-12, 12, (size, size, 1))
    return (smooth + grain).clip(0, 255).astype(np.uint8)


def write_loader_tar(tar, count=2000, size=512):
    """Write a tar file as img2dataset makes them: `count` JPEGs of size x size, with captions."""
    random = np.random.RandomState(0)
    with written_beside(tar) as path, tarfile.open(path, "w") as members:
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(soft_noise(random, size)).save(file, "JPEG", quality=92)
            for suffix, content in (("jpg", file.getvalue()), ("txt", f"picture {i}".encode())):
                member = tarfile.TarInfo(f"{i:09}.{suffix}")
                member.size = len(content)
                members.addfile(member, io.BytesIO(content))


def pillow_alone(source, i, size=224):
    """What reading picture i takes at the least: decode it, resize it."""
    with Image.open(io.BytesIO(source.content(i))) as image:
        image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def loader_table(workers=2, rounds=5):
    """Pictures/s of Pillow alone and of data.batches, each in `workers` processes and in turns.

    The speeds and their ratio are medians over the rounds. The tar file is kept in runs/bench.
    """
    tar, batch = Path("runs/bench/00000.tar"), 32
    if not tar.is_file():
        write_loader_tar(tar)
    source = open_source(tar, tar.parent / "index")
    steps = len(source) // batch
    found = []                                                # (Pillow, ours, ratio) of each round
    for seed in range(rounds):
        start = time.perf_counter()
        with get_context("fork").Pool(workers) as pool:
            pool.map(partial(pillow_alone, source), range(len(source)), chunksize=batch)
        middle = time.perf_counter()
        for _ in batches(source, 1, 224, batch, steps, seed, workers=workers):
            pass
        end = time.perf_counter()
        alone, ours = len(source) / (middle - start), steps * batch / (end - middle)
        found.append((alone, ours, ours / alone))
    alone, ours, ratio = map(statistics.median, zip(*found, strict=True))
    return markdown_table(
        [f"2,000 JPEGs of 512 pixels, {workers} processes", "pictures/s"],
        [["Pillow alone: decode and resize", f"{alone:.0f}"],
         ["data.batches: from the tar to batches", f"{ours:.0f}, {ratio:.0%}"]])


if __name__ == "__main__":
    print_memory(sys.argv[1])
