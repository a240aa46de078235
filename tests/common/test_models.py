"""common/models.py: a model from flags, or a line that names the file; answers to many prompts."""
import argparse
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from artgpt4 import ArtGPT4
from common import models
from common.int8 import Int8Linear
from common.models import answers, describe, load, load_adapter, model_flags


def flags(*arguments):
    parser = argparse.ArgumentParser()
    model_flags(parser)
    return parser.parse_args(list(map(str, arguments)))


@pytest.mark.parametrize("file, content, said", [
    ("config.json", '{"model_type": "llama"}', "convert_weights.py"),
    ("config.json", None, "convert_weights.py"),
    ("vision.safetensors", "version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
    ("llama.safetensors", "<!DOCTYPE html>", "web page"),
    ("adapter.safetensors", "", "empty"), ("tokenizer.model", "junk", "tokenizer.model"),
    ("adapter.safetensors", "pickle", "torch.save"), ("vision.safetensors", "pipe", "a pipe")])
def test_a_foreign_file_in_a_weights_folder_is_named_with_what_it_is(weights, tmp_path, file,
                                                                     content, said):
    folder = shutil.copytree(weights["artgpt4"], tmp_path / "w")
    (folder / file).unlink()
    if content == "pipe":
        os.mkfifo(folder / file)
    elif content == "pickle":
        torch.save({"a": torch.ones(2)}, folder / file)
    elif content is not None:
        (folder / file).write_text(content)
    with pytest.raises(ValueError, match=file) as refused:
        load(flags("--weights", folder))
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("file, name, value", [
    ("vision", "vit.blocks.0.fc1.bias", torch.nan), ("llama", "llama.embed.weight", torch.inf),
    ("adapter", "proj.bias", torch.nan), ("adapter", "proj.bias", 1), ("config", "vit_heads", 3)])
def test_what_torch_takes_and_is_no_model_is_refused_by_name(weights, tmp_path, file, name, value):
    folder = shutil.copytree(weights["artgpt4"], tmp_path / "w")
    if file == "config":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {name: value}))
    else:
        tensors = load_file(folder / f"{file}.safetensors")
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[3] = value
        if value == 1:
            tensors[name] = tensors[name].long()
        save_file(tensors, folder / f"{file}.safetensors")
    with pytest.raises(ValueError, match=f"{folder}.*({name}|vit_width|adapter)"):
        load(flags("--weights", folder))


def test_an_adapter_from_elsewhere_takes_the_place_of_the_folders(weights, tmp_path):
    file = shutil.copy(weights["minigpt4"] / "adapter.safetensors", tmp_path)
    loaded = load(flags("--weights", weights["artgpt4"], "--adapter", file))
    expected = ArtGPT4.from_pretrained(weights["minigpt4"])
    assert all(torch.equal(t, expected.state_dict()[n]) for n, t in loaded.state_dict().items())
    for wrong in (tmp_path / "none", tmp_path, weights["artgpt4"] / "llama.safetensors"):
        with pytest.raises(ValueError, match=str(wrong)):
            load_adapter(loaded, wrong)


def test_int8_is_of_the_parts_that_are_asked_for_and_packed_unless_they_train(weights):
    def layers(*arguments, train=False):
        model = load(flags("--weights", weights["artgpt4"], *arguments), train)
        return model, [m for m in model.modules() if isinstance(m, Int8Linear)]

    model, found = layers("--int8", "--vision-int8")
    assert len(found) > 20 and describe(model) == "float32, language and vision in int8"
    assert isinstance(model.llama.blocks[0].adapter.up, Int8Linear)
    model, found = layers("--int8", train=True)
    assert len(found) == 4 * 4 + 1 and not any(layer.packed for layer in found)
    assert not isinstance(model.llama.blocks[0].adapter.up, Int8Linear)
    assert layers("--dtype", "bfloat16")[1] == []


def test_a_small_model_has_one_thread_unless_the_environment_says_otherwise(weights, monkeypatch):
    for environment, threads in (("3", 2), ("", 1)):
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
        models.set_threads(192)
        assert torch.get_num_threads() == threads
    models.set_threads(4096)
    assert torch.get_num_threads() == 1


@torch.no_grad()
def test_answers_of_a_batch_are_those_of_each_prompt(model, expected):
    images = expected["image_embeds"]
    embeds = torch.cat([model.embed_prompt(expected["chat_prompt"], images[i:i + 1])
                        for i in range(2)])
    together = answers(model, embeds, 12, temperature=0)
    assert together == [answers(model, embeds[i:i + 1], 12, temperature=0)[0] for i in range(2)]
    assert all(together)
