"""A small model that talks nonsense, a picture, and chat.py in this process."""
import io
import json
import shutil
import sys
from dataclasses import asdict

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import save_file

import artgpt4
import chat
from artgpt4 import ArtGPT4, Config
from common.command_line import run_command
from common.files import save_adapter
from conversation import rounds
from conversation.rounds import Conversation
from tests.conftest import GOLDEN

LETTERS = slice(259, 300)                                     # ids of single letters


def draw():
    """A picture of four colours, which every format can hold without loss."""
    colours = np.array([[200, 30, 30], [20, 120, 40], [250, 240, 200], [0, 0, 90]], dtype=np.uint8)
    places = np.add.outer(np.arange(30) // 7, np.arange(40) // 11)
    return Image.fromarray(colours[places % 4])


def say(talk, question=None):
    """The whole answer to a question, or another one to the last question."""
    return "".join(talk.answer(question))


@pytest.fixture(scope="session")
def talker():
    """A model of random weights, to be read only. A bias leaves it with single letters, so that
    its answers are as long as they may be."""
    config = Config(
        image_size=56, vit_width=64, vit_layers=1, vit_heads=2, vit_mlp_width=96, queries=6,
        qformer_width=32, qformer_layers=2, qformer_heads=2, qformer_mlp_width=48, llama_width=96,
        llama_layers=2, llama_heads=4, llama_kv_heads=4, llama_mlp_width=200, context=4096,
        vocab_size=321, adapter_width=24)
    torch.manual_seed(0)
    file = str(GOLDEN / "tokenizer.model")
    model = ArtGPT4(config, sentencepiece.SentencePieceProcessor(model_file=file)).eval()
    with torch.no_grad():
        model.llama.embed.weight.normal_()
        for block in model.llama.blocks:
            block.attn.qkv.weight.mul_(10)                    # other pictures, other answers
        model.llama.blocks[-1].adapter.up.bias[0] = 30
        model.llama.head.weight[:, 0] = -3
        model.llama.head.weight[LETTERS, 0] = 0
    return model.requires_grad_(False)


def save_model(model, folder, **changes):
    """Write a weights folder of a model, with changes in its config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(asdict(model.config) | changes))
    shutil.copy(GOLDEN / "tokenizer.model", folder)
    frozen = {name: tensor.contiguous() for name, tensor in model.state_dict().items()
              if not name.startswith("proj.") and ".adapter." not in name}
    save_file({n: t for n, t in frozen.items() if n[:6] != "llama."}, folder / "vision.safetensors")
    save_file({n: t for n, t in frozen.items() if n[:6] == "llama."}, folder / "llama.safetensors")
    save_adapter(model, folder / "adapter.safetensors")
    return folder


@pytest.fixture(scope="session")
def talker_weights(talker, tmp_path_factory):
    """The weights folder of the talker."""
    return save_model(talker, tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "picture.png"
    draw().save(file)
    return file


@pytest.fixture
def white(tmp_path):
    """The file of a white picture."""
    Image.new("RGB", (40, 30), "white").save(tmp_path / "white.png")
    return tmp_path / "white.png"


@pytest.fixture
def run_chat(talker_weights, monkeypatch, capsys):
    """run_chat(*arguments, lines=b""): run chat.py in this process with `lines` on its stdin.

    terminal: whether stdin says that it is one. Returns exit code, stdout and stderr.
    """
    def run(*arguments, lines=b"", terminal=False):
        stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(lines)))
        monkeypatch.setattr(stdin, "isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")     # no history
        if "--weights" not in arguments:
            arguments += ("--weights", talker_weights)
        if "--max-new-tokens" not in arguments:
            arguments += ("--max-new-tokens", 20)
        code = 0
        try:
            run_command(chat.main, chat.command_line(), list(map(str, arguments)))
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()
    return run


@pytest.fixture
def script(monkeypatch):
    """script(*answers): what the model answers, each a list of pieces and of exceptions to raise.

    Returns a list that fills with the messages of each prompt that was answered.
    """
    def script(*answers):
        asked, built, left, said = [], [], list(answers), []

        def generate(self, *_, **__):
            asked.append(built[-1])
            said.clear()
            for piece in left.pop(0):
                if not isinstance(piece, str):
                    raise piece
                said.append(piece)
                yield torch.tensor([0])

        def chat_prompt(messages, style):
            built.append(messages)
            return artgpt4.chat_prompt(messages, style)

        monkeypatch.setattr(ArtGPT4, "generate", generate)
        monkeypatch.setattr(ArtGPT4, "decode", lambda self, ids: ("".join(said), False))
        monkeypatch.setattr(rounds, "chat_prompt", chat_prompt)
        return asked
    return script


@pytest.fixture
def talk(talker):
    """talk(**settings): a conversation about the picture, with answers of 20 tokens at most and,
    unless the settings say otherwise, at temperature 0."""
    def talk(**settings):
        conversation = Conversation(talker, **{"temperature": 0.0, "max_new_tokens": 20} | settings)
        conversation.add_image(draw(), "picture.png")
        return conversation
    return talk
