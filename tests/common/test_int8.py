"""int8.py: its error, its gradient, and the models that compute with it."""
import json
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from artgpt4 import ArtGPT4, Config
from common import int8
from common.int8 import Int8Linear, exact, is_int8, pack, quantise, quantised
from common.models import TINY
from tests.conftest import DEVICES

on_every_device = pytest.mark.parametrize("device", DEVICES)


def error(found, right):
    return ((found - right).norm() / right.norm()).item()


def layer(inputs, outputs, bias=False, device="cpu"):
    """An Int8Linear and the float matrix that it holds, drawn on the CPU and moved to a device."""
    torch.manual_seed(0)
    made, matrix = Int8Linear(inputs, outputs, bias), torch.randn(outputs, inputs) / inputs**0.5
    weight, scale = quantise(matrix)
    biases = {"bias": torch.randn(outputs)} if bias else {}
    made.load_state_dict({"weight": weight, "scale": scale[:, 0]} | biases)
    return made.to(device), matrix.to(device)


@pytest.mark.parametrize("rows", [1, 7, 128])
@on_every_device
def test_columns_of_outliers_leave_the_rest_of_a_row_its_resolution(rows, device):
    made, matrix = layer(4000, 300, device=device)
    held = made.weight.float() * made.scale[:, None]
    x = torch.randn(rows, 4000).to(device)
    x[:, ::1000] *= 60                        # one column in a thousand at 60 times the rest
    x *= torch.logspace(-19, 3, rows).to(device)[:, None]
    for most in (0.005, 0.001 if exact() else 0.005):
        assert error(made(x), x @ held.t()) <= most           # few rows alone are in bfloat16
        assert error(made(x), x @ matrix.t()) <= 0.013        # the weights' own rounding
        for row, y in zip(x, made(x), strict=True):
            assert error(made(row[None])[0], held @ row) <= most and error(y, held @ row) <= most
        made.pack()
        assert (made.packed is not None) == (device == "cpu" and exact())
        assert (made.packed is None) == (made.weight.numel() > 0)


@pytest.mark.parametrize("inputs, outputs", [
    (320, 48), (96, 33), (50, 7), (48, 9), (31, 1), (4096, 64)])
@pytest.mark.parametrize("rows, most", [(9, 0.005), (65, 1e-6)])
@on_every_device
def test_products_are_those_of_exact_numbers(inputs, outputs, rows, most, device):
    made, _ = layer(inputs, outputs, device=device)
    x = torch.randn(rows, inputs).to(device) + 5
    right = x.double() @ (made.weight.double() * made.scale.double()[:, None]).t()
    for _ in range(2):
        assert made(x).dtype == torch.float32 and error(made(x).double(), right) < most
        made.pack()
        most = 1e-3 if made.packed is not None else most


def test_a_cpu_whose_integer_product_overflows_is_found_out(monkeypatch):
    monkeypatch.setattr(int8, "packed_product", lambda x, *_: torch.zeros(len(x), 32))
    monkeypatch.setattr(int8, "exact", cache(exact.__wrapped__))
    made, matrix = layer(256, 8)
    made.pack()
    x = torch.randn(3, 256)
    assert not int8.exact() and made.packed is None and error(made(x), x @ matrix.t()) < 0.013


@on_every_device
def test_zeros_a_bias_other_dtypes_and_what_is_no_number(device):
    made, matrix = layer(512, 64, bias=True, device=device)
    x = torch.randn(3, 5, 512).to(device)
    assert made(x).shape == (3, 5, 64)
    assert error(made(100 * x), 100 * x @ matrix.t() + made.bias) < 0.015
    assert torch.equal(made(torch.zeros(2, 512, device=device)), made.bias.expand(2, -1))
    x[0, 0, 5], x[1, :, 5] = float("nan"), float("inf")
    assert made(x).isfinite().all(dim=-1).sum(dim=-1).tolist() == [4, 0, 5]
    found = made.to(torch.bfloat16)(x[2].to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert error(found.float(), x[2] @ matrix.t() + made.bias) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@on_every_device
def test_the_gradient_to_the_input_is_that_of_the_matrix(dtype, device):
    made, _ = layer(96, 40, device=device)
    x = torch.randn(6, 96).to(device, dtype).requires_grad_()
    y = made(x)
    grad = torch.randn(6, 40).to(device, dtype)
    y.backward(grad)
    assert y.dtype == x.grad.dtype == dtype and made.weight.grad is None
    assert y.untyped_storage().nbytes() == y.nbytes           # what the backward pass would keep
    right = grad.float() @ (made.weight.float() * made.scale[:, None])
    assert error(x.grad.float(), right) < (1e-6 if dtype == torch.float32 else 5e-3)


@torch.no_grad()
def outputs(model, device="cpu"):
    """The image vectors of noise, and the logits after ids: both on the CPU."""
    size = model.config.image_size
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    embeds = model.llama.embed(torch.arange(40, device=device)[None])
    return model.encode_image(pixels).float().cpu(), model.llama(embeds).cpu()


@pytest.mark.parametrize("llama, vit", [(True, False), (False, True), (True, True)])
@on_every_device
def test_a_model_quantised_on_loading_computes_nearly_as_the_full_one(llama, vit, device):
    model = ArtGPT4.from_pretrained(TINY, device)
    small = ArtGPT4.from_pretrained(TINY, device, prepare=quantised(llama, vit))
    assert (is_int8(small.llama), is_int8(small.vit)) == (llama, vit) and not is_int8(model)
    assert not is_int8(small.qformer) and type(small.proj) is type(model.proj)
    image_error, error_of_logits = map(error, outputs(small, device), outputs(model, device))
    assert (image_error == 0) != vit and image_error < 0.03
    assert (error_of_logits == 0) != llama and error_of_logits < 0.05
    done = []
    pack(small, lambda what, total, unit: SimpleNamespace(show=lambda n: done.append((n, total))))
    layers = [part for part in small.modules() if isinstance(part, Int8Linear)]
    assert done == [(n + 1, len(layers)) for n in range(len(layers))]
    assert is_int8(small.llama.blocks[0].adapter) == llama    # else they stay
    assert all(error(*both) < 0.05 for both in zip(
        outputs(small, device), outputs(model, device), strict=True))


HEAD = "llama.head"


@pytest.mark.parametrize("asked", [False, True])
def test_what_is_stored_as_int8_is_loaded_to_the_bit_and_wrong_int8_is_refused_by_name(asked):
    stored = ArtGPT4.from_pretrained(TINY, prepare=quantised(True, True)).state_dict()
    config = Config(**json.loads((TINY / "config.json").read_text()))

    def loaded(state):
        """The tensors of a model like the tiny one, made as from_pretrained does."""
        with torch.device("meta"):
            model = ArtGPT4(config, None)
        quantised(asked, asked)(model, state)
        model.load_state_dict(state, assign=True)
        return model.state_dict()

    again = loaded(dict(stored))
    assert stored.keys() == again.keys()
    assert all(map(torch.equal, stored.values(), again.values()))
    weight, scale = stored[f"{HEAD}.weight"], stored[f"{HEAD}.scale"]
    for name, wrong in ((f"{HEAD}.weight", weight.float()), (f"{HEAD}.weight", weight[:5]),
                        (f"{HEAD}.scale", scale[:5]), (f"{HEAD}.scale", scale * torch.nan),
                        (f"{HEAD}.scale", None), ("qformer.norm.scale", torch.ones(1))):
        state = {key: t for key, t in (stored | {name: wrong}).items() if t is not None}
        with pytest.raises((ValueError, RuntimeError), match=name.rpartition(".")[0]):
            loaded(state)
