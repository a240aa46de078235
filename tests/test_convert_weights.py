"""convert_weights.py as a command: what it writes and says, and the way back."""
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_weights
from artgpt4 import ArtGPT4
from common.int8 import quantised
from tests.conftest import close, released


def test_sizes_follow_from_the_files(weights):
    config = json.loads((weights["artgpt4"] / "config.json").read_text())
    assert config == {
        "image_size": 56, "patch_size": 14, "vit_width": 176, "vit_layers": 2, "vit_heads": 2,
        "vit_mlp_width": 768, "ln_vision_eps": 1e-5, "queries": 6, "qformer_width": 128,
        "qformer_layers": 4, "qformer_heads": 2, "qformer_mlp_width": 192, "llama_width": 96,
        "llama_layers": 4, "llama_heads": 4, "llama_kv_heads": 4, "llama_mlp_width": 200,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "context": 256, "vocab_size": 321,
        "adapter_width": 24, "prompt": "vicuna_v0"}


def test_frozen_weights_keep_the_values_of_the_source(weights):
    llama, vicuna = load_file(weights["artgpt4"] / "llama.safetensors"), released("vicuna")
    qkv = [vicuna[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(llama["llama.blocks.1.attn.qkv.weight"], torch.cat(qkv))
    vision, vit = load_file(weights["artgpt4"] / "vision.safetensors"), released("eva_vit_g.pth")
    attention = [vision[f"vit.blocks.1.attn.{part}.weight"] for part in ("query", "key", "value")]
    assert torch.equal(torch.cat(attention), vit["blocks.1.attn.qkv.weight"])
    assert torch.equal(vision["vit.blocks.1.attn.value.bias"], vit["blocks.1.attn.v_bias"])
    assert not vision["vit.blocks.1.attn.key.bias"].any()


def test_another_image_size_resizes_the_position_embedding(convert, expected, tmp_path):
    model = ArtGPT4.from_pretrained(convert(tmp_path / "out", image_size=84))
    assert close(model.vit.pos_embed, expected["pos_embed_for_image_size_84"])


def test_what_no_adapter_file_holds_starts_as_training_does(weights):
    start, minigpt4 = (load_file(weights[name] / "adapter.safetensors")
                       for name in ("start", "minigpt4"))
    model = ArtGPT4.from_pretrained(weights["start"])
    assert start.keys() == minigpt4.keys() == set(model.trainable_names())
    assert {value.dtype for value in start.values()} == {torch.float32}
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


def test_shards_of_the_language_model_load_as_one_file_does(
        convert, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("convert_weights.SHARD", 300_000)
    out = convert(tmp_path / "shards")
    files = sorted(path.name for path in out.glob("llama-*.safetensors"))
    assert len(files) == 6 and files[0] == "llama-00001.safetensors"
    whole = ArtGPT4.from_pretrained(weights["artgpt4"]).state_dict()
    sharded = ArtGPT4.from_pretrained(out).state_dict()
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in whole.items())


def test_the_prompt_format_is_recognised_recorded_and_said(convert, changed_v1, tmp_path, capsys):
    out = convert(tmp_path / "v1", llm=changed_v1)
    said = capsys.readouterr()
    assert json.loads((out / "config.json").read_text())["prompt"] == "vicuna_v1"
    assert "vicuna_v1" in said.out and "v0" in said.err and "noise" in said.err
    out = convert(tmp_path / "asked", llm=changed_v1, prompt="vicuna_v0", adapter=None)
    assert json.loads((out / "config.json").read_text())["prompt"] == "vicuna_v0"
    (changed_v1 / "generation_config.json").unlink()
    convert(tmp_path / "unknown", llm=changed_v1, adapter=None)
    assert "--prompt" in capsys.readouterr().out
    convert(tmp_path / "v0")
    assert "noise" not in capsys.readouterr().err


@pytest.fixture
def changed_v1(checkpoints, tmp_path):
    """The golden Vicuna with 320 tokens, as v1.5 has as many as its tokenizer."""
    folder = shutil.copytree(checkpoints / "vicuna", tmp_path / "a model")
    for file in folder.glob("*.bin*"):
        file.unlink()
    tensors = {name: value[:320].clone() for name, value in released("vicuna").items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 320}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text("{}")
    return folder


def test_the_end_says_what_to_type_next(convert, tmp_path, capsys):
    convert(tmp_path / "my weights")
    assert f"python chat.py --weights '{tmp_path}/my weights'" in capsys.readouterr().out
    start = convert(tmp_path / "start", adapter=None)
    said = capsys.readouterr().out
    assert f"python train.py --stage 1 --recipe paper --dtype bfloat16 --weights {start} -" in said
    minigpt4 = convert(tmp_path / "minigpt4", adapter="pretrained_minigpt4.pth")
    assert f" --weights {minigpt4} --init {minigpt4} --data" in capsys.readouterr().out


def export(folder, file):
    convert_weights.main(["--weights", str(folder), "--export", str(file)])


def test_export_brings_the_released_file_back_to_the_bit(convert, weights, tmp_path):
    export(weights["artgpt4"], tmp_path / "mine.pth")
    exported = torch.load(tmp_path / "mine.pth", weights_only=True)["model"]
    expected = released("ArtGPT-4.pth")
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())
    again = convert(tmp_path / "again", adapter=tmp_path / "mine.pth")
    for file in ("adapter.safetensors", "config.json"):
        assert (again / file).read_bytes() == (weights["artgpt4"] / file).read_bytes()


@pytest.mark.parametrize("arguments, code, said", [
    (["--weights", "weights", "--export", "there"], 1, "there"),
    (["--weights", "bad", "--export", "new"], 1, "proj.bias"),
    (["--weights", "weights", "--export", "new", "--vit", "x"], 2, "--vit"),
    (["--weights", "weights"], 2, "--export"),
    (["--llm", "x", "--out", "new"], 2, "--qformer, --vit"),
    (["--vit", "x", "--qformer", "x", "--llm", "x", "--out", "there"], 1, "there"),
    (["--image-size", "0"], 2, "--image-size"),
])
def test_misuse_is_named_and_changes_nothing(
        weights, tmp_path, monkeypatch, capsys, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(weights["artgpt4"], "bad")
    tensors = load_file("bad/adapter.safetensors")
    tensors["proj.bias"][3] = float("nan")
    save_file(tensors, "bad/adapter.safetensors")
    Path("weights").symlink_to(weights["artgpt4"])
    Path("there").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        convert_weights.main(arguments)
    assert stopped.value.code == code and said in capsys.readouterr().err
    assert sorted(os.listdir()) == ["bad", "there", "weights"]
    assert Path("there").read_text() == "mine"


def test_the_list_names_two_ways_and_the_command_for_what_is_there(
        checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    convert_weights.main([])
    said = capsys.readouterr().out
    for words in ("Vision-CAIR/vicuna", "lmsys/vicuna-7b-v1.5", "Tyrannosaurus/ArtGPT-4", "39.1",
                  "47.8", "15.9", "huggingface-cli download", "eva_vit_g.pth", "docs/weights.md"):
        assert words in said
    Path("checkpoints").mkdir()
    for name in ("vicuna", "eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth", "ArtGPT-4.pth"):
        Path("checkpoints", name).symlink_to(checkpoints / name)
    convert_weights.main([])
    said = capsys.readouterr().out
    assert "There already: vicuna, ArtGPT-4.pth, eva_vit_g.pth, blip2_pret" in said
    line = said.split("python convert_weights.py ")[1].split("\n2.")[0].replace("\\", "")
    convert_weights.main(line.split())
    assert ArtGPT4.from_pretrained("weights/artgpt4").config.adapter_width == 24


def test_sigterm_leaves_nothing_and_what_kill_leaves_is_named(checkpoints, convert, tmp_path, capfd):
    slow = ("import convert_weights, time, sys; old = convert_weights.write_tensors\n"
            "def save(*given): old(*given); print('half', flush=True); time.sleep(60)\n"
            "convert_weights.write_tensors = save; convert_weights.main()")
    for number, left in ((signal.SIGTERM, 0), (signal.SIGKILL, 1)):
        process = subprocess.Popen(
            [sys.executable, "-c", slow, "--vit", checkpoints / "eva_vit_g.pth", "--qformer",
             checkpoints / "blip2_pretrained_flant5xxl.pth", "--llm", checkpoints / "vicuna",
             "--out", tmp_path / "out" / "weights"], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"half\n"
        process.send_signal(number)
        process.wait()
        assert len(list((tmp_path / "out").iterdir())) == left
    convert(tmp_path / "out" / "weights")
    assert "left by" in capfd.readouterr().err
