"""common/loading.py: a fault of a weights folder is one line that names the file."""
import argparse
import shutil

import pytest

from artgpt4 import ArtGPT4, CastLinear
from common.files import read_tensors, save_tensors
from common.int8 import Int8Linear, exact
from common.loading import load_adapter, load_folder, load_model


@pytest.mark.parametrize("content", ["[]", "{", '{"image_size": "big"}', '{"x": 1}',
                                     '{"llama": {"num_attention_heads": 0}}'])
def test_a_config_that_makes_no_model_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json: "):
        load_folder(tmp_path)


@pytest.mark.parametrize("file", ["vision.safetensors", "llama.safetensors", "adapter.safetensors",
                                  "tokenizer.model"])
def test_a_file_that_is_missing_or_cut_short_is_named(weights, tmp_path, file):
    folder = tmp_path / "weights"
    shutil.copytree(weights["artgpt4"], folder)
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=f"{file}: not a "):
        load_folder(folder)
    (folder / file).unlink()
    with pytest.raises(ValueError, match=f"{file}: no such file"):
        load_folder(folder)


def test_an_adapter_of_a_deeper_model_is_refused(weights, tmp_path):
    deeper = dict(read_tensors(weights["artgpt4"] / "adapter.safetensors"))
    deeper["llama.blocks.4.mlp_norm.weight"] = deeper["llama.blocks.3.mlp_norm.weight"].clone()
    save_tensors(deeper, tmp_path / "adapter.safetensors")
    model = ArtGPT4.from_pretrained(weights["artgpt4"])
    with pytest.raises(ValueError, match=r"llama.blocks.4.mlp_norm.weight is \(96,\), .* not part"):
        load_adapter(model, tmp_path / "adapter.safetensors")


@pytest.mark.parametrize("flags, train, expected", [
    ({"int8": True}, False, Int8Linear), ({"int8": True}, True, CastLinear),
    ({"int8": False}, False, CastLinear)])
def test_adapters_are_int8_with_the_language_model_unless_it_trains(weights, flags, train,
                                                                    expected):
    model = load_model(arguments(weights, **flags), train)
    assert type(model.llama.blocks[2].adapter.up) is expected
    assert type(model.proj) is CastLinear


def arguments(weights, **flags):
    flags = {"int8": False, "vision_int8": False} | flags
    return argparse.Namespace(weights=weights["artgpt4"], adapter=None, dtype=None, device="cpu",
                              **flags)


def test_a_model_that_answers_is_packed_as_it_is_used_and_one_that_trains_is_not(weights):
    def layers(train):
        model = load_model(arguments(weights, int8=True, vision_int8=True), train)
        return [module for module in model.modules() if isinstance(module, Int8Linear)]

    answering = layers(train=False)
    assert len(answering) > 20 and not any(layer.packed for layer in answering)
    assert {layer.unpacked_uses for layer in answering} == ({1} if exact() else {0})
    assert {layer.unpacked_uses for layer in layers(train=True)} == {0}
