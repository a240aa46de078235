"""LLaMA in Meta's format, and Vicuna as a delta: the same bytes as in transformers' format."""
import json
import shutil

import pytest
import torch

from artgpt4 import ArtGPT4, rotate
from conversion.formats import META
from conversion.language_models import half_split
from tests.conftest import GOLDEN, HUB, RELEASED, close, golden_tensors, released, save_llama


def interleaved(weight, head_dim):
    """The inverse of half_split."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape(weight.shape)


def save_meta(folder, config, tensors, shards):
    """A language model as Meta releases it, from transformers' names and row order."""
    folder.mkdir()
    heads, width = config["num_attention_heads"], config["hidden_size"]
    parts = [{"rope.freqs": torch.ones(width // heads // 2)} for _ in range(shards)]
    for pattern, (hf_pattern, dim) in META.items():
        blocks = config["num_hidden_layers"] if "{i}" in pattern else 1
        for i in range(blocks):
            weight = tensors[hf_pattern.replace("{i}", str(i)) + ".weight"]
            if pattern.endswith((".wq", ".wk")):
                weight = interleaved(weight, width // heads)
            pieces = [weight] * shards if dim is None else weight.chunk(shards, dim)
            for part, piece in zip(parts, pieces, strict=True):
                part[pattern.replace("{i}", str(i)) + ".weight"] = piece.clone()
    for i, part in enumerate(parts):
        torch.save(part, folder / f"consolidated.{i:02d}.pth")
    (folder / "params.json").write_text(json.dumps({
        "dim": width,
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads"),
        "n_layers": config["num_hidden_layers"],
        "multiple_of": 8,
        "vocab_size": -1,
        "norm_eps": config["rms_norm_eps"],
        "rope_theta": config.get("rope_theta", 10000.0),
    }))
    return folder


@pytest.mark.parametrize("shards", [1, 2])
def test_llama_as_meta_released_it_converts_to_the_same_bytes(convert, weights, tmp_path, shards):
    tensors = released("vicuna")
    meta = save_meta(tmp_path / "13B", RELEASED["llama_config"], tensors, shards)
    shutil.copy(GOLDEN / "tokenizer.model", tmp_path)         # Meta keeps it beside the sizes
    out = convert(tmp_path / "out", llm=meta)
    same = weights["artgpt4"] / "llama.safetensors"
    assert (out / "llama.safetensors").read_bytes() == same.read_bytes()


def test_grouped_queries_of_meta_shards_reach_the_golden_data(convert, tmp_path, expected_hf):
    tensors = golden_tensors(HUB, "llama-gqa/model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    meta = save_meta(tmp_path / "gqa", HUB["llama_gqa_config"], tensors, 2)
    shutil.copy(GOLDEN / "tokenizer.model", meta)
    model = ArtGPT4.from_pretrained(convert(tmp_path / "out", llm=meta, adapter=None))
    with torch.no_grad():
        logits = model.llama(model.llama.embed(expected_hf["gqa_ids"]))
    assert close(logits, expected_hf["gqa_logits"])


def test_meta_shards_that_are_missing_are_noticed(refused, tmp_path):
    config = RELEASED["llama_config"]
    meta = save_meta(tmp_path / "13B", config, released("vicuna"), shards=2)
    (meta / "consolidated.01.pth").unlink()
    line = refused(llm=meta)
    assert "1 consolidated.*.pth hold 48 of 96 rows of wq; shards are missing" in line


def test_rows_of_q_and_k_rotate_as_meta_rotates_them():
    heads, dim, width, tokens = 2, 8, 16, 5
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator)
    q_weight, k_weight = torch.randn(2, heads * dim, width, generator=generator)
    frequency = 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    angle = torch.arange(tokens)[:, None] * frequency         # (T, d/2)

    def by_meta(weight):                                      # two rows are one complex number
        pairs = torch.view_as_complex((x @ weight.T).view(tokens, heads, dim // 2, 2))
        turned = pairs * torch.polar(torch.ones_like(angle), angle)[:, None]
        return torch.view_as_real(turned).flatten(2).transpose(0, 1)

    def by_us(weight):
        states = (x @ half_split(weight, dim).T).view(1, tokens, heads, dim).transpose(1, 2)
        return rotate(states, angle.cos(), angle.sin())[0]
    scores = by_us(q_weight) @ by_us(k_weight).mT             # (H, T, T)
    expected = by_meta(q_weight) @ by_meta(k_weight).mT
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def save_delta(folder, tokens):
    """Write LLaMA with 320 tokens, and the delta that makes it a Vicuna with `tokens`.

    Returns both folders, and the tensors of the sum in float16.
    """
    generator = torch.Generator().manual_seed(0)
    base, delta, total = {}, {}, {}
    for name, tensor in released("vicuna").items():
        vicuna = tensor[:tokens].half() if len(tensor) == 321 else tensor.half()
        base[name] = (vicuna + 0.02 * torch.randn(vicuna.shape, generator=generator)).half()
        if len(tensor) == 321:
            base[name] = base[name][:320].clone()
        extended = torch.zeros_like(vicuna)
        extended[:len(base[name])] = base[name]
        delta[name] = vicuna - extended
        total[name] = extended + delta[name]
    config = RELEASED["llama_config"]
    save_llama(folder / "llama", config | {"vocab_size": 320}, base, ["pytorch_model.bin"])
    save_llama(folder / "delta", config | {"vocab_size": tokens}, delta)
    return folder / "llama", folder / "delta", total


@pytest.mark.parametrize("tokens", [321, 320])                # Vicuna v0, and v1.1
def test_a_vicuna_delta_is_added_in_float16(convert, vicuna, tmp_path, tokens):
    llama, delta, total = save_delta(tmp_path, tokens)
    merged = convert(tmp_path / "merged", llm=llama, delta=delta)
    at_once = convert(tmp_path / "at_once", llm=vicuna({"vocab_size": tokens}, total))
    for file in ("llama.safetensors", "config.json"):
        assert (merged / file).read_bytes() == (at_once / file).read_bytes()


def test_a_delta_given_as_the_model_and_the_reverse_are_refused(refused, vicuna, tmp_path):
    llama, delta, _ = save_delta(tmp_path, 321)
    assert "this is a Vicuna delta (for --delta, with LLaMA as --llm)" in refused(llm=delta)
    assert "expected a Vicuna delta" in refused(llm=llama, delta=vicuna())
    assert "not its delta" in refused(llm="llama-gqa", delta=delta)
    assert "is Vicuna v0 already" in refused(llm=vicuna(), delta=delta)
