"""The golden checkpoints, made by the recipe of tests/golden, and what they convert to."""
import json
import math
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_weights
from artgpt4 import ArtGPT4

GOLDEN = Path(__file__).parent / "golden"
RELEASED = json.loads((GOLDEN / "manifest.json").read_text())
HUB = json.loads((GOLDEN / "manifest_hf.json").read_text())
VICUNA_SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
torch.set_num_threads(1)                                      # the matrices are tiny


def close(found, expected, tolerance=2e-5):
    """Whether two tensors are equal to what implementations of the released code differ by."""
    found = found.detach().cpu()
    return found.shape == expected.shape and (found - expected).abs().max().item() <= tolerance


def golden_tensor(seed, spec):
    """One weight, float32, from standard normal numbers."""
    random = np.random.RandomState(zlib.crc32(f"{seed}:{spec['seed_name']}".encode()))
    shape = spec["shape"]
    normal = random.standard_normal(tuple(shape))
    fan_in = shape[-1] if len(shape) == 2 else math.prod(shape[1:])
    values = {"norm": 1 + 0.2 * normal, "bias": 0.1 * normal, "embed": 0.5 * normal,
              "linear": normal / math.sqrt(fan_in)}
    return torch.tensor(values[spec["kind"]], dtype=torch.float32)


def golden_tensors(manifest, file):
    """{name: tensor} of one file that a manifest lists."""
    specs = manifest["files"][file]
    return {name: golden_tensor(manifest["seed"], spec) for name, spec in specs.items()}


def released(file):
    """{name: tensor} of one released file; "vicuna" is all of its shards."""
    return golden_tensors(RELEASED, file)


def save_llama(folder, config, tensors, shards=VICUNA_SHARDS):
    """Write a language model in transformers' format: config.json, tokenizer.model, and .bin shards
    with their index."""
    folder.mkdir()
    names, where = list(tensors), {}
    for i, shard in enumerate(shards):
        part = names[i * len(names) // len(shards):(i + 1) * len(names) // len(shards)]
        torch.save({name: tensors[name] for name in part}, folder / shard)
        where |= dict.fromkeys(part, shard)
    index = json.dumps({"metadata": {}, "weight_map": where})
    (folder / "pytorch_model.bin.index.json").write_text(index)
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(GOLDEN / "tokenizer.model", folder)


@pytest.fixture(scope="session")
def expected():
    """expected.safetensors and expected.json in one dictionary."""
    values = json.loads((GOLDEN / "expected.json").read_text())
    return load_file(GOLDEN / "expected.safetensors") | values


@pytest.fixture(scope="session")
def expected_hf():
    """expected_hf.safetensors."""
    return load_file(GOLDEN / "expected_hf.safetensors")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A folder with every golden checkpoint in its public format, not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.save(released("eva_vit_g.pth"), folder / "eva_vit_g.pth")
    for file in ("blip2_pretrained_flant5xxl.pth", "pretrained_minigpt4.pth"):
        torch.save({"model": released(file)}, folder / file)
    config = RELEASED["llama_config"]
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    inv_freq = 1.0 / 10000 ** (torch.arange(0, head_dim, 2).float() / head_dim)
    buffers = {"Qformer.bert.embeddings.position_ids": torch.arange(32)[None],
               "llama_model.model.layers.0.self_attn.0.rotary_emb.inv_freq": inv_freq}
    torch.save({"model": released("ArtGPT-4.pth") | buffers,
                "optimizer": {"state": {}, "param_groups": []}, "config": {"run": {"seed": 42}},
                "scaler": None, "epoch": 4}, folder / "ArtGPT-4.pth")
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": inv_freq.clone()
               for i in range(config["num_hidden_layers"])}
    save_llama(folder / "vicuna", config, released("vicuna") | buffers)
    configs = {"blip2-hf": HUB["blip2_config"] | {"model_type": "blip-2"},
               "llama-gqa": HUB["llama_gqa_config"]}
    for name, config in configs.items():
        (folder / name).mkdir()
        save_file(golden_tensors(HUB, f"{name}/model.safetensors"),
                  folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(config))
    shutil.copy(GOLDEN / "tokenizer.model", folder / "llama-gqa")
    return folder


@pytest.fixture(scope="session")
def convert(checkpoints):
    """convert(out, flag=value, ...): run convert_weights.py on the golden released files.

    flag=value changes or adds a flag. A value is a path, a name in the checkpoints folder, True
    for a flag without a value, or None to leave the flag out.
    """
    def run(out, **changes):
        flags = {"vit": "eva_vit_g.pth", "qformer": "blip2_pretrained_flant5xxl.pth",
                 "llm": "vicuna", "adapter": "ArtGPT-4.pth", "out": out} | changes
        arguments = []
        for flag, value in flags.items():
            if value is None:
                continue
            arguments.append(f"--{flag.replace('_', '-')}")
            if isinstance(value, str) and (checkpoints / value).exists():
                value = checkpoints / value
            if value is not True:
                arguments.append(str(value))
        convert_weights.main(arguments)
        return out
    return run


@pytest.fixture(scope="session")
def weights(convert, tmp_path_factory):
    """Weights folders of the golden files, one for each --adapter: {"artgpt4": folder, ...}."""
    folder = tmp_path_factory.mktemp("weights")
    adapters = {"artgpt4": "ArtGPT-4.pth", "minigpt4": "pretrained_minigpt4.pth", "start": None}
    return {name: convert(folder / name, adapter=adapter) for name, adapter in adapters.items()}


@pytest.fixture(scope="session")
def model(weights):
    """The golden ArtGPT-4, to be read only; a test that changes one loads its own."""
    return ArtGPT4.from_pretrained(weights["artgpt4"])
