"""int8.py: its error, its gradient, and the models that compute with it."""
import pytest
import torch

from artgpt4 import ArtGPT4
from common.int8 import Int8Linear, int8_linear, quantise
from gallery.pretrain import save_pretrained


def error(found, exact):
    return ((found - exact).norm() / exact.norm()).item()


def layer(inputs, outputs, generator, bias=False):
    """An Int8Linear and the float matrix that it holds."""
    made, matrix = (
        Int8Linear(inputs, outputs, bias),
        torch.randn(outputs, inputs, generator=generator) / inputs**0.5,
    )
    weight, scale = quantise(matrix)
    made.load_state_dict({"weight": weight, "scale": scale[:, 0]}
                         | ({"bias": torch.randn(outputs, generator=generator)} if bias else {}))
    return made, matrix


@pytest.mark.parametrize("rows", [2, 7, 128])
def test_columns_of_outliers_cost_no_accuracy_as_they_do_in_the_plain_scheme(rows):
    generator = torch.Generator().manual_seed(0)
    made, matrix = layer(4000, 300, generator)
    x = torch.randn(rows, 4000, generator=generator)
    x[:, ::1000] *= 60  # one column in a thousand at 60 times the rest
    exact, weight, scale = x @ matrix.t(), made.weight, made.scale
    assert error(int8_linear(x, weight, scale), exact) <= 0.01
    assert 0.03 < error(int8_linear(x, weight, scale, outlier=torch.inf), exact) < 0.3
    assert error(made(x), exact) <= 0.01
    one = torch.cat(
        [made(x[i : i + 1].sign() * 20) for i in range(rows)]
    )  # alone, as in decoding, and together
    assert torch.allclose(one, made(x.sign() * 20), rtol=1e-4, atol=1e-4)
    few = x.clamp(-5, 5)
    assert torch.allclose(
        torch.cat([made(row[None]) for row in few]), made(few), rtol=1e-5, atol=1e-5
    )


def test_without_outliers_and_with_nothing_but_outliers():
    generator = torch.Generator().manual_seed(1)
    made, matrix = layer(512, 64, generator, bias=True)
    x = torch.randn(3, 5, 512, generator=generator)
    assert made(x).shape == (3, 5, 64)
    assert error(made(x), x @ matrix.t() + made.bias) < 0.015
    assert error(made(100 * x), 100 * x @ matrix.t() + made.bias) < 0.015
    assert torch.equal(made(torch.zeros(2, 512)), made.bias.expand(2, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_to_the_input_is_that_of_the_matrix(dtype):
    generator = torch.Generator().manual_seed(2)
    made, _ = layer(96, 40, generator)
    x = torch.randn(6, 96, generator=generator).to(dtype).requires_grad_()
    y = made(x)
    grad = torch.randn(6, 40, generator=generator).to(dtype)
    y.backward(grad)
    assert y.dtype == x.grad.dtype == dtype and made.weight.grad is None
    exact = grad.float() @ (made.weight.float() * made.scale[:, None])
    assert error(x.grad.float(), exact) < (1e-6 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("flags", [{"int8": True}, {"vision_int8": True}])
def test_a_model_quantised_on_loading_answers_nearly_as_the_full_one(
    weights, model, expected, flags
):
    small = ArtGPT4.from_pretrained(weights["artgpt4"], **flags)
    kinds = {
        name: type(small.get_submodule(name)) is Int8Linear
        for name in (
            "llama.blocks.0.attn.qkv",
            "llama.blocks.3.mlp.down",
            "llama.head",
            "vit.blocks.1.fc2",
            "vit.blocks.0.attn.qkv",
        )
    }
    assert (
        list(kinds.values())
        == [flags.get("int8", False)] * 3 + [flags.get("vision_int8", False)] * 2
    )
    with torch.no_grad():
        image_embeds = small.encode_image(expected["pixels"])
        assert error(image_embeds, expected["image_embeds"]) < 0.03
        embeds = model.embed_prompt(expected["chat_prompt"], expected["image_embeds"][:1])
        assert error(small.llama(embeds), model.llama(embeds)) < 0.05


def test_a_quantised_model_is_saved_and_loaded_to_the_bit(weights, tmp_path):
    small = ArtGPT4.from_pretrained(weights["artgpt4"], int8=True, vision_int8=True)
    save_pretrained(small, tmp_path)
    again = ArtGPT4.from_pretrained(tmp_path)
    assert small.state_dict().keys() == again.state_dict().keys()
    assert all(
        torch.equal(tensor, again.state_dict()[name]) for name, tensor in small.state_dict().items()
    )


def test_everything_that_trains_moves_on_an_int8_language_model(weights, expected):
    small = ArtGPT4.from_pretrained(weights["artgpt4"], int8=True)
    optimizer = torch.optim.AdamW(small.freeze(), lr=1e-3)
    before = {name: small.get_parameter(name).clone() for name in small.trainable_names()}
    small.loss(expected["pixels"], expected["captions"]).backward()
    optimizer.step()
    assert all(
        not torch.equal(tensor, small.get_parameter(name)) for name, tensor in before.items()
    )
