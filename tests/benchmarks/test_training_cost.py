"""The memory of training on paper, beside what the backward pass keeps; data for the loader."""
import tarfile
from dataclasses import replace

import pytest
import torch
from PIL import Image

from artgpt4 import Config
from benchmarks import training_cost
from benchmarks.models import random_model
from benchmarks.training_cost import (
    PROMPT, Trainer, step_tables, step_time, training_memory, write_loader_tar,
)
from tests.benchmarks.small_model import SMALL
from training.recomputation import recompute_blocks


def kept_by_backward(run, model):
    """(result, bytes): what `run` returns, and the tensors besides the weights that its graph
    keeps."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return result, sum(kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_on_paper_are_those_that_the_backward_pass_keeps(checkpointing):
    trainer = Trainer(random_model(SMALL), 3, "a calm painting of a boat " * 10)
    if checkpointing:
        recompute_blocks(trainer.model.llama)
    loss, kept = kept_by_backward(
        lambda: trainer.model.loss(trainer.pixels, trainer.captions, PROMPT, "###", 160),
        trainer.model)

    lengths = 3, trainer.tokens, trainer.text_tokens
    logits = 4 * 3 * trainer.text_tokens * 1500
    paper = training_memory(SMALL, *lengths, 4, checkpointing)["activations"]
    paper -= 2 * logits                                       # it keeps one copy in three
    if checkpointing:                                         # the block that is computed again
        all_blocks = training_memory(SMALL, *lengths, 4)["activations"] - 3 * logits
        paper -= all_blocks / 6
    assert loss.requires_grad and kept == pytest.approx(paper, rel=0.15)


def test_int8_models_of_random_weights_take_a_step_as_bench_memory_does():
    int8 = replace(SMALL, vit=replace(SMALL.vit, int8=True), llama=replace(SMALL.llama, int8=True))
    trainer = Trainer(random_model(int8), 1, "a boat", checkpointing=True, optimizer_bits=8)
    before = trainer.model.llama.blocks[0].adapter.up.weight.clone()
    assert 0 < trainer.step() < 100
    assert not torch.equal(trainer.model.llama.blocks[0].adapter.up.weight, before)


def test_memory_of_the_13b_model_follows_from_its_sizes():
    one = training_memory(Config(), 12, 230, 160)
    eight = training_memory(Config(), 12, 230, 160, cards=8)
    adapters = 40 * (2 * 5120 * 1280 + 5120 + 1280)
    trainable = 4 * (adapters + 5120 * 769 + 60 * 5120)
    assert one["trainable weights"] == one["gradients"] == trainable
    assert one["AdamW's two moments"] == 2 * trainable
    assert eight["trainable weights"] == trainable / 8
    assert eight["activations"] == one["activations"]
    assert 27e9 < one["frozen weights"] < 29e9


def test_the_loaders_tar_file_has_pictures_with_captions(tmp_path):
    file = tmp_path / "00000.tar"
    write_loader_tar(file, count=2, size=64)
    with tarfile.open(file) as members:
        names = members.getnames()
        with Image.open(members.extractfile("000000001.jpg")) as image:
            assert image.size == (64, 64) and image.format == "JPEG"
        assert members.extractfile("000000001.txt").read() == b"picture 1"
    assert names == ["000000000.jpg", "000000000.txt", "000000001.jpg", "000000001.txt"]


def test_the_tables_of_a_step_hold_medians_shares_and_the_faster_dtype():
    def steps(*seconds):
        return [{"ViT": second / 4, "waiting for data": 0.0, "whole step": second}
                for second in seconds]

    found = {"float32": steps(1, 2, 4), "bfloat16": steps(0.5, 0.8, 9)}
    products, sizes = dict.fromkeys(found, 1e11), dict.fromkeys(found, 1e11)
    table = step_tables(found, products, sizes, 57)
    for line in ("| float32 | 2.000 | 1.000 to 4.000 | 100 | 50% |",
                 "| bfloat16 | 0.800 | 0.500 to 9.000 | 100 | 125% |",
                 "| ViT | 500 ms, 25.0% | 200 ms, 25.0% |",
                 "Take --dtype bfloat16 on this machine: a step is 2.50 times as fast.",
                 "(--cache-vision): 1.33 in float32, 1.33 in bfloat16."):
        assert line in table
    found["bfloat16"] = steps(6)
    assert "Take --dtype float32 on this machine: a step is 3.00 times" in step_tables(
        found, products, sizes, 57)


def test_every_part_of_a_step_is_timed_in_both_dtypes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_cost, "SMALL", replace(SMALL, image_size=224))
    table = step_time(steps=1)
    for part in ("ViT", "Q-Former", "LLaMA", "logits", "backward", "clipping and AdamW",
                 "waiting for data"):
        assert f"| {part} | " in table
    assert "| bfloat16 | " in table and "Take --dtype" in table
