"""common/models.py: a model from flags, or a line that names the file."""
import argparse
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from artgpt4 import IMAGE_MARK, ArtGPT4
from common import models
from common.int8 import Int8Linear
from common.models import describe, load, model_flags


def flags(*arguments):
    parser = argparse.ArgumentParser()
    model_flags(parser)
    return parser.parse_args(list(map(str, arguments)))


def changed(name, change):
    """A change to a file of tensors: to one of them, which a function returns or changes."""
    def write(file):
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        save_file(tensors | {name: change(tensors.get(name))}, file)
    return write


def first_is(value):
    return lambda tensor: torch.cat((torch.tensor([value]), tensor.flatten()[1:])).view_as(tensor)


@pytest.mark.parametrize("file, change, said", [
    ("config.json", '{"model_type": "llama"}', "convert_weights.py"), ("config.json", "[]", ""),
    ("config.json", '{"image_size": "big"}', "image_size"), ("config.json", "{", ""),
    ("config.json", '{"llama_heads": 0}', ""), ("config.json", '{"prompt": "none"}', "prompt"),
    ("config.json", '{"image_size": 230}', "image_size"), ("config.json", '{"vit_heads": 3}', ""),
    ("llama.safetensors", changed("ln_vision.bias", lambda _: torch.ones(1)), "another file"),
    ("config.json", Path.unlink, "convert_weights.py"), ("config.json", '{"llama_heads": 7}', ""),
    ("vision.safetensors", Path.unlink, "No such file"), ("llama.safetensors", "\0" * 9, ""),
    ("vision.safetensors", "version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
    ("vision.safetensors", lambda file: os.truncate(file, 5000), ""),
    ("llama.safetensors", "<!DOCTYPE html>", "web page"), ("adapter.safetensors", "", "empty"),
    ("adapter.safetensors", '{"error": "no"}', "JSON"), ("adapter.safetensors", Path.unlink, ""),
    ("adapter.safetensors", partial(torch.save, {"a": torch.ones(2)}), "torch.save"),
    ("tokenizer.model", "junk", ""), ("tokenizer.model", "", ""),
    ("tokenizer.model", Path.unlink, ""),
    ("vision.safetensors", changed("vit.blocks.0.fc1.bias", first_is(torch.nan)), "fc1.bias"),
    ("llama.safetensors", changed("llama.embed.weight", first_is(torch.inf)), "llama.embed"),
    ("llama.safetensors", changed("llama.foreign", lambda _: torch.ones(1)), "llama.foreign"),
    ("adapter.safetensors", changed("proj.bias", first_is(torch.nan)), "adapter"),
    ("adapter.safetensors", changed("proj.bias", torch.Tensor.long), "adapter"),
    ("adapter.safetensors", changed("proj.foreign", lambda _: torch.ones(1)), "adapter"),
    ("adapter.safetensors", changed("proj.bias", lambda bias: bias[1:]), "adapter"),
    ("adapter.safetensors", changed("llama.norm.weight", lambda _: torch.ones(96)), "adapter")])
def test_a_wrong_file_is_named_with_what_it_is(weights, tmp_path, file, change, said):
    folder = shutil.copytree(weights["artgpt4"], tmp_path / "w")
    if callable(change):
        change(folder / file)
    else:
        (folder / file).write_text(change)
    with pytest.raises(ValueError, match=str(folder)) as refused:
        load(flags("--weights", folder))
    text = str(refused.value)
    assert said in text and (file in text or said) and "\n" not in text


def test_an_adapter_from_elsewhere_takes_the_place_of_the_folders(weights, tmp_path):
    file = shutil.copy(weights["minigpt4"] / "adapter.safetensors", tmp_path)
    loaded = load(flags("--weights", weights["artgpt4"], "--adapter", file))
    expected = ArtGPT4.from_pretrained(weights["minigpt4"])
    assert all(torch.equal(t, expected.state_dict()[n]) for n, t in loaded.state_dict().items())
    for wrong in (tmp_path / "none", tmp_path, weights["artgpt4"] / "llama.safetensors"):
        with pytest.raises(ValueError, match=str(wrong)):
            load(flags("--weights", weights["artgpt4"], "--adapter", wrong))


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
    model, found = layers("--int8", "--vision-int8", "--dtype", "bfloat16")
    pixels = torch.rand(1, 3, *2 * [model.config.image_size])
    embeds = model.embed_prompt(IMAGE_MARK, model.encode_image(pixels))
    assert embeds.dtype == torch.bfloat16 and len(list(model.generate(embeds, 2))) == 2


def test_a_small_model_answers_in_one_thread_unless_told_otherwise(weights, monkeypatch):
    for environment, wide, train, threads in (
            ("3", 1024, False, 2), ("", 1024, False, 1), ("", 1024, True, 2), ("", 1, False, 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
        monkeypatch.setattr(models, "WIDE", wide)
        torch.set_num_threads(2)
        load(flags("--weights", weights["artgpt4"]), train)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
