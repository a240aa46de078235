"""The costs that are counted on shapes, beside arithmetic by hand."""
from pathlib import Path

import pytest

from artgpt4 import Config
from common.loading import load_folder
from explanation.costs import cache_bytes, costs

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def tiny():
    return load_folder(ROOT / "weights" / "tiny")


def test_every_parameter_is_counted_once(tiny):
    parts = costs(tiny.config, 50)
    assert sum(part.parameters for part in parts.values()) == sum(
        p.numel() for p in tiny.parameters())
    trained = tiny.freeze()
    assert sum(part.trainable for part in parts.values()) == sum(p.numel() for p in trained)


def test_multiplications_are_those_of_the_formulas(tiny):
    tokens, parts = 50, costs(tiny.config, 50)
    d, inner, blocks, vocabulary = 192, 512, 4, tiny.config.llama.vocab_size
    block = 4 * d * d + 3 * d * inner
    attention = 2 * d * tokens * (tokens + 1) // 2
    last = tokens * 3 * d * d + d * d + 3 * d * inner + 2 * d * tokens   # one token asks there
    language = parts["language model"]
    assert language.multiplications == (
        (blocks - 1) * (tokens * block + attention) + last + d * vocabulary)
    assert language.for_a_word == blocks * (block + 2 * d * (tokens + 1)) + d * vocabulary
    assert parts["adapters"].multiplications == ((blocks - 1) * tokens + 1) * 2 * d * 48
    assert parts["projection"].multiplications == 16 * 128 * d
    w, patches = 176, 65
    vit = 64 * w * 3 * 14 * 14 + 6 * (patches * (4 * w * w + 2 * w * 704) + 2 * patches ** 2 * w)
    assert parts["ViT"].multiplications == vit
    q, queries = 128, 16
    every_layer = queries * (4 * q * q + 2 * q * 512) + 2 * queries ** 2 * q
    cross = queries * 2 * q * q + patches * 2 * w * q + 2 * queries * patches * q
    assert parts["Q-Former"].multiplications == 4 * every_layer + 2 * cross
    assert parts["ViT"].for_a_word == parts["Q-Former"].for_a_word == 0


def test_the_13b_is_counted_without_its_weights():
    parts = costs(Config(), 67)
    adapters = 40 * (2 * 5120 * 1280 + 5120 + 1280)
    assert parts["adapters"].parameters == parts["adapters"].trainable == adapters
    assert parts["adapters"].size == 4 * adapters
    matrices = 40 * (4 * 5120 ** 2 + 3 * 5120 * 13824) + 5120 * 32001
    language = parts["language model"]
    assert language.size - language.size_int8 == matrices     # 2 bytes become 1
    assert cache_bytes(Config()) == 40 * 2 * 5120 * 2


def test_int8_and_models_without_adapters_can_be_counted():
    config = Config.from_dict({"adapter_width": 0, "llama": {"num_hidden_layers": 2}})
    config.llama.int8 = config.vit.int8 = True
    parts = costs(config, 67)
    assert parts["adapters"] == (0, 0, 0, 0, 0, 0)
    assert config.llama.int8                                  # the caller's stays as it was
