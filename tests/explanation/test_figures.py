"""The figures of a page, and what is recorded of a model, beside arithmetic by hand."""
import base64
import inspect
import io
import re
from html import unescape
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import artgpt4
from artgpt4 import Config
from explanation import figures
from explanation.chapters import changed, counts, short
from explanation.recording import WITHOUT_ADAPTERS, chances


def pixels(html):
    """The first PNG in a text, numpy."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(re.search(r"png;base64,([^\"]+)",
                                                                     html)[1]))))


def test_a_listing_is_the_source_of_the_model_at_this_moment():
    source, first = inspect.getsourcelines(artgpt4.Adapter)
    html = unescape(figures.listing(artgpt4.Adapter))
    assert "".join(source).rstrip() in html and f"line {first}<" in html


def test_the_veil_is_clear_at_the_highest_value_and_darkest_at_the_lowest():
    html = figures.lit(np.array([[0.0, 1.0], [0.5, 0.0]]), "a<b", "below", (1, 0))
    assert pixels(html)[..., 1].tolist() == [[215, 0], [107, 215]]
    assert 'aria-label="a&lt;b"' in html and "below" in html and "M0 1h1" in html


@pytest.mark.parametrize("config", [Config(), Config(adapter_width=0)])
def test_the_drawings_are_svg_with_the_shapes_of_the_model(config):
    whole, block = figures.drawings(config)
    for drawing in (whole, block):
        ElementTree.fromstring(drawing)
    assert "257 × 1408" in whole and "32 × 5120" in whole and "32,001 scores" in whole
    assert ("5120 → 1280" in block) == (config.adapter_width > 0)


def test_new_words_are_marked_and_sentences_that_stay_left_out():
    before = "A cat sits. It is red. The sky & sea."
    assert changed(before, before) == ""
    assert changed("A dog sits. It is red. The sky & sea.", before) == (
        "A <mark>dog</mark> sits. … ")
    assert changed("A cat sits. The <b> sea.", before) == "… The <mark>&lt;b&gt;</mark> sea. "


def test_every_parameter_is_counted_once(model):
    parts, trained = counts(model.config), set(model.trainable_names())
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    trainable = sum(sizes[name] for name in trained)
    assert parts["together"][:2] == [sum(sizes.values()), trainable]
    assert parts["together"][2] == 2 * (sum(sizes.values()) + trainable)
    assert parts["adapters"][0] == sum(n for name, n in sizes.items() if ".adapter." in name)
    of_13b = counts(Config())
    assert of_13b["adapters"][0] == 40 * (2 * 5120 * 1280 + 5120 + 1280)
    assert short(of_13b["adapters"][0])[:3] == "525"
    trained = of_13b["together"][1]               # with two moments as large as ArtGPT-4.pth
    assert trained == 528_788_480 and f"{12 * trained / 1e9:.3f}" == "6.345"


@torch.inference_mode()
def test_chances_are_those_of_the_model_and_adapters_can_be_taken_out(model):
    embeds, ids = torch.randn(1, 5, model.config.llama_width), [7, 3, 9]
    whole = torch.cat((embeds, model.llama.embed(torch.tensor([ids[:-1]]))), dim=1)
    steps = model.llama(whole)[0, 4:].softmax(dim=-1)
    expected = torch.stack([steps[i, token] for i, token in enumerate(ids)])
    assert torch.allclose(chances(model, embeds, ids), expected, atol=1e-6)
    with WITHOUT_ADAPTERS:
        assert all(torch.equal(block.adapter(whole), whole) for block in model.llama.blocks)
        assert not torch.allclose(chances(model, embeds, ids), expected, atol=1e-6)
    assert torch.allclose(chances(model, embeds, ids), expected, atol=1e-6)
