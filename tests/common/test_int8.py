"""int8.py: its error, its gradient, and the models that compute with it."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from artgpt4 import ArtGPT4
from common.int8 import (
    Int8Linear, exact, from_digits, plain_product, quantise, quantise_adapters, two_digits,
)
from gallery.pretrain import save_pretrained
from tests.devices import on_every_device

ROOT = Path(__file__).parent.parent.parent


def error(found, exact):
    return ((found - exact).norm() / exact.norm()).item()


def layer(inputs, outputs, generator, bias=False, device="cpu"):
    """An Int8Linear and the float matrix that it holds, drawn on the CPU and moved to a device."""
    made, matrix = (
        Int8Linear(inputs, outputs, bias),
        torch.randn(outputs, inputs, generator=generator) / inputs**0.5,
    )
    weight, scale = quantise(matrix)
    made.load_state_dict({"weight": weight, "scale": scale[:, 0]}
                         | ({"bias": torch.randn(outputs, generator=generator)} if bias else {}))
    return made.to(device), matrix.to(device)


def normal(*shape, generator, device):
    """Drawn on the CPU, so it is the same on every device."""
    return torch.randn(*shape, generator=generator).to(device)


@pytest.mark.parametrize("rows", [1, 2, 7, 128])
@on_every_device
def test_two_digits_keep_what_columns_of_outliers_leave_of_the_rest(rows, device):
    generator = torch.Generator().manual_seed(0)
    made, matrix = layer(4000, 300, generator, device=device)
    held = made.weight.float() * made.scale[:, None]
    x = normal(rows, 4000, generator=generator, device=device)
    x[:, ::1000] *= 60                        # one column in a thousand at 60 times the rest
    assert error(made(x), x @ held.t()) <= 0.001
    assert error(made(x), x @ matrix.t()) <= 0.012            # the weights' own rounding


@on_every_device
def test_a_row_alone_and_among_others_gives_the_same(device):
    generator = torch.Generator().manual_seed(3)
    made, _ = layer(512, 64, generator, device=device)
    x = normal(9, 512, generator=generator, device=device)
    x *= torch.logspace(-3, 3, 9, device=device)[:, None]
    alone = torch.cat([made(row[None]) for row in x])
    assert torch.allclose(alone, made(x), rtol=1e-5, atol=0)


@on_every_device
def test_digits_are_the_number_they_stand_for(device):
    x = torch.tensor([[1.0, -1.0, 0.5, 0.001, 0.0], [3e-20, -2e-20, 1e-20, 0.0, 0.0]],
                     device=device)
    digits, unit = two_digits(x)
    low, high = digits.float().sub(128).chunk(2)
    assert torch.allclose((256 * high + low) * unit, x, rtol=0, atol=1.6e-5)
    small = (256 * high + low)[1] * unit[1]
    assert torch.allclose(small, x[1], rtol=0, atol=1.6e-5 * 3e-20)


@pytest.mark.parametrize("inputs, outputs", [(320, 48), (96, 33), (50, 7)])
@pytest.mark.parametrize("rows", [1, 8, 9, 16, 40])
@on_every_device
def test_the_plain_product_is_that_of_exact_numbers(inputs, outputs, rows, device):
    generator = torch.Generator().manual_seed(7)
    made, _ = layer(inputs, outputs, generator, device=device)
    digits, _ = two_digits(normal(rows, inputs, generator=generator, device=device))
    found = plain_product(digits, made.weight, made.scale)
    exact = (digits.double() - 128) @ made.weight.double().t() * made.scale.double()
    assert found.dtype == torch.float32 and found.device == made.weight.device
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mean", [0, 5])                      # 5: sums beyond 2^24, rounded
@pytest.mark.parametrize("inputs, outputs", [(320, 48), (96, 33), (4096, 64)])
def test_a_packed_layer_computes_the_same(inputs, outputs, mean):
    generator = torch.Generator().manual_seed(4)
    made, _ = layer(inputs, outputs, generator)
    made.weight.data.add_(mean).clamp_(-127, 127)
    for rows in (1, 2, 5, 40):
        x = torch.randn(rows, inputs, generator=generator) + mean
        digits, unit = two_digits(x)
        made.unpack()
        plain = from_digits(plain_product(digits, made.weight, made.scale), unit)
        found = made(x)
        assert (made.packed is not None) == exact()
        assert torch.allclose(found, plain, rtol=1e-6, atol=1e-6 * plain.abs().max().item())


def test_a_cpu_whose_integer_product_overflows_computes_in_floats():
    program = """
import torch
from common.int8 import Int8Linear
torch.manual_seed(0)
made = Int8Linear(256, 8, bias=False)
made.weight.data = torch.full((8, 256), 127, dtype=torch.int8)
x = torch.rand(3, 256) + 1
assert torch.allclose(made(x), x @ made.state_dict()["weight"].float().t(), rtol=1e-4)
"""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@on_every_device
def test_a_layer_of_another_dtype_computes_the_same(device):
    generator = torch.Generator().manual_seed(6)
    made, _ = layer(64, 32, generator, device=device)
    x = normal(3, 64, generator=generator, device=device)
    expected = made(x)
    found = made.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert error(found.float(), expected) < 0.01


def test_a_packed_layer_holds_its_weight_once_and_gives_it_back():
    generator = torch.Generator().manual_seed(5)
    made, _ = layer(64, 32, generator)
    weight = made.weight.data.clone()
    made.pack()
    assert made.packed is None or made.weight.numel() == 0
    assert torch.equal(made.state_dict()["weight"], weight)
    made.pack()
    assert torch.equal(made.to(torch.float32).weight, weight)


@on_every_device
def test_without_outliers_and_with_nothing_but_outliers(device):
    generator = torch.Generator().manual_seed(1)
    made, matrix = layer(512, 64, generator, bias=True, device=device)
    x = normal(3, 5, 512, generator=generator, device=device)
    assert made(x).shape == (3, 5, 64)
    assert error(made(x), x @ matrix.t() + made.bias) < 0.015
    assert error(made(100 * x), 100 * x @ matrix.t() + made.bias) < 0.015
    assert torch.equal(made(torch.zeros(2, 512, device=device)), made.bias.expand(2, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@on_every_device
def test_the_gradient_to_the_input_is_that_of_the_matrix(dtype, device):
    generator = torch.Generator().manual_seed(2)
    made, _ = layer(96, 40, generator, device=device)
    x = normal(6, 96, generator=generator, device=device).to(dtype).requires_grad_()
    y = made(x)
    grad = normal(6, 40, generator=generator, device=device).to(dtype)
    y.backward(grad)
    assert y.dtype == x.grad.dtype == dtype and made.weight.grad is None
    assert y.untyped_storage().nbytes() == y.nbytes           # what the backward pass would keep
    exact = grad.float() @ (made.weight.float() * made.scale[:, None])
    assert error(x.grad.float(), exact) < (1e-6 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("flags", [{"int8": True}, {"vision_int8": True}])
@on_every_device
def test_a_model_quantised_on_loading_answers_nearly_as_the_full_one(
    weights, model, expected, flags, device
):
    small = ArtGPT4.from_pretrained(weights["artgpt4"], device, **flags)
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
        image_embeds = small.encode_image(expected["pixels"]).cpu()
        assert error(image_embeds, expected["image_embeds"]) < 0.03
        embeds = model.embed_prompt(expected["chat_prompt"], expected["image_embeds"][:1])
        assert error(small.llama(embeds.to(device)).cpu(), model.llama(embeds)) < 0.05


def test_a_quantised_model_is_saved_and_loaded_to_the_bit(weights, tmp_path):
    small = ArtGPT4.from_pretrained(weights["artgpt4"], int8=True, vision_int8=True)
    save_pretrained(small, tmp_path)
    again = ArtGPT4.from_pretrained(tmp_path)
    assert small.state_dict().keys() == again.state_dict().keys()
    assert all(
        torch.equal(tensor, again.state_dict()[name]) for name, tensor in small.state_dict().items()
    )


@on_every_device
def test_everything_that_trains_moves_on_an_int8_language_model(weights, expected, device):
    small = ArtGPT4.from_pretrained(weights["artgpt4"], device, int8=True)
    optimizer = torch.optim.AdamW(small.freeze(), lr=1e-3)
    before = {name: small.get_parameter(name).clone() for name in small.trainable_names()}
    small.loss(expected["pixels"], expected["captions"]).backward()
    optimizer.step()
    assert all(
        not torch.equal(tensor, small.get_parameter(name)) for name, tensor in before.items()
    )


@on_every_device
def test_adapters_in_int8_answer_nearly_as_float_ones(weights, model, expected, device):
    small = ArtGPT4.from_pretrained(weights["artgpt4"], device)
    quantise_adapters(small)
    assert all(type(block.adapter.down) is type(block.adapter.up) is Int8Linear
               for block in small.llama.blocks)
    with torch.no_grad():
        embeds = model.embed_prompt(expected["chat_prompt"], expected["image_embeds"][:1])
        assert error(small.llama(embeds.to(device)).cpu(), model.llama(embeds)) < 0.03
        assert not torch.equal(small.llama(embeds.to(device)).cpu(), model.llama(embeds))


def test_what_is_not_a_number_stays_so():
    made, _ = layer(64, 32, torch.Generator().manual_seed(8))
    x = torch.ones(3, 64)
    x[0, 5], x[1, 5] = float("nan"), float("inf")
    finite = made(x).isfinite().all(dim=-1)
    assert finite.tolist() == [False, False, True]
