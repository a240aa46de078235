"""int8 in one linear layer: a frozen matrix at a byte a weight, and activations of two digits.

    y = x W^T      x (T, in) activations, W (out, in) int8 with a scale a row: W = weight * scale

A product of integers is several times as fast as one of floats, and at a byte a weight it reads a
quarter of the memory. One int8 digit is too coarse for activations: a few columns of a language
model's activations are far larger than the rest (LLM.int8(), 2022) and leave the rest of their
row no resolution. So a row of x becomes two digits, as in 37 = 3 * 10 + 7:

    x = unit * (256 * high + low)        unit = largest / 32512

Both digits are rows of one product, which gives the two halves of y. With one token that is two
rows, and they cost what one costs: the time goes into reading the matrix.

On a CPU the matrix is packed once in the order in which oneDNN reads it (what torch.compile uses
for int8 models). A CPU without VNNI instructions adds pairs of products in 16 bits, which
overflow; exact() finds that out, and floats compute there instead. Elsewhere torch._int_mm
computes; on CUDA its tests passed on an H200.
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
    """x (T, in) floats -> digits uint8 (2 T, in), first all low ones, and the units (T, 1).

    x = unit * (256 * high + low).

    The number 256 * high + low + 32896 has low + 128 in its first byte, high + 128 in its second;
    so has the float that is 2^23 larger, since at 2^23 the last bit of a float counts ones.
    """
    x, (count, width) = x.float(), x.shape
    unit = x.abs().amax(dim=-1, keepdim=True) / LARGEST       # a row of zeros: NaN, and y is 0
    numbers = (x / unit).add_(2.0 ** 23 + 257 * ZERO)
    places = numbers.view(torch.uint8).as_strided((2, count, width), (1, 4 * width, 4))
    return places.flatten(0, 1), unit


def from_digits(products, unit):
    """The products (2 T, out) of digits with a matrix, and the units (T, 1) -> y (T, out), in the
    memory of the products."""
    low, high = products.chunk(2)
    return low.add_(high, alpha=256).mul_(unit)


def pack(weight, scale):
    """What packed_product needs of a matrix int8 (out, in) and its scale (out,), on a CPU."""
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    return packed, scale.float(), torch.zeros(len(weight), dtype=torch.int64)


def packed_product(digits, packed, scale, zeros):
    """digits uint8 (N, in) times a matrix (out, in) -> float32 (N, out)."""
    return torch.ops.onednn.qlinear_pointwise(
        digits, 1.0, ZERO, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], "")


def plain_product(digits, weight, scale):
    """The same with the matrix as it is stored, int8 (out, in), on any device."""
    digits = digits.bitwise_xor(ZERO).view(torch.int8)        # without the 128
    scale = scale.float()
    if digits.is_cuda:                        # there all sizes are multiples of 8, and N above 16
        n, out, inner = len(digits), len(weight), -digits.shape[1] % 8
        digits = F.pad(digits, (0, inner, 0, max(24 - n, -n % 8)))
        if inner or out % 8:
            weight = F.pad(weight, (0, inner, 0, -out % 8))
        return torch._int_mm(digits, weight.t())[:n, :out].float().mul_(scale)
    if not exact():
        return (digits.float() @ weight.float().t()).mul_(scale)
    return torch._int_mm(digits, weight.t()).float().mul_(scale)


@cache
def exact():
    """Whether this CPU's integer product of the largest digits is exact, and can be packed."""
    digits = torch.full((2, 256), 255, dtype=torch.uint8)
    weight = torch.full((32, 256), 127, dtype=torch.int8)
    try:
        found = packed_product(digits, *pack(weight, torch.ones(32)))
    except (AttributeError, RuntimeError):                    # a torch without oneDNN
        return False
    return bool((found == 127 * 127 * 256).all())


class Int8Matmul(torch.autograd.Function):
    """The product with a gradient to its input; the weight is frozen. No copy is kept."""

    @staticmethod
    def forward(ctx, x, weight, scale):
        ctx.save_for_backward(weight, scale)
        digits, unit = two_digits(x)
        y = from_digits(plain_product(digits, weight, scale), unit)
        return y.to(x.dtype, copy=True)                       # alone: the products are not kept

    @staticmethod
    def backward(ctx, grad):
        weight, scale = ctx.saved_tensors
        scaled, grad_x = grad.float() * scale, 0
        for columns, rows in zip(scaled.split(ROWS, dim=1), weight.split(ROWS), strict=True):
            grad_x = grad_x + columns @ rows.float()          # never the whole matrix as floats
        return grad_x.to(grad.dtype), None, None


class Int8Linear(nn.Module):
    """A frozen Linear: weight int8 (out, in), scale float32 (out,), a bias of floats if any.

    On a CPU pack() packs the weight; so does a use without gradients, once `unpacked_uses` of them
    are over. It then exists in that form alone; state_dict() and whatever moves the layer bring it
    back.
    """

    def __init__(self, inputs, outputs, bias=True):
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        weight = torch.zeros(outputs, inputs, dtype=torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs), requires_grad=False) if bias else None
        self.packed, self.unpacked_uses = None, 0

    def forward(self, x):                                     # (..., in) -> (..., out)
        rows = x.flatten(0, -2)
        if torch.is_grad_enabled() and rows.requires_grad:
            self.unpack()
            y = Int8Matmul.apply(rows, self.weight, self.scale)
        else:
            digits, unit = two_digits(rows)
            y = from_digits(self.product(digits), unit).to(x.dtype)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    def product(self, digits):
        """Digits uint8 (N, in) times the matrix -> floats (N, out)."""
        if self.unpacked_uses > 0:
            self.unpacked_uses -= 1
        else:
            self.pack()
        if self.packed is None:
            return plain_product(digits, self.weight, self.scale)
        return packed_product(digits, *self.packed)

    def can_pack(self):
        return self.packed is None and self.weight.device.type == "cpu" and exact()

    def pack(self):
        """Keep the weight in oneDNN's order alone, where that is possible."""
        weight = self.weight.data                             # before another thread may empty it
        if self.can_pack():
            self.packed = pack(weight, self.scale)
            self.weight.data = weight.new_empty(0)

    def unpack(self):
        """Keep the weight as it is stored alone."""
        if self.packed is not None:
            self.weight.data = self.packed[0].to_dense().t().contiguous()
            self.packed = None

    def _apply(self, function, recurse=True):                 # .to(), .cuda(), .float(), ...
        self.unpack()
        return super()._apply(function, recurse)

    def _save_to_state_dict(self, *arguments):
        self.unpack()
        super()._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments):
        self.unpack()
        super()._load_from_state_dict(*arguments)


def quantise_adapters(model):
    """Put Int8Linear in place of the adapters' matrices too, of a model that trains no more.

    They are stored as float32 for the optimizer, and would be half of what a token reads.
    """
    for block in model.llama.blocks:
        for name, linear in list(block.adapter.named_children()):
            weight, scale = quantise(linear.weight.data)
            int8 = Int8Linear(linear.in_features, linear.out_features)
            int8.weight.data, int8.scale, int8.bias.data = weight, scale[:, 0], linear.bias.data
            setattr(block.adapter, name, int8)


def replace_linears(model):
    """Put Int8Linear in place of every Linear of the parts that config says are int8.

    model: an ArtGPT4 on "meta". The adapters and the projection stay: they are trainable, and of
    another class. Returns the names of the replaced modules.
    """
    parts = {"llama": model.config.llama.int8, "vit": model.config.vit.int8}
    linears = [(name, module) for name, module in model.named_modules()
               if type(module) is nn.Linear and parts.get(name.partition(".")[0])]
    for name, linear in linears:
        parent, _, child = name.rpartition(".")
        with torch.device("meta"):
            int8 = Int8Linear(linear.in_features, linear.out_features, linear.bias is not None)
        setattr(model.get_submodule(parent), child, int8)
    return [name for name, _ in linears]


def quantise_model(model, state):
    """replace_linears, and in state, {name: tensor}, int8 weights and scales for float ones.

    What stands in a file beside such matrices is copied: the mapped file then takes no memory once
    they are packed.
    """
    names = {f"{name}.weight" for name in replace_linears(model)}
    llama, vit = model.config.llama.int8, model.config.vit.int8
    for name, tensor in list(state.items()):
        if name in names and tensor.is_floating_point() and tensor.ndim == 2:
            state[name], scale = quantise(tensor)
            state[name.removesuffix("weight") + "scale"] = scale[:, 0]
        elif name not in names and ".adapter." not in name:
            copied = llama if name.startswith("llama.") else vit
            state[name] = tensor.clone() if copied else tensor
