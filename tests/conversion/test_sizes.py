"""Every size follows from the files; what artgpt4.py does not compute is refused by name."""
import json

import pytest
import torch

from artgpt4 import ArtGPT4
from tests.conftest import released


def test_sizes_follow_from_the_files(weights):
    config = json.loads((weights["artgpt4"] / "config.json").read_text())
    assert config["image_size"] == 56
    assert config["adapter_width"] == 24
    assert config["ln_vision_eps"] == 1e-5
    assert config["vit"] == {
        "width": 176, "layers": 2, "heads": 2, "mlp_width": 768, "patch_size": 14, "int8": False}
    assert config["qformer"] == {
        "width": 128, "layers": 4, "heads": 2, "mlp_width": 192, "queries": 6, "cross_every": 2}
    assert config["llama"]["num_key_value_heads"] == 4
    assert config["llama"]["vocab_size"] == 321


def test_vit_layers_may_be_chosen(convert, tmp_path):
    assert len(ArtGPT4.from_pretrained(convert(tmp_path / "all", vit_layers=3)).vit.blocks) == 3


@pytest.mark.parametrize("qformer", ["blip2-hf", "blip2_pretrained_flant5xxl.pth"])
def test_fewer_blocks_of_a_vit_may_be_kept(convert, tmp_path, qformer):
    out = convert(tmp_path / "one", vit="blip2-hf", qformer=qformer, vit_layers=1)
    assert ArtGPT4.from_pretrained(out).config.vit.layers == 1


def test_rope_theta_is_also_read_where_newer_releases_keep_it(convert, vicuna, tmp_path):
    nested = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    model = ArtGPT4.from_pretrained(convert(tmp_path / "new", llm=vicuna(nested)))
    assert model.config.llama.rope_theta == 500000.0


@pytest.mark.parametrize("key, value", [
    ("model_type", "mistral"),
    ("hidden_act", "gelu"),
    ("head_dim", 32),
    ("rope_scaling", {"type": "linear", "factor": 2.0}),
    ("rope_parameters", {"rope_type": "yarn", "factor": 4.0}),
    ("attention_bias", True),
    ("mlp_bias", True),
    ("sliding_window", 4096),
    ("quantization_config", {"bits": 4}),
])
def test_a_setting_that_would_change_the_arithmetic_is_refused_by_name(refused, vicuna, key, value):
    line = refused(llm=vicuna(config={key: value}))
    named = "rope_scaling" if key == "rope_parameters" else key
    assert named in line and "config.json" in line


def test_sizes_that_make_no_sense_are_named(refused, vicuna, spoiled):
    assert 'hidden_size is "96"' in refused(llm=vicuna({"hidden_size": "96"}))
    assert "num_hidden_layers is 0" in refused(llm=vicuna({"num_hidden_layers": 0}))
    line = refused(llm=vicuna({"num_attention_heads": 5}))
    assert "num_attention_heads is 5; expected a divisor" in line
    assert "rms_norm_eps is null" in refused(llm=vicuna({"rms_norm_eps": None}))
    assert "expected a multiple of 14" in refused(image_size=50)
    assert "3 blocks, but --vit-layers is 4" in refused(vit_layers=4)
    flat = spoiled("eva_vit_g.pth", {"cls_token": torch.zeros(176)})
    assert "cls_token: (176,); expected (1, 1, 176)" in refused(vit=flat)
    flat = spoiled("eva_vit_g.pth", {"pos_embed": torch.zeros(17, 176)})
    assert "expected 3 dimensions" in refused(vit=flat)
    no_square = spoiled("eva_vit_g.pth", {"pos_embed": torch.zeros(1, 19, 176)})
    assert "expected a square number and 1" in refused(vit=no_square)


def shortened(tokens):
    """The embedding and the head of the golden Vicuna, cut to `tokens` rows."""
    tensors = released("vicuna")
    names = ("model.embed_tokens.weight", "lm_head.weight")
    return {name: tensors[name][:tokens].clone() for name in names}


def test_a_tokenizer_with_more_pieces_than_the_embedding_is_refused(refused, vicuna):
    line = refused(llm=vicuna({"vocab_size": 300}, shortened(300)))
    assert "tokenizer.model: 320 pieces, but the language model has an embedding for 300" in line


def test_another_llama_than_vicuna_v0_converts_with_a_warning(convert, vicuna, tmp_path, capsys):
    config = {"vocab_size": 320, "max_position_embeddings": 4096}
    convert(tmp_path / "v1.5", llm=vicuna(config, shortened(320)))
    line = next(line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert "has 320 tokens: Vicuna v1.5 or LLaMA 2" in line
    assert "made for Vicuna v0, which has 321" in line
    convert(tmp_path / "v0")
    assert "warning" not in capsys.readouterr().err
