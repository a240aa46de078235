"""The golden checkpoints, made by the recipe of tests/golden/manifest*.json, and what they convert to."""
import json
import math
import shutil
import signal
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_weights
from artgpt4 import ArtGPT4

GOLDEN = Path(__file__).parent / "golden"
signal.signal(signal.SIGINT, signal.default_int_handler)      # a shell's background job would ignore Ctrl-C
torch.set_num_threads(1)                                      # the matrices are tiny; threads would only wait
VICUNA_SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


def golden_tensor(seed, spec):
    """One weight, float32: norm 1 + 0.2 n, bias 0.1 n, embed 0.5 n, linear n / sqrt(fan_in); n is standard normal."""
    random = np.random.RandomState(zlib.crc32(f"{seed}:{spec['seed_name']}".encode()))
    n, shape = random.standard_normal(tuple(spec["shape"])), spec["shape"]
    fan_in = shape[-1] if len(shape) == 2 else math.prod(shape[1:])
    value = {"norm": 1 + 0.2 * n, "bias": 0.1 * n, "embed": 0.5 * n, "linear": n / math.sqrt(fan_in)}[spec["kind"]]
    return torch.tensor(value, dtype=torch.float32)


def golden_tensors(manifest, file):
    """{name: tensor} of one file that a manifest lists."""
    return {name: golden_tensor(manifest["seed"], spec) for name, spec in manifest["files"][file].items()}


def save_llama(folder, config, tensors, shards=VICUNA_SHARDS):
    """A language model as transformers keeps it: config.json, tokenizer.model, and .bin shards with their index."""
    folder.mkdir()
    names, where = list(tensors), {}
    for i, shard in enumerate(shards):
        part = names[i * len(names) // len(shards):(i + 1) * len(names) // len(shards)]
        torch.save({name: tensors[name] for name in part}, folder / shard)
        where |= dict.fromkeys(part, shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(GOLDEN / "tokenizer.model", folder)


@pytest.fixture(scope="session")
def expected():
    """expected.safetensors and expected.json in one dictionary."""
    return load_file(GOLDEN / "expected.safetensors") | json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A folder with every golden checkpoint in its public format. Tests that spoil one copy it first."""
    folder = tmp_path_factory.mktemp("checkpoints")
    released = json.loads((GOLDEN / "manifest.json").read_text())
    torch.save(golden_tensors(released, "eva_vit_g.pth"), folder / "eva_vit_g.pth")
    for file in ("blip2_pretrained_flant5xxl.pth", "pretrained_minigpt4.pth"):
        torch.save({"model": golden_tensors(released, file)}, folder / file)
    config = released["llama_config"]
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    inv_freq = 1.0 / 10000 ** (torch.arange(0, head_dim, 2).float() / head_dim)
    buffers = {"Qformer.bert.embeddings.position_ids": torch.arange(32)[None],
               "llama_model.model.layers.0.self_attn.0.rotary_emb.inv_freq": inv_freq}
    torch.save({"model": golden_tensors(released, "ArtGPT-4.pth") | buffers,
                "optimizer": {"state": {}, "param_groups": []}, "config": {"run": {"seed": 42}}, "scaler": None,
                "epoch": 4}, folder / "ArtGPT-4.pth")
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": inv_freq.clone()
               for i in range(config["num_hidden_layers"])}
    save_llama(folder / "vicuna", config, golden_tensors(released, "vicuna") | buffers)

    hub = json.loads((GOLDEN / "manifest_hf.json").read_text())
    for name, config in (("blip2-hf", hub["blip2_config"] | {"model_type": "blip-2"}),
                         ("llama-gqa", hub["llama_gqa_config"])):
        (folder / name).mkdir()
        save_file(golden_tensors(hub, f"{name}/model.safetensors"), folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(config))
    shutil.copy(GOLDEN / "tokenizer.model", folder / "llama-gqa")
    return folder


@pytest.fixture(scope="session")
def convert(checkpoints):
    """convert(out, flag=value, ...): run convert_weights.py on the golden released files, but for the flags given.

    A value is a path, a name in the checkpoints folder, True for a flag alone, or None for no such flag.
    """
    def run(out, **changes):
        flags = {"vit": "eva_vit_g.pth", "qformer": "blip2_pretrained_flant5xxl.pth", "llm": "vicuna",
                 "adapter": "ArtGPT-4.pth", "out": out} | changes
        arguments = []
        for flag, value in flags.items():
            if value is not None:
                arguments.append(f"--{flag.replace('_', '-')}")
                is_checkpoint = isinstance(value, str) and (checkpoints / value).exists()
                arguments += [] if value is True else [str(checkpoints / value if is_checkpoint else value)]
        convert_weights.main(arguments)
        return out
    return run


@pytest.fixture(scope="session")
def weights(convert, tmp_path_factory):
    """Weights folders of the golden files by what --adapter was: {"artgpt4", "minigpt4", "start": folder}."""
    folder = tmp_path_factory.mktemp("weights")
    return {name: convert(folder / name, adapter=adapter) for name, adapter in
            (("artgpt4", "ArtGPT-4.pth"), ("minigpt4", "pretrained_minigpt4.pth"), ("start", None))}


@pytest.fixture(scope="session")
def model(weights):
    """The golden ArtGPT-4, to be read only; a test that changes one loads its own."""
    return ArtGPT4.from_pretrained(weights["artgpt4"])
