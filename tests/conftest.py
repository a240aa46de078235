"""The golden checkpoints, made by the recipe of tests/golden, and what they convert to; a small
model that talks nonsense."""
import contextlib
import io
import json
import math
import shutil
import signal
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import chat
import convert_weights
from artgpt4 import ArtGPT4, Config, LlamaConfig, QFormerConfig, ViTConfig
from common.command_line import run_command
from common.files import load_tokenizer
from conversation import rounds
from conversation.rounds import Conversation
from gallery.pretrain import save_pretrained
from tests.evaluation.runs import QuickRuns
from tests.robustness.kill_and_resume import small_data
from training.data import Gallery

GOLDEN = Path(__file__).parent / "golden"
RELEASED = json.loads((GOLDEN / "manifest.json").read_text())
HUB = json.loads((GOLDEN / "manifest_hf.json").read_text())
signal.signal(signal.SIGINT, signal.default_int_handler)      # background jobs ignore Ctrl-C
torch.set_num_threads(1)                                      # the matrices are tiny
VICUNA_SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


def golden_tensor(seed, spec):
    """One weight, float32, from standard normal numbers."""
    random = np.random.RandomState(zlib.crc32(f"{seed}:{spec['seed_name']}".encode()))
    shape = spec["shape"]
    normal = random.standard_normal(tuple(shape))
    fan_in = shape[-1] if len(shape) == 2 else math.prod(shape[1:])
    values = {
        "norm": 1 + 0.2 * normal,
        "bias": 0.1 * normal,
        "embed": 0.5 * normal,
        "linear": normal / math.sqrt(fan_in),
    }
    return torch.tensor(values[spec["kind"]], dtype=torch.float32)


def golden_tensors(manifest, file):
    """{name: tensor} of one file that a manifest lists."""
    specs = manifest["files"][file]
    return {name: golden_tensor(manifest["seed"], spec) for name, spec in specs.items()}


def released(file):
    """{name: tensor} of one released file; "vicuna" is all of its shards."""
    return golden_tensors(RELEASED, file)


def same_tensors(folder, other, *files):
    """Whether files of two weights folders are equal to the byte."""
    return all((folder / file).read_bytes() == (other / file).read_bytes() for file in files)


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
def checkpoints(tmp_path_factory):
    """A folder with every golden checkpoint in its public format, not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.save(released("eva_vit_g.pth"), folder / "eva_vit_g.pth")
    for file in ("blip2_pretrained_flant5xxl.pth", "pretrained_minigpt4.pth"):
        torch.save({"model": released(file)}, folder / file)
    config = RELEASED["llama_config"]
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    inv_freq = 1.0 / 10000 ** (torch.arange(0, head_dim, 2).float() / head_dim)
    buffers = {
        "Qformer.bert.embeddings.position_ids": torch.arange(32)[None],
        "llama_model.model.layers.0.self_attn.0.rotary_emb.inv_freq": inv_freq,
    }
    torch.save({
        "model": released("ArtGPT-4.pth") | buffers,
        "optimizer": {"state": {}, "param_groups": []},
        "config": {"run": {"seed": 42}},
        "scaler": None,
        "epoch": 4,
    }, folder / "ArtGPT-4.pth")
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": inv_freq.clone()
               for i in range(config["num_hidden_layers"])}
    save_llama(folder / "vicuna", config, released("vicuna") | buffers)

    configs = {
        "blip2-hf": HUB["blip2_config"] | {"model_type": "blip-2"},
        "llama-gqa": HUB["llama_gqa_config"],
    }
    for name, config in configs.items():
        (folder / name).mkdir()
        tensors = golden_tensors(HUB, f"{name}/model.safetensors")
        save_file(tensors, folder / name / "model.safetensors")
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
        flags = {
            "vit": "eva_vit_g.pth",
            "qformer": "blip2_pretrained_flant5xxl.pth",
            "llm": "vicuna",
            "adapter": "ArtGPT-4.pth",
            "out": out,
        } | changes
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


# ---- For the tests of convert_weights.py


def close(found, expected):
    """Are two tensors equal to 2e-5, as implementations of the released code are?"""
    return found.shape == expected.shape and (found - expected).abs().max().item() <= 2e-5


@pytest.fixture
def refused(convert, tmp_path, capfd):
    """refused(flag=value, ...): run convert_weights.py, which must fail. Returns the last line of
    its stderr. Nothing may be left behind."""
    def run(**changes):
        (tmp_path / "out").mkdir(exist_ok=True)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            convert(**{"out": tmp_path / "out" / "weights"} | changes)
        assert stopped.value.code == 1
        assert list((tmp_path / "out").iterdir()) == []
        return capfd.readouterr().err.splitlines()[-1]
    return run


@pytest.fixture
def spoiled(checkpoints, tmp_path):
    """spoiled(file, {name: tensor or None}): a golden .pth with other tensors."""
    def make(file, changes):
        tensors = released(file)
        for name, tensor in changes.items():
            tensors.pop(name, None)
            if tensor is not None:
                tensors[name] = tensor
        torch.save({"model": tensors}, tmp_path / file)
        return tmp_path / file
    return make


@pytest.fixture
def vicuna(tmp_path):
    """vicuna(config, tensors): the golden Vicuna with changes; a tensor of None is left out."""
    def make(config=None, tensors=None):
        shutil.rmtree(tmp_path / "vicuna", ignore_errors=True)
        changed = released("vicuna") | (tensors or {})
        changed = {name: tensor for name, tensor in changed.items() if tensor is not None}
        save_llama(tmp_path / "vicuna", RELEASED["llama_config"] | (config or {}), changed)
        return tmp_path / "vicuna"
    return make


@pytest.fixture(scope="session")
def expected_hf():
    """expected_hf.safetensors."""
    return load_file(GOLDEN / "expected_hf.safetensors")


# ---- Training


@pytest.fixture(scope="module")
def training_folder(tmp_path_factory):
    """The working directory of a module's tests, in which the pictures are painted once."""
    folder = tmp_path_factory.mktemp("train")
    with contextlib.chdir(folder):
        yield folder


@pytest.fixture(scope="module")
def gallery(training_folder):
    """A source of 24 paintings."""
    return Gallery(24)


@pytest.fixture(scope="module")
def pairs(training_folder):
    """A folder for --data, with small pictures that do not depend on the gallery."""
    return small_data(training_folder / "pairs")


# ---- For the tests of chat.py and conversation/

LETTERS = slice(259, 300)                                     # ids of single letters


def draw():
    """A picture of four colours, which every format can hold without loss."""
    colours = np.array([[200, 30, 30], [20, 120, 40], [250, 240, 200], [0, 0, 90]], dtype=np.uint8)
    places = np.add.outer(np.arange(30) // 7, np.arange(40) // 11)
    return Image.fromarray(colours[places % 4])


@pytest.fixture(scope="session")
def talker():
    """A model of random weights, to be read only. A bias leaves it with single letters, so that
    its answers are as long as they may be."""
    config = Config(
        image_size=56,
        adapter_width=24,
        vit=ViTConfig(64, 1, 2, 96, 14),
        qformer=QFormerConfig(32, 2, 2, 48, 6, 2),
        llama=LlamaConfig(96, 200, 2, 4, 4, 1e-6, 10000.0, 4096, 321),
    )
    torch.manual_seed(0)
    model = ArtGPT4(config, load_tokenizer(GOLDEN / "tokenizer.model", config)).eval()
    with torch.no_grad():
        for block in model.llama.blocks:
            block.attn.qkv.weight.mul_(10)                    # other pictures, other answers
        model.llama.blocks[-1].adapter.up.bias[0] = 30
        model.llama.head.weight[:, 0] = -3
        model.llama.head.weight[LETTERS, 0] = 0
    return model


@pytest.fixture(scope="session")
def talker_weights(talker, tmp_path_factory):
    """The weights folder of the talker."""
    folder = tmp_path_factory.mktemp("talker")
    save_pretrained(talker, folder)
    return folder


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "picture.png"
    draw().save(file)
    return file


@pytest.fixture
def run_chat(talker_weights, monkeypatch, capsys):
    """run_chat(*arguments, lines=b""): run chat.py in this process with `lines` on its stdin.

    terminal: whether stdin says that it is one. Returns exit code, stdout and stderr.
    """
    def run(*arguments, lines=b"", terminal=False):
        stdin = io.TextIOWrapper(io.BytesIO(lines))
        monkeypatch.setattr(stdin, "isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(sys, "stdin", stdin)
        if "--weights" not in arguments:
            arguments += ("--weights", talker_weights)
        arguments = ["--no-history", "--max-new-tokens", "20", *map(str, arguments)]
        code = 0
        try:
            run_command(chat.main, chat.command_line(), arguments)
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()
    return run


@pytest.fixture
def script(monkeypatch):
    """script(*answers): what the model answers, each a list of pieces and of exceptions to raise.

    Returns a list that fills with the messages of each prompt.
    """
    def script(*answers):
        asked, left = [], list(answers)

        def generate_ids(self, *_, **__):
            self.pieces = []
            for piece in left.pop(0):
                if not isinstance(piece, str):
                    raise piece
                self.pieces.append(piece)
                yield torch.tensor([0])

        def decode(self, ids, whole):
            return "".join(self.pieces)

        def chat_prompt(messages, style):
            asked.append(messages)
            return ""

        monkeypatch.setattr(ArtGPT4, "generate_ids", generate_ids)
        monkeypatch.setattr(ArtGPT4, "decode", decode)
        monkeypatch.setattr(ArtGPT4, "has_ended", lambda self, ids: False)
        monkeypatch.setattr(rounds, "chat_prompt", chat_prompt)
        return asked
    return script


@pytest.fixture
def talk(talker):
    """talk(**settings): a conversation about the picture, with answers of 20 tokens at most and,
    unless the settings say otherwise, at temperature 0."""
    def talk(**settings):
        settings = {"temperature": 0.0, "max_new_tokens": 20} | settings
        conversation = Conversation(talker, **settings)
        conversation.add_image(draw(), "picture.png")
        return conversation
    return talk


def say(conversation, question=None):
    """The whole answer to a question, or another one to the last question."""
    return "".join(conversation.answer(question))


# ---- Evaluation


@pytest.fixture
def benchmark_folder(tmp_path):
    """A folder with a picture or more of each benchmark, and what else may lie there."""
    folder = tmp_path / "benchmark"
    pictures = ("IDC/1.png", "IDC/2.webp", "IDC/10.gif", "ISAC/1.bmp", "ICRC/01.jpg",
                "MDIUC/1.jpeg")
    for i, name in enumerate(pictures):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + i, 16), (40 * i, 90, 200)).save(folder / name)
    for name in ("IDC/notes.txt", "IDC/3.txt", "IDC/cover.jpg", "ISAC/Thumbs.db", "ISAC/2"):
        (folder / name).write_text("not a picture")
    return folder


@pytest.fixture
def quick(benchmark_folder, tmp_path, monkeypatch):
    """QuickRuns of evaluate.py on the benchmark folder."""
    return QuickRuns(benchmark_folder, tmp_path, monkeypatch)
