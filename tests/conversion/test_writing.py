"""Writing: shards, one tensor in memory at a time, no NaN."""
import weakref

import numpy as np
import torch

from artgpt4 import ArtGPT4
from tests.conftest import VICUNA_SHARDS, released


def test_shards_of_the_language_model_load_as_one_file_does(
        convert, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("conversion.writing.SHARD", 300_000)
    out = convert(tmp_path / "shards")
    files = sorted(path.name for path in out.glob("llama-*"))
    assert len(files) == 9 and files[0] == "llama-00001-of-00009.safetensors"
    assert not (out / "llama.safetensors").exists()
    assert all((out / file).stat().st_size < 310_000 for file in files)
    whole = ArtGPT4.from_pretrained(weights["artgpt4"]).state_dict()
    sharded = ArtGPT4.from_pretrained(out).state_dict()
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in whole.items())


def test_one_tensor_of_the_source_is_in_memory_at_a_time(convert, tmp_path, monkeypatch):
    original = np.fromfile
    read, at_once = [], []

    def fromfile(*args, **kwargs):
        array = original(*args, **kwargs)
        read.append(weakref.ref(array))
        at_once.append(sum(each() is not None for each in read))
        return array
    monkeypatch.setattr(np, "fromfile", fromfile)
    convert(tmp_path / "out")
    assert len(read) > 150 and max(at_once) == 1


def test_a_tensor_with_nan_or_infinity_is_named(refused, spoiled, vicuna):
    name = "model.layers.2.mlp.up_proj.weight"
    for bad in (float("nan"), float("inf"), -float("inf")):
        weight = released("vicuna")[name]
        weight[150, 50] = bad
        line = refused(llm=vicuna(tensors={name: weight}))
        assert f"{VICUNA_SHARDS[1]}: {name}: holds NaN or infinity" in line
