"""Every layout that the public checkpoints come in gives the golden values, or the same bytes."""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from artgpt4 import ArtGPT4, rotate
from conversion.checkpoints import half_split
from tests.conftest import HUB, RELEASED, close, golden_tensors, released, save_llama
from tests.conversion.conftest import (
    interleaved,
    save_delta,
    save_instructblip,
    save_itm,
    save_meta,
)


def same(folder, other, file="llama.safetensors"):
    return (folder / file).read_bytes() == (other / file).read_bytes()


@torch.no_grad()
@pytest.mark.parametrize("layout", ["blip2-hf", "itm", "instructblip", "eps"])
def test_the_picture_side_of_transformers_reaches_the_golden_data(
        convert, changed, tmp_path, expected_hf, layout):
    folder = layout
    if layout == "eps":                                       # an old default: not of the weights
        vision = HUB["blip2_config"]["vision_config"] | {"layer_norm_eps": 1e-5}
        folder = changed("blip2-hf", config={"vision_config": vision})
    elif layout != "blip2-hf":
        folder = {"itm": save_itm, "instructblip": save_instructblip}[layout](tmp_path / layout)
    model = ArtGPT4.from_pretrained(convert(tmp_path / "out", vit=folder, qformer=folder))
    features = model.ln_vision(model.vit(expected_hf["pixels"]))
    assert model.ln_vision.eps == (1e-5 if layout == "eps" else 1e-6)
    assert len(model.vit.blocks) == 2 and close(features, expected_hf["vit_ln"])
    assert close(model.qformer(features), expected_hf["qformer"])


def test_the_vit_and_the_qformer_may_come_from_different_formats(convert, tmp_path, weights):
    mixed = load_file(convert(tmp_path / "mixed", qformer="blip2-hf") / "vision.safetensors")
    ours = load_file(weights["artgpt4"] / "vision.safetensors")
    assert all(torch.equal(mixed[name], ours[name]) for name in ours if name.startswith("vit."))
    hub = golden_tensors(HUB, "blip2-hf/model.safetensors")
    assert torch.equal(mixed["ln_vision.bias"], hub["vision_model.post_layernorm.bias"])


def test_the_vicuna_of_instructblip_keeps_its_rows_and_speaks_v1(
        convert, weights, tmp_path, capsys):
    folder = save_instructblip(tmp_path / "instructblip")
    out = convert(tmp_path / "out", llm=folder)
    config, made = json.loads((out / "config.json").read_text()), load_file(out / "llama.safetensors")
    assert (config["vocab_size"], config["context"], config["prompt"]) == (323, 2048, "vicuna_v1")
    for name, value in load_file(weights["artgpt4"] / "llama.safetensors").items():
        assert torch.equal(made[name][:len(value)], value), name
    assert "noise" in capsys.readouterr().err                 # ArtGPT-4.pth is for another Vicuna


@torch.no_grad()
def test_grouped_queries_tied_embeddings_and_rope_theta_reach_the_golden_data(
        convert, tmp_path, expected_hf):
    tensors = golden_tensors(HUB, "llama-gqa/model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    meta = save_meta(tmp_path / "meta", HUB["llama_gqa_config"], tensors)
    for folder in ("llama-gqa", meta):
        out = convert(tmp_path / f"{folder}-out".rpartition("/")[2], llm=folder, adapter=None)
        model = ArtGPT4.from_pretrained(out)
        logits = model.llama(model.llama.embed(expected_hf["gqa_ids"]))
        assert close(logits, expected_hf["gqa_logits"])


OLD = {"max_position_embeddings": "absent", "rms_norm_eps": "absent", "bos_token_id": 0,
       "eos_token_id": 1, "architectures": ["LLaMAForCausalLM"]}
LLMS = {  # settings of the golden Vicuna's config.json: what its Config then differs in
    "max_sequence_length": (OLD | {"max_sequence_length": 1024}, {"context": 1024}),
    "no context": (OLD, {"context": 2048}),
    "plain rope": ({"rope_scaling": {"rope_type": "default"}, "rope_parameters": {
        "type": "default", "rope_theta": 10000.0}}, {}),
    "theta": ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
              {"rope_theta": 5e5}),
}


@pytest.mark.parametrize("case", LLMS)
def test_a_config_json_of_another_year_gives_the_same_model(
        convert, changed, weights, tmp_path, case):
    settings, differs = LLMS[case]
    out = convert(tmp_path / "out", llm=changed("vicuna", config=settings))
    config = json.loads((weights["artgpt4"] / "config.json").read_text())
    assert json.loads((out / "config.json").read_text()) == config | differs
    assert same(out, weights["artgpt4"])


@pytest.mark.parametrize("shards", [1, 2])
def test_llama_as_meta_released_it_converts_to_the_same_bytes(convert, weights, tmp_path, shards):
    meta = save_meta(tmp_path / "13B", RELEASED["llama_config"], released("vicuna"), shards)
    (meta / "tokenizer.model").rename(tmp_path / "tokenizer.model")    # as Meta has it
    assert same(convert(tmp_path / "out", llm=meta), weights["artgpt4"])


def test_rows_of_q_and_k_rotate_as_meta_rotates_them():
    heads, dim, width, tokens = 2, 8, 16, 5
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator)
    q_weight, k_weight = torch.randn(2, heads * dim, width, generator=generator)
    assert torch.equal(half_split(interleaved(q_weight, dim), dim), q_weight)
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


@pytest.mark.parametrize("tokens, prompt", [(321, "vicuna_v0"), (320, "vicuna_v1")])
def test_a_vicuna_delta_is_added_in_float16(convert, tmp_path, tokens, prompt):
    llama, delta, total = save_delta(tmp_path, tokens)
    if tokens == 320:
        delta = delta.rename(tmp_path / "vicuna-7b-delta-v1.1")
    merged = convert(tmp_path / "merged", llm=llama, delta=delta)
    config = RELEASED["llama_config"] | {"vocab_size": tokens}
    save_llama(tmp_path / "whole", config, total)
    assert same(merged, convert(tmp_path / "at_once", llm=tmp_path / "whole"))
    assert ArtGPT4.from_pretrained(merged).config.prompt == prompt


@torch.no_grad()
def test_dtypes_may_differ_between_files_and_within_q_k_v(
        convert, changed, tmp_path, expected, model):
    half = {name: value.half() for name, value in released("vicuna").items()}
    vit = {name: value.half() for name, value in released("eva_vit_g.pth").items()}
    out = convert(tmp_path / "half", vit=changed("eva_vit_g.pth", vit), llm=changed("vicuna", half))
    small = ArtGPT4.from_pretrained(out)
    assert {value.dtype for value in load_file(out / "llama.safetensors").values()} == {
        torch.float16}
    for name in half:
        if "q_proj" in name or "norm" in name:
            half[name] = half[name].float()
    mixed = ArtGPT4.from_pretrained(convert(tmp_path / "mixed", llm=changed("vicuna", half)))
    for found in (small, mixed):
        image_embeds = found.encode_image(expected["pixels"])[:1]
        embeds = found.embed_prompt(expected["chat_prompt"], image_embeds)
        logits = found.llama(embeds)[0, -8:]
        assert (logits - expected["chat_logits_last_8"]).abs().max() < 0.1


def test_the_format_of_torch_before_1_6_and_shards_of_safetensors_are_read(
        convert, weights, tmp_path):
    torch.save(released("eva_vit_g.pth"), tmp_path / "old.pth",
               _use_new_zipfile_serialization=False)
    assert same(convert(tmp_path / "out", vit=tmp_path / "old.pth"), weights["artgpt4"],
                "vision.safetensors")


@pytest.fixture
def parts(checkpoints, tmp_path):
    """blip2-hf in two shards, of which the second, with the language model alone, is not there."""
    folder = tmp_path / "parts"
    folder.mkdir()
    tensors = load_file(checkpoints / "blip2-hf/model.safetensors")
    where = {name: f"model-0000{1 + name.startswith('language_model.')}-of-00002.safetensors"
             for name in tensors}
    first = {name: tensors[name] for name in tensors if "00001" in where[name]}
    save_file(first, folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    shutil.copy(checkpoints / "blip2-hf/config.json", folder)
    return folder


def test_only_the_shards_that_are_read_must_be_there(convert, parts, tmp_path):
    whole = convert(tmp_path / "whole", vit="blip2-hf", qformer="blip2-hf")
    assert same(convert(tmp_path / "part", vit=parts, qformer=parts), whole, "vision.safetensors")


def test_complete_bins_are_read_beside_an_index_of_absent_safetensors(
        convert, checkpoints, weights, parts, tmp_path):
    folder = tmp_path / "vicuna"
    folder.mkdir()
    for file in (checkpoints / "vicuna").iterdir():           # links, as a download cache has them
        (folder / file.name).symlink_to(file)
    shutil.copy(parts / "model.safetensors.index.json", folder)
    assert same(convert(tmp_path / "out", llm=folder), weights["artgpt4"])
