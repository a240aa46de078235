"""convert_weights.py as a command: what it writes and says, and the way back."""
import json

import pytest
import torch
from safetensors.torch import load_file

import convert_weights
from artgpt4 import ArtGPT4
from common.loading import load_folder
from tests.conftest import released


def test_the_prompt_that_the_language_model_expects_is_kept(convert, weights, tmp_path):
    assert ArtGPT4.from_pretrained(weights["artgpt4"]).config.prompt == "vicuna_v0"
    chat = convert(tmp_path / "chat", prompt="llama2_chat")
    assert ArtGPT4.from_pretrained(chat).config.prompt == "llama2_chat"
    config = json.loads((chat / "config.json").read_text())
    (chat / "config.json").write_text(json.dumps(config | {"prompt": "alpaca"}))
    with pytest.raises(ValueError, match="config.json: prompt is 'alpaca'"):
        load_folder(chat)


def test_frozen_weights_keep_the_bytes_of_the_source(weights):
    llama, vicuna = load_file(weights["artgpt4"] / "llama.safetensors"), released("vicuna")
    qkv = [vicuna[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(llama["llama.blocks.1.attn.qkv.weight"], torch.cat(qkv))
    assert torch.equal(llama["llama.blocks.0.mlp_norm.weight"],
                       vicuna["model.layers.0.post_attention_layernorm.weight"])
    vision = load_file(weights["artgpt4"] / "vision.safetensors")
    vit = released("eva_vit_g.pth")
    q_bias, zeros, v_bias = vision["vit.blocks.1.attn.qkv.bias"].chunk(3)
    assert torch.equal(q_bias, vit["blocks.1.attn.q_bias"])
    assert torch.equal(v_bias, vit["blocks.1.attn.v_bias"])
    assert not zeros.any()


def test_the_end_says_what_was_written_and_what_to_type_next(convert, tmp_path, capsys):
    trained = convert(tmp_path / "trained")
    assert f"next: python chat.py --weights {trained} image.jpg" in capsys.readouterr().out
    start = convert(tmp_path / "start", adapter=None)
    said = capsys.readouterr().out
    assert ("next: python train.py --stage 1 --recipe paper --dtype bfloat16 "
            f"--weights {start} --data 'laion/*.tar'") in said
    assert f"{start}/llama.safetensors" in said and "float32" in said
    minigpt4 = convert(tmp_path / "minigpt4", adapter="pretrained_minigpt4.pth")
    assert f" --weights {minigpt4} --init {minigpt4} --data" in capsys.readouterr().out


def export(folder, file):
    convert_weights.main(["--weights", str(folder), "--export", str(file)])


def test_export_brings_the_released_file_back_to_the_bit(convert, checkpoints, weights, tmp_path):
    export(weights["artgpt4"], tmp_path / "mine.pth")
    exported = torch.load(tmp_path / "mine.pth", weights_only=True)["model"]
    expected = released("ArtGPT-4.pth")
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())
    nbytes = sum(tensor.nbytes for tensor in expected.values())
    assert (tmp_path / "mine.pth").stat().st_size < 1.5 * nbytes
    again = convert(tmp_path / "again", adapter=tmp_path / "mine.pth")
    for file in ("adapter.safetensors", "config.json"):
        assert (again / file).read_bytes() == (weights["artgpt4"] / file).read_bytes()


def test_export_does_not_overwrite(weights, tmp_path, capsys):
    (tmp_path / "mine.pth").write_text("mine")
    with pytest.raises(SystemExit):
        export(weights["artgpt4"], tmp_path / "mine.pth")
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine.pth").read_text() == "mine"


def test_an_output_folder_that_exists_is_refused_and_kept(convert, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit):
        convert(tmp_path / "mine")
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "mine"


def test_misuse_is_exit_code_2(convert, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        convert(tmp_path / "out", vit=None)
    assert stopped.value.code == 2
    assert "--vit" in capsys.readouterr().err
