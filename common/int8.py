"""int8 in one linear layer: a frozen matrix at a byte a weight, so a token reads a quarter of the
memory that float32 weights take.

    y = x W^T      x (T, in) activations, W (out, in) int8 with a scale a row: W = weight * scale

A few columns of a language model's activations are far larger than the rest (LLM.int8(), 2022), so
one int8 digit is too coarse for them: it leaves the rest of their row no resolution. Where a CPU
multiplies integers exactly, which is several times as fast as floats, a row of x becomes two
digits, as in 37 = 3 * 10 + 7:

    x = unit * (256 * high + low)        unit = largest / 32512

Both are rows of one product, which gives the two halves of y. Elsewhere x stays as it is.
"""
from functools import cache

import torch
from torch import nn

ZERO = 128                                                    # a digit d is stored as d + 128
LARGEST = 127 * 256                                           # of |256 * high + low|
ROWS = 1024                                                   # of a matrix, as floats at a time
FEW = 64                                                      # rows of x that bfloat16 is fast for


def quantise(rows):
    """Rows (N, D) of floats -> int8 (N, D) and float32 scales (N, 1), with rows = int8 * scale."""
    scale = rows.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-30).div_(127)
    return (rows / scale).round_().to(torch.int8), scale


def packed_product(x, packed, scale):
    """x (T, in) times a matrix (out, in) -> float32 (T, out), on a CPU where exact() holds. packed:
    the matrix in the order in which oneDNN reads it (what torch.compile uses for int8 models).

    A float 2^23 + n is rounded to the whole number n, whose bytes are its first: here low + 128,
    high + 128 for n = 256 * high + low + 32896."""
    unit = x.abs().amax(dim=-1, keepdim=True).float() / LARGEST  # (T, 1); 0 / 0 is NaN, but y is 0
    places = (x / unit).add_(2.0 ** 23 + 257 * ZERO).view(torch.uint8).unflatten(-1, (-1, 4))
    digits = places[..., :2].permute(2, 0, 1).flatten(0, 1)   # (2 T, in), first all low ones
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    y = torch.ops.onednn.qlinear_pointwise(digits, 1.0, ZERO, packed, scale.float(), zeros, None,
                                           1.0, 0, torch.float32, "none", [], "")
    low, high = y.chunk(2)
    return low.add_(high, alpha=256).mul_(unit)


@cache
def exact():
    """Whether this CPU's integer product of the largest digits is exact, and can be packed. Without
    VNNI instructions pairs of products are added in 16 bits, which overflow."""
    weight, ones = torch.full((32, 256), 127, dtype=torch.int8), torch.ones(2, 256)
    try:
        found = packed_product(ones, torch.ops.onednn.qlinear_prepack(weight, None), ones[0, :32])
    except (AttributeError, RuntimeError):                    # a torch without oneDNN
        return False
    return bool((found - 127 * 256).abs().max() < 1)


class Int8Matmul(torch.autograd.Function):
    """x (T, in) times weight (out, in) and scale (out,), which are frozen and never floats as a
    whole -> (T, out)."""

    @staticmethod
    def parts(weight, scale, dtype):
        """The matrix in floats, ROWS at a time."""
        for part, scales in zip(weight.split(ROWS), scale.split(ROWS), strict=True):
            yield (part * scales[:, None]).to(dtype)

    @staticmethod
    def forward(ctx, x, weight, scale):
        ctx.save_for_backward(weight, scale)
        return torch.cat([x @ part.t() for part in Int8Matmul.parts(weight, scale, x.dtype)], dim=1)

    @staticmethod
    def backward(ctx, grad):
        parts = Int8Matmul.parts(*ctx.saved_tensors, grad.dtype)
        return sum(map(torch.matmul, grad.split(ROWS, dim=1), parts)), None, None


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
        rows = x.flatten(0, -2).contiguous()
        few = len(rows) <= FEW and self.in_features % 32 == 0 and rows.is_cpu
        if self.packed is not None:
            y = packed_product(rows, self.packed, self.scale)
        elif few and not x.requires_grad:
            y = torch._weight_int8pack_mm(rows.bfloat16(), self.weight, self.scale.bfloat16())
        else:
            y = Int8Matmul.apply(rows, self.weight, self.scale)
        y = y if self.bias is None else y + self.bias         # which may be float32, an adapter's
        return y.to(x.dtype).view(*x.shape[:-1], -1)

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
