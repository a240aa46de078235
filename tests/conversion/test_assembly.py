"""The tensors of the weights folder: dtypes, the untrained adapter, int8, what is refused."""
import pytest
import torch
from safetensors.torch import load_file

from artgpt4 import ArtGPT4
from conversion.assembly import untrained_adapter
from tests.conftest import released


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frozen_weights_keep_the_dtype_of_the_source_and_the_adapter_is_float32(
        convert, vicuna, tmp_path, dtype):
    half = {name: tensor.to(dtype) for name, tensor in released("vicuna").items()}
    out = convert(tmp_path / "half", llm=vicuna(tensors=half))
    assert {tensor.dtype for tensor in load_file(out / "llama.safetensors").values()} == {dtype}
    adapter = load_file(out / "adapter.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert adapter.keys() == set(ArtGPT4.from_pretrained(out).trainable_names())


def test_files_of_different_dtypes_make_one_model(convert, vicuna, checkpoints, tmp_path, expected):
    half = {name: tensor.half() for name, tensor in released("vicuna").items()}
    vit = released("eva_vit_g.pth")
    vit = {name: tensor.half() for name, tensor in vit.items()}
    torch.save(vit, tmp_path / "vit.pth")                    # as published; the rest is float32
    out = convert(tmp_path / "mixed", vit=tmp_path / "vit.pth", llm=vicuna(tensors=half))
    model = ArtGPT4.from_pretrained(out)
    with torch.inference_mode():
        image_embeds = model.encode_image(expected["pixels"])[:1]
        embeds = model.embed_prompt(expected["chat_prompt"], image_embeds)
        logits = model.llama(embeds)[0, -8:]
    assert embeds.dtype == torch.float16
    assert (logits - expected["chat_logits_last_8"]).abs().max() < 0.1


def test_what_no_adapter_file_holds_starts_as_training_does(weights):
    start = load_file(weights["start"] / "adapter.safetensors")
    minigpt4 = load_file(weights["minigpt4"] / "adapter.safetensors")
    model = ArtGPT4.from_pretrained(weights["start"])
    assert start.keys() == minigpt4.keys() == set(model.trainable_names())
    torch.manual_seed(42)
    for name, tensor in untrained_adapter(model.config):
        assert torch.equal(start[name], tensor), name
        assert torch.equal(minigpt4[name], tensor) or name.startswith("proj."), name
    bias = released("pretrained_minigpt4.pth")["llama_proj.bias"]
    assert torch.equal(minigpt4["proj.bias"], bias)
    norm = released("vicuna")["model.layers.2.input_layernorm.weight"]
    for adapter in (start, minigpt4):
        assert torch.equal(adapter["llama.blocks.2.attn_norm.weight"], norm)


def test_int8_keeps_each_row_within_half_a_step(convert, weights, tmp_path):
    small = load_file(convert(tmp_path / "int8", int8=True) / "llama.safetensors")
    full = load_file(weights["artgpt4"] / "llama.safetensors")
    matrices = [name for name, tensor in small.items() if tensor.dtype == torch.int8]
    assert len(matrices) == 4 * 4
    assert not any("embed" in name or "head" in name for name in matrices)
    for name, tensor in full.items():
        if name in matrices:
            scale = small[name.replace(".weight", ".scale")]
            assert torch.equal(scale, tensor.abs().amax(dim=1) / 127)
            assert ((small[name] * scale[:, None] - tensor).abs() <= scale[:, None] * 0.5001).all()
        else:
            assert torch.equal(small[name], tensor)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_int8_model_answers_nearly_as_the_full_one_and_trains(
        convert, model, expected, tmp_path, dtype):
    small = ArtGPT4.from_pretrained(convert(tmp_path / "int8", int8=True), dtype=dtype)
    assert small.llama.blocks[0].attn.qkv.weight.dtype == torch.int8
    assert small.llama.blocks[0].attn.qkv.scale.dtype == torch.float32
    with torch.no_grad():
        embeds = model.embed_prompt(expected["chat_prompt"], expected["image_embeds"][:1])
        full = model.llama(embeds)
        found = small.llama(embeds.to(small.llama.embed.weight.dtype))
    assert (found - full).norm() / full.norm() < 0.05
    optimizer = torch.optim.AdamW(small.freeze(), lr=1e-3)
    before = small.llama.blocks[0].adapter.down.weight.clone()
    small.loss(expected["pixels"], expected["captions"]).backward()
    optimizer.step()
    assert not torch.equal(before, small.llama.blocks[0].adapter.down.weight)


def test_a_missing_tensor_is_named(refused, spoiled, vicuna):
    name = "blocks.0.norm2.bias"
    assert f"{name} is missing" in refused(vit=spoiled("eva_vit_g.pth", {name: None}))
    name = "model.norm.weight"
    assert f"{name} is missing" in refused(llm=vicuna(tensors={name: None}))
    name = "Qformer.bert.encoder.layer.2.crossattention.self.key.weight"
    qformer = spoiled("blip2_pretrained_flant5xxl.pth", {name: None})
    assert f"{name} is missing" in refused(qformer=qformer)
    name = "llama_model.model.layers.2.input_layernorm.weight"
    assert f"{name} is missing" in refused(adapter=spoiled("ArtGPT-4.pth", {name: None}))


def test_an_unknown_tensor_is_named(refused, spoiled, vicuna):
    extra = torch.zeros(2)
    line = refused(vit=spoiled("eva_vit_g.pth", {"blocks.0.gamma_1": extra}))
    assert "blocks.0.gamma_1 is not part" in line
    line = refused(llm=vicuna(tensors={"model.layers.0.self_attn.q_proj.bias": extra}))
    assert "q_proj.bias is not part" in line


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(refused, spoiled, vicuna):
    line = refused(vit=spoiled("eva_vit_g.pth", {"blocks.1.norm1.bias": torch.zeros(175)}))
    assert "blocks.1.norm1.bias: (175,); expected (176,)" in line
    short = {"model.layers.3.self_attn.k_proj.weight": torch.zeros(95, 96)}
    line = refused(llm=vicuna(tensors=short))
    assert ("model.layers.3.self_attn.q_proj.weight: (96, 96) + (95, 96) + (96, 96); "
            "expected (288, 96)") in line


def test_an_adapter_for_another_language_model_is_refused(refused, spoiled):
    narrow = {"llama_proj.weight": torch.zeros(64, 128)}
    line = refused(adapter=spoiled("pretrained_minigpt4.pth", narrow))
    assert "made for a language model whose width is 64; that of --llm is 96" in line
    block = "llama_model.model.layers.4.self_attn.1."
    deeper = {
        f"{block}down.weight": torch.zeros(24, 96),
        f"{block}down.bias": torch.zeros(24),
        f"{block}up.weight": torch.zeros(96, 24),
        f"{block}up.bias": torch.zeros(96),
    }
    line = refused(adapter=spoiled("ArtGPT-4.pth", deeper))
    assert "made for a language model whose number of blocks is 5; that of --llm is 4" in line
