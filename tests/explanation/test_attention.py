"""Attention that is computed once more: with its weights comes what the module itself gave."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from artgpt4 import (
    ArtGPT4, KVCache, Llama, LlamaAttention, LlamaConfig, join_heads, preprocess, split_heads)
from common.files import open_image
from explanation.attention import last_token_weights, qformer_weights
from explanation.recording import hooked

ROOT = Path(__file__).parent.parent.parent
SMALL = LlamaConfig(64, 96, 2, 4, 4, vocab_size=100)


@torch.no_grad()
def test_the_weights_of_a_query_give_the_output_of_cross_attention():
    model = ArtGPT4.from_pretrained(ROOT / "weights" / "tiny", dtype=torch.float32)
    image = open_image(ROOT / "samples" / "couple.png")
    checked = []

    def check(module, inputs, output):
        x, source = inputs
        weights = qformer_weights(module, x, source)
        values = split_heads(module.value(source), module.heads)
        again = module.norm(x + module.out(join_heads(weights @ values)))
        checked.append((again - output).abs().max().item())
        assert torch.allclose(weights.sum(dim=-1), torch.ones(()), atol=1e-5)

    cross = [layer.cross_attn for layer in model.qformer.layers if layer.cross_attn is not None]
    with hooked(*((module, check) for module in cross)):
        model.encode_image(preprocess(image, model.config.image_size)[None])
    assert len(checked) == len(cross) == 2
    assert max(checked) < 1e-4


@pytest.mark.parametrize("kv_heads", (4, 2, 1))
@torch.no_grad()
def test_the_weights_of_the_last_token_give_the_output_of_its_attention(kv_heads):
    torch.manual_seed(0)
    llama = Llama(replace(SMALL, num_key_value_heads=kv_heads), 8).eval()
    seen, checked = {}, []

    def keep(module, inputs, output):
        seen["qkv"] = output

    def check(module, inputs, output):
        _, cos, sin, _, cache = inputs
        weights = last_token_weights(module, seen["qkv"], cos, sin, cache)
        end = cache.length + len(cos)
        assert weights.shape == (1, 4, end)
        values = cache.layers[module.layer][1][:, :, :end]
        values = values.repeat_interleave(4 // kv_heads, dim=1)
        again = module.out(join_heads(weights[:, :, None] @ values))
        checked.append((again - output[:, -1:]).abs().max().item())

    attentions = [module for module in llama.modules() if isinstance(module, LlamaAttention)]
    cache = KVCache()
    with hooked(*((module.qkv, keep) for module in attentions),
                *((module, check) for module in attentions)):
        for new in (7, 1, 3, 1):                              # prefill, decode, another question
            llama(torch.randn(1, new, 64), cache)
    assert len(checked) == 8
    assert max(checked) < 1e-5
