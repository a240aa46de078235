"""Every format reaches the golden data."""
import torch
from safetensors.torch import load_file

from artgpt4 import ArtGPT4
from tests.conftest import HUB, close, golden_tensors


@torch.no_grad()
def test_blip2_of_transformers_reaches_the_golden_data(convert, tmp_path, expected_hf):
    model = ArtGPT4.from_pretrained(convert(tmp_path / "hf", vit="blip2-hf", qformer="blip2-hf"))
    assert len(model.vit.blocks) == 2 and model.ln_vision.eps == 1e-6
    features = model.ln_vision(model.vit(expected_hf["pixels"]))
    assert close(features, expected_hf["vit_ln"])
    assert close(model.qformer(features), expected_hf["qformer"])


def test_the_vit_and_the_qformer_may_come_from_different_formats(convert, tmp_path, weights):
    mixed = load_file(convert(tmp_path / "mixed", qformer="blip2-hf") / "vision.safetensors")
    released = load_file(weights["artgpt4"] / "vision.safetensors")
    vit = [name for name in released if name.startswith("vit.")]
    assert all(torch.equal(mixed[name], released[name]) for name in vit)
    hub = golden_tensors(HUB, "blip2-hf/model.safetensors")
    assert torch.equal(mixed["ln_vision.bias"], hub["vision_model.post_layernorm.bias"])


@torch.no_grad()
def test_grouped_queries_tied_embeddings_and_rope_theta_reach_the_golden_data(
        convert, tmp_path, expected_hf):
    model = ArtGPT4.from_pretrained(convert(tmp_path / "gqa", llm="llama-gqa", adapter=None))
    assert close(model.llama(model.llama.embed(expected_hf["gqa_ids"])), expected_hf["gqa_logits"])
