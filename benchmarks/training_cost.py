"""What training costs, on paper and measured: memory from a Config, the time of a step, and of reading pictures.

    python bench.py --memory      the table of memory for 13B, and the same function beside measured memory at two sizes
    python bench.py --loader      pictures read from a tar file, beside what Pillow alone does
    python bench.py --train       seconds a step of a LLaMA of width 1024 and 8 layers, ViT of width 352 and 8 layers
"""
import io
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from artgpt4 import IMAGE_SLOT, STOP, ArtGPT4, Config, LlamaConfig, QFormerConfig, ViTConfig
from common.files import load_tokenizer, written_beside
from training.data import batches, open_source

HERE = Path(__file__).resolve().parent.parent
PROMPT = f"###Human: {IMAGE_SLOT} Describe this image in detail. ###Assistant: "
SMALL = Config(224, 1e-5, 256, ViTConfig(352, 8, 4, 1536), QFormerConfig(),
               LlamaConfig(1024, 2816, 8, 16, 16, vocab_size=32000))
SIZES = {"width 1024, 8 layers, batch 8": (SMALL, 8),
         "width 1536, 12 layers, batch 4": (
             Config(224, 1e-5, 384, ViTConfig(352, 4, 4, 1536), QFormerConfig(layers=2),
                    LlamaConfig(1536, 4096, 12, 24, 24, vocab_size=8000)), 4)}


def training_memory(config, batch, tokens, text_tokens, frozen_bytes=2, checkpointing=False, cards=1, mode="artgpt4"):
    """{part: bytes} of one card while it trains. tokens: of a sequence, image vectors included; text_tokens: of those
    that are learned; batch: sequences on this card; frozen_bytes: of a frozen weight, 4, 2, or 1 for int8; activations
    then have 4, 2 or 2. cards: what fully_shard spreads the parameters over.

    Only what the backward pass needs counts as activation: the towers before the projection leave nothing.
    """
    with torch.device("meta"):
        model = ArtGPT4(config, None)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    training = sum(sizes[name] for name in model.trainable_names(mode))
    frozen = sum(sizes.values()) - training
    llama, act = config.llama, 4 if frozen_bytes == 4 else 2
    width, inner, adapter = llama.hidden_size, llama.intermediate_size, config.adapter_width
    kv_width = width * llama.num_key_value_heads // llama.num_attention_heads
    # A block keeps: both norms' inputs in float32, and what they are before their weight where that trains; q, k, v
    # before and after rotation, and the attention's output; the adapter's input, its inside before and after GELU;
    # gate, up, and silu(gate).
    block = (3.5 * 4 * width
             + act * ((width + 2 * kv_width) + (width + kv_width) + width + (width + 2 * adapter) + 3 * inner))
    blocks = llama.num_hidden_layers
    kept = (blocks * act * width + block) if checkpointing else blocks * block
    logits = 3 * 4 * batch * text_tokens * llama.vocab_size                  # they, their softmax, their gradient
    widened = 4 * 2 * inner * width if frozen_bytes == 1 else 0              # an int8 matrix, while it is passed back
    largest = max(sum(size for name, size in sizes.items() if name.startswith(f"llama.blocks.{i}.")) for i in (0, 1))
    gathered = 0 if cards == 1 else 2 * largest * frozen_bytes               # the block at work, and the next one
    return {"frozen weights": frozen * frozen_bytes / cards + gathered,
            "what trains": training * 4 / cards, "its gradients": training * 4 / cards,
            "AdamW's two moments": training * 8 / cards, "activations": batch * tokens * kept + logits + widened}


class Trainer:
    """A model of random weights, one batch, and its optimizer step."""

    def __init__(self, model, batch, caption):
        model.tokenizer = load_tokenizer(HERE / "weights/tiny/tokenizer.model", model.config)
        self.model, self.caption, self.parameters = model, [caption] * batch, model.freeze()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5)
        self.pixels = torch.randn(batch, 3, model.config.image_size, model.config.image_size)
        self.text_tokens = len(model.tokenizer.encode(caption + STOP))
        self.tokens = len(model.prompt_ids(PROMPT)) + self.text_tokens - 1

    def step(self):
        loss = self.model.loss(self.pixels, self.caption, PROMPT, STOP, 160)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def train_table(random_model, steps=8):
    """Seconds a step, the median of `steps`, of the sizes at which the released code was timed."""
    times, trainer = [], Trainer(random_model(SMALL, torch.float32, "cpu"), 8, "a calm painting of a boat at dusk")
    for _ in range(steps + 1):
        start = time.perf_counter()
        loss = trainer.step()
        times.append(time.perf_counter() - start)
    return (f"a training step, float32, LLaMA 1024 x 8 layers, ViT 352 x 8, batch 8, {trainer.tokens} tokens each: "
            f"{statistics.median(times[1:]):.2f} s ({min(times[1:]):.2f} to {max(times[1:]):.2f}), loss {loss:.3f}")


def measured_memory(name, random_model):
    """Print peak and paper memory, in bytes, of two steps at a size of SIZES; run in a process of its own."""
    config, batch = SIZES[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    trainer = Trainer(random_model(config, torch.float32, "cpu"), batch, "a painting of a calm boat on the sea " * 8)
    trainer.step()
    trainer.step()
    paper = sum(training_memory(config, batch, trainer.tokens, trainer.text_tokens, 4).values())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, paper)


def memory_table(table):
    """The memory of training on paper for the 13B model, then at two small sizes beside what was measured."""
    cases = {"one 80 GB card, batch 12": (12, 1, 2, False), "the same, --checkpointing": (12, 1, 2, True),
                    "one 80 GB card, batch 32, --checkpointing": (32, 1, 2, True),
                    "8 x 24 GB, --fsdp, batch 16 in all": (2, 8, 2, False),
                    "8 x 24 GB, --fsdp --checkpointing, batch 32 in all": (4, 8, 2, True),
                    "one 24 GB card, --int8 --checkpointing, batch 1": (1, 1, 1, True)}
    rows = []
    for name, (batch, cards, frozen_bytes, checkpointing) in cases.items():
        parts = training_memory(Config(), batch, 230, 160, frozen_bytes, checkpointing, cards)
        rows.append([name, *(f"{size / 1e9:.1f}" for size in (*parts.values(), sum(parts.values())))])
    head = ["13B, GB on each card", *parts, "sum"]
    paper, rows = table(head, rows), []
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}           # so that freed memory is seen to be free
    for name in SIZES:
        command = [sys.executable, "-m", "benchmarks.training_cost", name]
        run = subprocess.run(command, cwd=HERE, capture_output=True, text=True, env=environment)
        if run.returncode:
            raise ValueError(f"the measurement of {name} failed: {run.stderr.strip().splitlines()[-1]}")
        peak, on_paper = (float(number) for number in run.stdout.split())
        rows.append([name, f"{on_paper / 1e9:.2f}", f"{peak / 1e9:.2f}", f"{on_paper / peak - 1:+.0%}"])
    return paper + "\n\n" + table(["float32, one CPU", "on paper, GB", "measured, GB", "difference"], rows)


def loader_tar(tar, count=2000, size=512):
    """A tar file as img2dataset makes them, of `count` JPEGs of soft noise, size x size."""
    random = np.random.RandomState(0)
    with written_beside(tar) as path, tarfile.open(path, "w") as members:
        for i in range(count):
            coarse = Image.fromarray(random.randint(0, 255, (size // 16, size // 16, 3), dtype=np.uint8))
            grain = random.randint(-12, 12, (size, size, 1))
            file = io.BytesIO()
            pixels = (np.asarray(coarse.resize((size, size))) + grain).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(file, "JPEG", quality=92)
            for suffix, content in (("jpg", file.getvalue()), ("txt", f"picture {i}".encode())):
                member = tarfile.TarInfo(f"{i:09}.{suffix}")
                member.size = len(content)
                members.addfile(member, io.BytesIO(content))


def pillow_alone(source, i, size=224):
    with Image.open(io.BytesIO(source.content(i))) as image:
        image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def loader_table(table, workers=2, rounds=5):
    """Pictures/s of Pillow alone (decode, resize to 224) and of data.batches, each in `workers` processes and in turns:
    the medians, and that of the rounds' ratios. The tar file is kept in runs/bench."""
    tar, found = Path("runs/bench/00000.tar"), []
    if not tar.is_file():
        loader_tar(tar)
    source = open_source(tar, tar.parent / "index")
    for seed in range(rounds):
        began = time.perf_counter()
        with get_context("fork").Pool(workers) as pool:
            pool.map(partial(pillow_alone, source), range(len(source)), chunksize=32)
        between = time.perf_counter()
        for _ in batches(source, 1, 224, 32, len(source) // 32, seed, workers=workers):
            pass
        speeds = len(source) / (between - began), len(source) // 32 * 32 / (time.perf_counter() - between)
        found.append((*speeds, speeds[1] / speeds[0]))
    alone, ours, ratio = (statistics.median(column) for column in zip(*found, strict=True))
    return table([f"2,000 JPEGs of 512 pixels, {workers} processes", "pictures/s"],
                 [["Pillow alone: decode and resize", f"{alone:.0f}"],
                  ["data.batches: from the tar to batches", f"{ours:.0f}, {ratio:.0%}"]])


if __name__ == "__main__":
    from bench import random_model
    measured_memory(sys.argv[1], random_model)
