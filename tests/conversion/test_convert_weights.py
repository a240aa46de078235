"""Every layout of the public checkpoints gives the golden values or bytes; and the command."""
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_weights
from artgpt4 import ArtGPT4
from common.int8 import quantised
from conversion.checkpoints import half_split
from tests.conftest import (
    HUB, RELEASED, close, convert_py, golden_tensors, released, save_folder,
)
from tests.conversion.conftest import (
    interleaved, save_delta, save_instructblip, save_itm, save_meta,
)


def same(folder, other, file="llama.safetensors"):
    return (folder / file).read_bytes() == (other / file).read_bytes()


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


# ---- Layouts

@torch.no_grad()
@pytest.mark.parametrize("layout", ["blip2-hf", "itm", "instructblip", "eps"])
def test_vision_of_transformers_is_golden(convert, changed, tmp_path, expected_hf, layout):
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


def test_instructblips_vicuna_keeps_its_rows_and_speaks_v1(convert, weights, tmp_path, capsys):
    out = convert(tmp_path / "out", llm=save_instructblip(tmp_path / "instructblip"))
    config, made = config_of(out), load_file(out / "llama.safetensors")
    assert (config["vocab_size"], config["context"], config["prompt"]) == (323, 2048, "vicuna_v1")
    for name, value in load_file(weights["artgpt4"] / "llama.safetensors").items():
        assert torch.equal(made[name][:len(value)], value), name
    assert "noise" in capsys.readouterr().err                 # ArtGPT-4.pth is for another Vicuna


@torch.no_grad()
def test_grouped_queries_tied_heads_and_rope_theta_are_golden(convert, tmp_path, expected_hf):
    tensors = golden_tensors(HUB, "llama-gqa/model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    meta = save_meta(tmp_path / "meta", HUB["llama_gqa_config"], tensors)
    for i, folder in enumerate(("llama-gqa", meta)):
        model = ArtGPT4.from_pretrained(convert(tmp_path / f"{i}", llm=folder, adapter=None))
        logits = model.llama(model.llama.embed(expected_hf["gqa_ids"]))
        assert close(logits, expected_hf["gqa_logits"])


OLD = {"max_position_embeddings": "absent", "rms_norm_eps": "absent", "bos_token_id": 0,
       "eos_token_id": 1, "architectures": ["LLaMAForCausalLM"]}
CONFIGS = [  # settings of the golden Vicuna's config.json, and what its Config then differs in
    (OLD | {"max_sequence_length": 1024}, {"context": 1024}), (OLD, {"context": 2048}),
    ({"rope_scaling": {"rope_type": "default"},
      "rope_parameters": {"type": "default", "rope_theta": 10000.0}}, {}),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5}),
]


@pytest.mark.parametrize("settings, differs", CONFIGS)
def test_a_config_json_of_another_year_gives_the_same_model(
        convert, changed, weights, tmp_path, settings, differs):
    out = convert(tmp_path / "out", llm=changed("vicuna", config=settings))
    assert config_of(out) == config_of(weights["artgpt4"]) | differs
    assert same(out, weights["artgpt4"])


@pytest.mark.parametrize("shards", [1, 2])
def test_llama_as_meta_released_it_converts_to_the_same_bytes(convert, weights, tmp_path, shards):
    meta = save_meta(tmp_path / "13B", RELEASED["llama_config"], released("vicuna"), shards)
    (meta / "tokenizer.model").rename(tmp_path / "tokenizer.model")    # as Meta has it
    assert same(convert(tmp_path / "out", llm=meta), weights["artgpt4"])


def test_rows_of_q_and_k_that_meta_rotates_as_one_complex_number_are_half_a_head_apart():
    rows = torch.arange(16)[:, None]                          # of two heads
    assert half_split(rows, 8).flatten().tolist() == [
        0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    assert torch.equal(half_split(interleaved(rows, 8), 8), rows)


@pytest.mark.parametrize("tokens, prompt", [(321, "vicuna_v0"), (320, "vicuna_v1")])
def test_a_vicuna_delta_is_added_in_float16(convert, tmp_path, tokens, prompt):
    llama, delta, total = save_delta(tmp_path, tokens)
    delta = delta.rename(tmp_path / ("vicuna-13b-delta-" + prompt[-2:]))
    merged = convert(tmp_path / "merged", llm=llama, delta=delta)
    save_folder(tmp_path / "whole", total, RELEASED["llama_config"] | {"vocab_size": tokens})
    assert same(merged, convert(tmp_path / "at_once", llm=tmp_path / "whole"))
    assert config_of(merged)["prompt"] == prompt


@torch.no_grad()
def test_dtypes_may_differ_between_files_and_within_q_k_v(convert, changed, tmp_path, expected):
    half = {name: value.half() for name, value in released("vicuna").items()}
    vit = {name: value.half() for name, value in released("eva_vit_g.pth").items()}
    vit, llm = changed("eva_vit_g.pth", vit), changed("vicuna", half)
    small = convert(tmp_path / "half", vit=vit, llm=llm)
    dtypes = {value.dtype for value in load_file(small / "llama.safetensors").values()}
    assert dtypes == {torch.float16}
    half |= {name: half[name].float() for name in half if "q_proj" in name or "norm" in name}
    for out in (small, convert(tmp_path / "mixed", llm=changed("vicuna", half))):
        model = ArtGPT4.from_pretrained(out)
        image_embeds = model.encode_image(expected["pixels"])[:1]
        logits = model.llama(model.embed_prompt(expected["chat_prompt"], image_embeds))[0, -8:]
        assert (logits - expected["chat_logits_last_8"]).abs().max() < 0.1


def test_shards_that_are_not_read_need_not_be_there(convert, checkpoints, weights, tmp_path):
    tensors, folder = load_file(checkpoints / "blip2-hf/model.safetensors"), tmp_path / "parts"
    shutil.copytree(checkpoints / "blip2-hf", folder)
    (folder / "model.safetensors").unlink()
    where = {name: f"{name.startswith('language_model.')}.safetensors" for name in tensors}
    save_file({name: tensors[name] for name in tensors if where[name] == "False.safetensors"},
              folder / "False.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    whole = convert(tmp_path / "whole", vit="blip2-hf", qformer="blip2-hf")
    assert same(convert(tmp_path / "part", vit=folder, qformer=folder), whole, "vision.safetensors")
    (tmp_path / "vicuna").mkdir()
    for file in (checkpoints / "vicuna").iterdir():           # links, as a download cache has them
        (tmp_path / "vicuna" / file.name).symlink_to(file)
    shutil.copy(folder / "model.safetensors.index.json", tmp_path / "vicuna")
    torch.save(released("eva_vit_g.pth"), tmp_path / "old.pth",
               _use_new_zipfile_serialization=False)          # as torch did before 1.6
    out = convert(tmp_path / "out", llm=tmp_path / "vicuna", vit=tmp_path / "old.pth")
    assert same(out, weights["artgpt4"]) and same(out, weights["artgpt4"], "vision.safetensors")


# ---- The command

def test_what_no_shape_tells_is_that_of_the_files(weights):
    assert config_of(weights["artgpt4"]).items() >= {
        "vit_heads": 2, "qformer_heads": 2, "llama_heads": 4, "ln_vision_eps": 1e-5,
        "rms_norm_eps": 1e-6, "rope_theta": 1e4, "context": 256, "prompt": "vicuna_v0"}.items()


def test_another_image_size_resizes_the_position_embedding(convert, expected, tmp_path):
    model = ArtGPT4.from_pretrained(convert(tmp_path / "out", image_size=84))
    assert close(model.vit.pos_embed, expected["pos_embed_for_image_size_84"])


def test_what_no_adapter_file_holds_starts_as_training_does(weights):
    start, minigpt4 = (load_file(weights[name] / "adapter.safetensors")
                       for name in ("start", "minigpt4"))
    model = ArtGPT4.from_pretrained(weights["start"])
    torch.manual_seed(42)
    for name, tensor in model.start_adapter().items():
        if ".adapter." in name or name.startswith("proj."):
            assert torch.equal(start[name], tensor), name
            assert torch.equal(minigpt4[name], tensor) or name.startswith("proj."), name
    bias = released("pretrained_minigpt4.pth")["llama_proj.bias"]
    assert torch.equal(minigpt4["proj.bias"], bias)
    norm = released("vicuna")["model.layers.2.input_layernorm.weight"]
    assert torch.equal(start["llama.blocks.2.attn_norm.weight"], norm)


@torch.no_grad()
def test_int8_keeps_each_row_within_half_a_step_and_answers_nearly_the_same(
        convert, model, weights, expected, tmp_path):
    out = convert(tmp_path / "int8", int8=True)
    small = load_file(out / "llama.safetensors")
    matrices = [name for name, tensor in small.items() if tensor.dtype == torch.int8]
    assert len(matrices) == 4 * 4 and not any("embed" in n or "head" in n for n in matrices)
    for name, tensor in load_file(weights["artgpt4"] / "llama.safetensors").items():
        if name in matrices:
            scale = small[name.replace(".weight", ".scale")]
            assert torch.equal(scale, tensor.abs().amax(dim=1) / 127)
            assert ((small[name] * scale[:, None] - tensor).abs() <= scale[:, None] * 0.5001).all()
        else:
            assert torch.equal(small[name], tensor)
    loaded = ArtGPT4.from_pretrained(out, prepare=quantised())
    embeds = model.embed_prompt(expected["chat_prompt"], expected["image_embeds"][:1])
    full, found = model.llama(embeds), loaded.llama(embeds)
    assert (found - full).norm() / full.norm() < 0.05


def test_shards_of_the_language_model_load_as_one_file(convert, model, tmp_path, monkeypatch):
    monkeypatch.setattr("convert_weights.SHARD", 300_000)
    out = convert(tmp_path / "shards")
    assert len(list(out.glob("llama-*.safetensors"))) == 6
    sharded = ArtGPT4.from_pretrained(out).state_dict()
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in model.state_dict().items())


def test_the_prompt_format_is_recognised_recorded_and_said(convert, changed, tmp_path, capsys):
    short = {name: value[:320] for name, value in released("vicuna").items()}
    v1 = changed("vicuna", short, {"vocab_size": 320})        # as many tokens as pieces
    convert(tmp_path / "unknown", llm=v1, adapter=None)
    assert "--prompt" in capsys.readouterr().out
    (v1 / "generation_config.json").write_text("{}")
    assert config_of(convert(tmp_path / "v1", llm=v1))["prompt"] == "vicuna_v1"
    said = capsys.readouterr()
    assert "vicuna_v1" in said.out and "Vicuna v0" in said.err and "noise" in said.err
    out = convert(tmp_path / "asked", llm=v1, prompt="vicuna_v0", adapter=None)
    assert config_of(out)["prompt"] == "vicuna_v0"
    convert(tmp_path / "v0")
    assert "noise" not in capsys.readouterr().err


def test_export_brings_the_released_file_back_to_the_bit(convert, weights, tmp_path):
    out = tmp_path / "mine.pth"
    convert_py(["--weights", str(weights["artgpt4"]), "--export", str(out)])
    exported, expected = torch.load(out, weights_only=True)["model"], released("ArtGPT-4.pth")
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())
    again = convert(tmp_path / "again", adapter=out)
    assert same(again, weights["artgpt4"], "adapter.safetensors")


@pytest.mark.parametrize("arguments, code, said", [
    ("--weights weights --export there", 1, "there"), ("--weights weights", 2, "--export"),
    ("--weights bad --export new", 1, "bad"), ("--weights few --export new", 1, "few"),
    ("--image-size 0", 2, "--image-size"), ("--weights weights --export new --vit x", 2, "--vit"),
    ("--llm x --out new", 2, "--qformer, --vit"),
    ("--vit x --qformer x --llm x --out there", 1, "there")])
def test_misuse_is_named_and_changes_nothing(weights, here, capsys, arguments, code, said):
    shutil.copytree(weights["artgpt4"], "bad")
    Path("few").mkdir()
    tensors = load_file("bad/adapter.safetensors")
    save_file(tensors | {"proj.bias": tensors["proj.bias"] * float("nan")},
              "bad/adapter.safetensors")
    save_file({name: tensors[name] for name in sorted(tensors)[1:]}, "few/adapter.safetensors")
    Path("weights").symlink_to(weights["artgpt4"])
    Path("there").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        convert_py(arguments.split())
    assert stopped.value.code == code and said in capsys.readouterr().err
    assert sorted(os.listdir()) == ["bad", "few", "there", "weights"]
    assert Path("there").read_text() == "mine"


def test_the_list_names_two_ways_and_their_commands(checkpoints, here, capsys):
    Path("checkpoints").mkdir()
    for name in ("vicuna", "eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth", "ArtGPT-4.pth"):
        Path("checkpoints", name).symlink_to(checkpoints / name)
    convert_py([])
    said = capsys.readouterr().out
    line = said.split("python convert_weights.py ")[1].split("\n2.")[0].replace("\\", "")
    convert_py(line.split())
    assert config_of(Path("weights/artgpt4"))["adapter_width"] == 24


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_and_what_kill_9_leaves_is_named(
        convert, tmp_path, monkeypatch, capsys, number, code):
    def half(*given):
        save(*given)
        signal.raise_signal(number)

    save, out = convert_weights.save_tensors, tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(convert_weights, "save_tensors", half)
        convert(out / "weights")
    assert stopped.value.code == code and list(out.iterdir()) == []
    (out / ".weights.k9xy").mkdir()
    convert(out / "weights")
    assert ".weights.k9xy: left by" in capsys.readouterr().err
