"""training/initial.py: what --init takes, ours and the public checkpoints."""
import pytest
import torch
from safetensors.torch import load_file

from artgpt4 import ArtGPT4
from training.initial import load_initial


@pytest.mark.parametrize("kind", ["folder", "adapter.safetensors", "ArtGPT-4.pth"])
def test_every_kind_of_a_trained_adapter_gives_the_same_parameters(weights, checkpoints, kind):
    folder = weights["artgpt4"]
    path = {"folder": folder, "ArtGPT-4.pth": checkpoints / kind}.get(kind, folder / kind)
    model = ArtGPT4.from_pretrained(weights["start"], adapter=False)
    load_initial(model, path)
    for name, tensor in load_file(folder / "adapter.safetensors").items():
        assert torch.equal(model.get_parameter(name), tensor), name


def test_a_minigpt4_gives_the_projection_and_leaves_the_adapters_untrained(weights, checkpoints):
    model = ArtGPT4.from_pretrained(weights["start"], adapter=False)
    load_initial(model, checkpoints / "pretrained_minigpt4.pth")
    expected = load_file(weights["minigpt4"] / "adapter.safetensors")
    for name in model.trainable_names():
        if "adapter.down" not in name:                        # those start at random
            assert torch.equal(model.get_parameter(name), expected[name]), name
    assert not model.llama.blocks[0].adapter.up.weight.any()


def test_an_adapter_for_another_model_is_refused_by_name(checkpoints, talker_weights):
    model = ArtGPT4.from_pretrained(talker_weights, adapter=False)
    message = "ArtGPT-4.pth: made for a language model whose .* is 4; that of --weights is 2"
    with pytest.raises(ValueError, match=message):
        load_initial(model, checkpoints / "ArtGPT-4.pth")
    with pytest.raises(ValueError, match="eva_vit_g.pth: this is .*; expected"):
        load_initial(model, checkpoints / "eva_vit_g.pth")
