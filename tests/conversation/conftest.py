"""The tiny model, pictures, and chat.py in this process."""
import io
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import artgpt4
import chat
from artgpt4 import ArtGPT4
from common.models import TINY, load
from conversation import rounds
from conversation.rounds import Conversation
from tests.conftest import run


def draw():
    """A picture of four colours, which every format can hold without loss."""
    colours = np.array([[200, 30, 30], [20, 120, 40], [250, 240, 200], [0, 0, 255]], dtype=np.uint8)
    places = np.add.outer(np.arange(30) // 7, np.arange(40) // 11)
    return Image.fromarray(colours[places % 4])


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
def run_chat(tiny, monkeypatch, capsys):
    """run_chat(*arguments, lines=b"", typed=False): chat.py with the tiny model, without measures
    of familiarity, with `lines` on its stdin, which says whether it is a terminal -> exit code,
    stdout and stderr."""
    monkeypatch.setenv("HOME", "/dev/null")                   # no history

    def run_chat(*arguments, lines=b"", typed=False):
        stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(lines)))
        monkeypatch.setattr(stdin, "isatty", lambda: typed, raising=False)
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(chat, "read_measure", lambda *_: None)
        monkeypatch.setattr(chat, "load", lambda args: tiny if args.weights == TINY else load(args))
        return run(chat.main, chat.command_line(), *arguments), *capsys.readouterr()
    return run_chat


@pytest.fixture
def script(monkeypatch):
    """script(*answers): what the model answers, each a list of pieces and of exceptions to raise
    or signals -> a list that fills with the messages of each prompt that was answered."""
    def script(*answers):
        asked, built, left, said = [], [], list(answers), []

        def generate(self, *_, **__):
            asked.append(built[-1])
            said.clear()
            for piece in left.pop(0):
                if isinstance(piece, signal.Signals):
                    signal.raise_signal(piece)
                    continue
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
def talk(tiny):
    """talk(**settings): a conversation about the picture, with answers of 20 tokens at most and,
    unless the settings say otherwise, at temperature 0."""
    def talk(**settings):
        conversation = Conversation(tiny, **{"temperature": 0.0, "max_new_tokens": 20} | settings)
        conversation.add_image(draw(), "picture.png")
        return conversation
    return talk
