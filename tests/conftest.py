"""The golden checkpoints, made by the recipe of tests/golden, and what they convert to."""
import contextlib
import json
import math
import shutil
import signal
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_weights
from artgpt4 import ArtGPT4
from common.command_line import run_command
from common.models import TINY
from tests.parallel import pytest_runtestloop  # noqa: F401
from tests.training.kill_and_resume import small_data

GOLDEN = Path(__file__).parent / "golden"
RELEASED = json.loads((GOLDEN / "manifest.json").read_text())
HUB = json.loads((GOLDEN / "manifest_hf.json").read_text())
DEVICES = [name for name in ("cpu", "cuda") if name == "cpu" or torch.cuda.is_available()]
torch.set_num_threads(1)                                      # the matrices are tiny
signal.signal(signal.SIGINT, signal.default_int_handler)      # ignored in a shell's background


def close(found, expected, tolerance=2e-5):
    """Whether two tensors are equal to what implementations of the released code differ by."""
    found = found.detach().cpu()
    return found.shape == expected.shape and (found - expected).abs().max().item() <= tolerance


def run(main, parser, *flags):
    """Run a command in this process, with flags that its parser reads -> the exit code."""
    try:
        run_command(main, parser, list(map(str, flags)))
    except SystemExit as end:
        return end.code
    return 0


def json_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@cache
def golden_tensor(seed, name, kind, shape):
    """One weight, float32, from standard normal numbers; not to be changed."""
    normal = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode())).standard_normal(shape)
    fan_in = shape[-1] if len(shape) == 2 else math.prod(shape[1:])
    values = {"norm": 1 + 0.2 * normal, "bias": 0.1 * normal, "embed": 0.5 * normal,
              "linear": normal / math.sqrt(fan_in)}
    return torch.tensor(values[kind], dtype=torch.float32)


def golden_tensors(manifest, file):
    """{name: tensor} of one file that a manifest lists."""
    return {name: golden_tensor(manifest["seed"], spec["seed_name"], spec["kind"],
                                tuple(spec["shape"]))
            for name, spec in manifest["files"][file].items()}


def released(file):
    """{name: tensor} of one released file; "vicuna" is all of its shards."""
    return golden_tensors(RELEASED, file)


def save_folder(folder, tensors, config, in_shards=False):
    """A model's folder as transformers writes it, with a tokenizer. in_shards: as two .bin files
    with their index."""
    folder.mkdir(exist_ok=True)
    if in_shards:
        where = {name: f"pytorch_model-0000{1 + 2 * i // len(tensors)}-of-00002.bin"
                 for i, name in enumerate(tensors)}
        for shard in set(where.values()):
            torch.save({name: tensors[name] for name in tensors if where[name] == shard},
                       folder / shard)
        index = json.dumps({"metadata": {}, "weight_map": where})
        (folder / "pytorch_model.bin.index.json").write_text(index)
    else:
        save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(GOLDEN / "tokenizer.model", folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A new working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    save_folder(folder / "vicuna", released("vicuna") | buffers, config, in_shards=True)
    configs = {"blip2-hf": HUB["blip2_config"] | {"model_type": "blip-2"},
               "llama-gqa": HUB["llama_gqa_config"]}
    for name, config in configs.items():
        save_folder(folder / name, golden_tensors(HUB, f"{name}/model.safetensors"), config)
    return folder


def convert_py(arguments):
    before = signal.getsignal(signal.SIGTERM)
    try:
        run_command(convert_weights.main, convert_weights.command_line(), arguments)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def convert(checkpoints):
    """convert(out, flag=value, ...): run convert_weights.py on the golden released files. A value
    is a path, a name in the checkpoints folder, True for a flag without one, None for no flag."""
    def run(out, **changes):
        flags = {"vit": "eva_vit_g.pth", "qformer": "blip2_pretrained_flant5xxl.pth",
                 "llm": "vicuna", "adapter": "ArtGPT-4.pth", "out": out} | changes
        given = {flag.replace("_", "-"): value for flag, value in flags.items()
                 if value is not None}
        with contextlib.chdir(checkpoints):
            convert_py([f"--{flag}" if value is True else f"--{flag}={value}"
                        for flag, value in given.items()])
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


@pytest.fixture(scope="session")
def tiny():
    """The model of weights/tiny in float32, to be read only."""
    return ArtGPT4.from_pretrained(TINY, dtype=torch.float32)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A folder of small pictures with their captions, not to be changed."""
    return small_data(tmp_path_factory.mktemp("data") / "pairs")
