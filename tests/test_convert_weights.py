"""convert_weights.py on the golden checkpoints: every format in, the bytes that come out, and every refusal."""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from artgpt4 import ArtGPT4, initial_adapter, trainable_names
from conftest import GOLDEN, VICUNA_SHARDS, golden_tensors, save_llama

RELEASED = json.loads((GOLDEN / "manifest.json").read_text())


@pytest.fixture
def refused(convert, tmp_path, capfd):
    """refused(flag=value, ...): the one line with which convert_weights.py refuses; nothing may be left behind."""
    def run(**changes):
        (tmp_path / "out").mkdir(exist_ok=True)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            convert(**{"out": tmp_path / "out" / "weights"} | changes)
        assert stopped.value.code == 1
        assert list((tmp_path / "out").iterdir()) == []
        lines = capfd.readouterr().err.splitlines()
        return lines[-1]
    return run


@pytest.fixture
def spoiled(checkpoints, tmp_path):
    """spoiled(file, {name: tensor or None}): a copy of a golden .pth with tensors replaced or taken out."""
    def make(file, changes):
        tensors = golden_tensors(RELEASED, file)
        for name, tensor in changes.items():
            tensors.pop(name, None)
            if tensor is not None:
                tensors[name] = tensor
        torch.save({"model": tensors}, tmp_path / file)
        return tmp_path / file
    return make


@pytest.fixture
def vicuna(tmp_path):
    """vicuna(config changes, tensor changes): a changed copy of the golden Vicuna."""
    def make(config=None, tensors=None):
        shutil.rmtree(tmp_path / "vicuna", ignore_errors=True)
        changed = golden_tensors(RELEASED, "vicuna") | (tensors or {})
        save_llama(tmp_path / "vicuna", RELEASED["llama_config"] | (config or {}),
                   {name: tensor for name, tensor in changed.items() if tensor is not None})
        return tmp_path / "vicuna"
    return make


def test_sizes_follow_from_the_files(weights):
    config = json.loads((weights["artgpt4"] / "config.json").read_text())
    assert config["image_size"] == 56 and config["adapter_width"] == 24 and config["ln_vision_eps"] == 1e-5
    assert config["vit"] == {"width": 176, "layers": 2, "heads": 2, "mlp_width": 768, "patch_size": 14}
    assert config["qformer"] == {"width": 128, "layers": 4, "heads": 2, "mlp_width": 192, "queries": 6,
                                 "cross_every": 2}
    assert config["llama"]["num_key_value_heads"] == 4 and config["llama"]["vocab_size"] == 321


def test_vit_layers_may_be_chosen(convert, tmp_path):
    assert len(ArtGPT4.from_pretrained(convert(tmp_path / "all", vit_layers=3)).vit.blocks) == 3


def test_frozen_weights_keep_the_bytes_of_the_source(weights):
    llama, vicuna = load_file(weights["artgpt4"] / "llama.safetensors"), golden_tensors(RELEASED, "vicuna")
    block = "model.layers.1.self_attn."
    assert torch.equal(llama["llama.blocks.1.attn.qkv.weight"],
                       torch.cat([vicuna[f"{block}{part}_proj.weight"] for part in "qkv"]))
    assert torch.equal(llama["llama.blocks.0.mlp_norm.weight"],
                       vicuna["model.layers.0.post_attention_layernorm.weight"])
    vision, vit = load_file(weights["artgpt4"] / "vision.safetensors"), golden_tensors(RELEASED, "eva_vit_g.pth")
    q_bias, zeros, v_bias = vision["vit.blocks.1.attn.qkv.bias"].chunk(3)
    assert torch.equal(q_bias, vit["blocks.1.attn.q_bias"]) and torch.equal(v_bias, vit["blocks.1.attn.v_bias"])
    assert not zeros.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frozen_weights_keep_the_dtype_of_the_source_and_the_adapter_is_float32(convert, vicuna, tmp_path, dtype):
    half = {name: tensor.to(dtype) for name, tensor in golden_tensors(RELEASED, "vicuna").items()}
    out = convert(tmp_path / "half", llm=vicuna(tensors=half))
    assert {tensor.dtype for tensor in load_file(out / "llama.safetensors").values()} == {dtype}
    adapter = load_file(out / "adapter.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert adapter.keys() == set(trainable_names(ArtGPT4.from_pretrained(out).config))


def test_what_no_adapter_file_holds_starts_as_training_does(weights):
    start, minigpt4 = (load_file(weights[name] / "adapter.safetensors") for name in ("start", "minigpt4"))
    config, vicuna = ArtGPT4.from_pretrained(weights["start"]).config, golden_tensors(RELEASED, "vicuna")
    assert start.keys() == minigpt4.keys() == set(trainable_names(config))
    torch.manual_seed(42)
    for name, tensor in initial_adapter(config):
        assert torch.equal(start[name], tensor), name
        assert torch.equal(minigpt4[name], tensor) or name.startswith("proj."), name
    assert torch.equal(minigpt4["proj.bias"], golden_tensors(RELEASED, "pretrained_minigpt4.pth")["llama_proj.bias"])
    for norms in (start, minigpt4):
        assert torch.equal(norms["llama.blocks.2.attn_norm.weight"], vicuna["model.layers.2.input_layernorm.weight"])


def test_the_end_says_what_was_written_and_what_to_type_next(convert, tmp_path, capsys):
    trained = convert(tmp_path / "trained")
    assert f"next: python chat.py --weights {trained} image.jpg" in capsys.readouterr().out
    start = convert(tmp_path / "start", adapter=None)
    said = capsys.readouterr().out
    assert f"next: python train.py --stage 1 --weights {start}" in said
    assert f"{start}/llama.safetensors" in said and "float32" in said


# What is refused: one line that names the file and what is wrong with it


def test_an_output_folder_that_exists_is_refused_and_kept(convert, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit):
        convert(tmp_path / "mine")
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_missing_tensor_is_named(refused, spoiled, vicuna):
    assert "blocks.0.norm2.bias is missing" in refused(vit=spoiled("eva_vit_g.pth", {"blocks.0.norm2.bias": None}))
    assert "model.norm.weight is missing" in refused(llm=vicuna(tensors={"model.norm.weight": None}))
    name = "Qformer.bert.encoder.layer.2.crossattention.self.key.weight"
    assert f"{name} is missing" in refused(qformer=spoiled("blip2_pretrained_flant5xxl.pth", {name: None}))
    name = "llama_model.model.layers.2.input_layernorm.weight"
    assert f"{name} is missing" in refused(adapter=spoiled("ArtGPT-4.pth", {name: None}))


def test_an_unknown_tensor_is_named(refused, spoiled, vicuna):
    extra = torch.zeros(2)
    assert "blocks.0.gamma_1 is no part" in refused(vit=spoiled("eva_vit_g.pth", {"blocks.0.gamma_1": extra}))
    assert "q_proj.bias is no part" in refused(llm=vicuna(tensors={"model.layers.0.self_attn.q_proj.bias": extra}))


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(refused, spoiled, vicuna):
    line = refused(vit=spoiled("eva_vit_g.pth", {"blocks.1.norm1.bias": torch.zeros(175)}))
    assert "blocks.1.norm1.bias: (175,); (176,) was expected" in line
    line = refused(llm=vicuna(tensors={"model.layers.3.self_attn.k_proj.weight": torch.zeros(95, 96)}))
    assert "model.layers.3.self_attn.q_proj.weight: (96, 96) + (95, 96) + (96, 96); (288, 96) was expected" in line


def test_a_tensor_with_nan_or_infinity_is_named(refused, spoiled, vicuna):
    for bad in (float("nan"), float("inf"), -float("inf")):
        weight = golden_tensors(RELEASED, "vicuna")["model.layers.2.mlp.up_proj.weight"]
        weight[150, 50] = bad
        line = refused(llm=vicuna(tensors={"model.layers.2.mlp.up_proj.weight": weight}))
        assert f"{VICUNA_SHARDS[1]}: model.layers.2.mlp.up_proj.weight: holds NaN or infinity" in line


@pytest.mark.parametrize("key, value", [
    ("rope_scaling", {"type": "linear", "factor": 2.0}), ("attention_bias", True), ("mlp_bias", True),
    ("hidden_act", "gelu"), ("model_type", "mistral"), ("head_dim", 32), ("quantization_config", {"bits": 4}),
    ("rope_parameters", {"rope_type": "yarn", "factor": 4.0}), ("sliding_window", 4096),
])
def test_a_setting_that_would_change_the_arithmetic_is_refused_by_name(refused, vicuna, key, value):
    line = refused(llm=vicuna(config={key: value}))
    assert ("rope_scaling" if key == "rope_parameters" else key) in line and "config.json" in line


def test_files_in_each_others_place_are_recognised(refused):
    assert "this is BLIP-2's Q-Former; expected EVA-ViT-g" in refused(vit="blip2_pretrained_flant5xxl.pth")
    assert "this is EVA-ViT-g; expected BLIP-2's Q-Former" in refused(qformer="eva_vit_g.pth")


def test_misuse_is_exit_code_2(convert, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        convert(tmp_path / "out", vit=None)
    assert stopped.value.code == 2
    assert "--vit" in capsys.readouterr().err
