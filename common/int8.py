"""int8 in one linear layer: a frozen matrix at a byte a weight, and activations of two digits.

    y = x W^T      x (T, in) activations, W (out, in) int8 with a scale a row: W = weight * scale

A product of integers is several times as fast as one of floats, and at a byte a weight it reads a
quarter of the memory. One int8 digit is too coarse for activations: a few columns of a language
model's activations are far larger than the rest (LLM.int8(), 2022) and leave the rest of their
row no resolution. So a row of x becomes two digits, as in 37 = 3 * 10 + 7:

    x = unit * (256 * high + low)        unit = largest / 32512

Both digits are rows of one product, which gives the two halves of y. With one token that is two
rows, and they cost what one costs: the time goes into reading the matrix.
"""
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

ZERO = 128                                                    # a digit d is stored as d + 128
ROWS = 1024                                                   # floats at a time, going backward
LARGEST = 127 * 256                                           # of |256 * high + low|


def quantise(rows):
    """Rows (N, D) of floats -> int8 (N, D) and float32 scales (N, 1), with rows = int8 * scale."""
    scale = rows.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-30).div_(127)
    return (rows / scale).round_().to(torch.int8), scale


def two_digits(x):
    """x (T, in) floats -> digits uint8 (2 T, in), first all low ones, and the units (T, 1). A float
    2^23 + n is rounded to the whole number n, whose bytes are its first: here low + 128, high + 128
    for n = 256 * high + low + 32896."""
    unit = x.abs().amax(dim=-1, keepdim=True).float() / LARGEST          # 0 / 0 is NaN, but y is 0
    places = (x / unit).add_(2.0 ** 23 + 257 * ZERO).view(torch.uint8).unflatten(-1, (-1, 4))
    return places[..., :2].permute(2, 0, 1).flatten(0, 1), unit


def packed_product(digits, packed, scale):
    """digits uint8 (N, in) times a matrix (out, in) -> float32 (N, out), on a CPU. packed: the
    matrix in the order in which oneDNN reads it (what torch.compile uses for int8 models)."""
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    return torch.ops.onednn.qlinear_pointwise(digits, 1.0, ZERO, packed, scale.float(), zeros, None,
                                              1.0, 0, torch.float32, "none", [], "")


def plain_product(digits, weight, scale):
    """The same with the matrix as it is stored, int8 (out, in), on any device."""
    digits = digits.bitwise_xor(ZERO).view(torch.int8)        # without the 128
    n, out = len(digits), len(weight)
    if digits.is_cuda:                        # there all sizes are multiples of 8, and N above 16
        inner = -digits.shape[1] % 8
        digits = F.pad(digits, (0, inner, 0, max(24 - n, -n % 8)))
        if inner or out % 8:
            weight = F.pad(weight, (0, inner, 0, -out % 8))
    elif not exact():
        return (digits.float() @ weight.float().t()).mul_(scale)
    return torch._int_mm(digits, weight.t())[:n, :out].float().mul_(scale)


@cache
def exact():
    """Whether this CPU's integer product of the largest digits is exact, and can be packed. Without
    VNNI instructions pairs of products are added in 16 bits, which overflow."""
    digits = torch.full((2, 256), 255, dtype=torch.uint8)
    weight = torch.full((32, 256), 127, dtype=torch.int8)
    try:
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        found = packed_product(digits, packed, torch.ones(32))
    except (AttributeError, RuntimeError):                    # a torch without oneDNN
        return False
    return bool((found == 127 * 127 * 256).all())


class Int8Matmul(torch.autograd.Function):
    """x (T, in) times the matrix of an Int8Linear, with a gradient to x; the matrix is frozen."""

    @staticmethod
    def forward(ctx, x, weight, scale, product):
        ctx.save_for_backward(weight, scale)
        digits, unit = two_digits(x)
        low, high = product(digits).chunk(2)                  # (T, out) each
        y = low.add_(high, alpha=256).mul_(unit)
        return y.to(x.dtype, copy=ctx.needs_input_grad[0])    # a copy keeps no memory of `high`

    @staticmethod
    def backward(ctx, grad):
        weight, scale = ctx.saved_tensors
        scaled, grad_x = grad.float() * scale, 0
        for columns, rows in zip(scaled.split(ROWS, dim=1), weight.split(ROWS), strict=True):
            grad_x = grad_x + columns @ rows.float()          # never the whole matrix as floats
        return grad_x.to(grad.dtype), None, None, None


class Int8Linear(nn.Module):
    """A frozen Linear: weight int8 (out, in), scale float32 (out,), a bias of floats if any."""

    def __init__(self, inputs, outputs, bias=True):
        super().__init__()
        self.in_features, self.out_features, self.packed = inputs, outputs, None
        weight = torch.zeros(outputs, inputs, dtype=torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs), requires_grad=False) if bias else None

    def forward(self, x):                                     # (..., in) -> (..., out)
        y = Int8Matmul.apply(x.flatten(0, -2), self.weight, self.scale, self.product)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    def product(self, digits):
        """Digits uint8 (N, in) times the matrix -> floats (N, out)."""
        if self.packed is None:
            return plain_product(digits, self.weight, self.scale)
        return packed_product(digits, self.packed, self.scale)

    def pack(self):
        """Keep the weight in oneDNN's order alone, where that is possible: for answering only."""
        if self.packed is None and self.weight.device.type == "cpu" and exact():
            self.packed = torch.ops.onednn.qlinear_prepack(self.weight.data, None)
            self.weight.data = self.weight.new_empty(0)


# ---- Models: what is int8 shows in their modules alone


def is_int8(module):
    """Whether a model, or a part of one, has int8 matrices."""
    return any(isinstance(layer, Int8Linear) for layer in module.modules())


def quantised(llama=True, vit=False):
    """A function `prepare` for ArtGPT4.from_pretrained: the matrices of the parts that are asked
    for become int8, and what is stored as int8 stays so. It raises ValueError for anything else."""
    asked = {"llama": llama, "vit": vit}

    def prepare(model, state):
        for name, linear in list(model.named_modules()):
            weight, scale = state.get(f"{name}.weight"), state.get(f"{name}.scale")
            wanted = asked.get(name.partition(".")[0]) or scale is not None
            if type(linear) is not nn.Linear or not wanted:   # adapters are of another class
                continue
            with torch.device("meta"):
                int8 = Int8Linear(linear.in_features, linear.out_features, linear.bias is not None)
            model.set_submodule(name, int8)
            if weight is None:                                # load_state_dict names it
                continue
            if scale is None and weight.is_floating_point():
                weight, scale = quantise(weight)
            if weight.dtype != torch.int8 or scale is None or not scale.isfinite().all():
                raise ValueError(f"{name}.weight is {weight.dtype}; expected finite floats, or "
                                 "int8 with a finite scale a row")
            state |= {f"{name}.weight": weight, f"{name}.scale": scale.float().flatten()}
    return prepare


def pack(model, progress=None):
    """Speed up a model that only answers: the adapters of an int8 language model, which are float32
    for the optimizer and would be half of what a token reads, become int8 too, and every int8
    matrix is packed. progress: a class like command_line.Progress."""
    for block in model.llama.blocks if is_int8(model.llama) else ():
        for name, linear in list(block.adapter.named_children()):
            int8 = Int8Linear(linear.in_features, linear.out_features)
            int8.weight.data, scale = quantise(linear.weight.data)
            int8.scale, int8.bias.data = scale[:, 0], linear.bias.data
            setattr(block.adapter, name, int8)
    layers = [layer for layer in model.modules() if isinstance(layer, Int8Linear)]
    shown = progress and progress("packing int8 weights", len(layers), "matrices")
    for done, layer in enumerate(layers, start=1):
        layer.pack()
        if shown:
            shown.show(done)
