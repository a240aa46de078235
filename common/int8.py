"""LLM.int8 in one linear layer: a frozen matrix at a byte a weight, that computes with bytes.

    y = x W^T        x (T, in) activations, W (out, in) stored as int8 with one scale a row: W = weight * scale

The rows of x are quantised as they come, so that the product is one of integers (torch._int_mm), which plain CPUs and
GPUs do several times as fast as one of floats. A few columns of a language model's activations are far larger than the
rest, and would leave the rest of their row no resolution: columns with a value above 6.0 go through the exact product.
Paper: LLM.int8() (2022), section 3. Written for CPU and CUDA; it has not been run on CUDA.
"""
import torch
import torch.nn.functional as F
from torch import nn

OUTLIER = 6.0                                                 # the paper's threshold, in units of the activation


def quantise(rows, largest=None):
    """Rows (N, D) of floats -> int8 (N, D) and float32 scales (N, 1), absmax / 127, with rows = int8 * scale.
    largest: the absmax (N, 1), if it is known."""
    largest = rows.abs().amax(dim=-1, keepdim=True) if largest is None else largest
    scale = largest.float().clamp(min=1e-30).div_(127)
    return (rows / scale).round_().to(torch.int8), scale


def int_matmul(rows, weight):
    """int8 (N, in) times int8 (out, in), transposed -> int32 (N, out)."""
    if rows.is_cuda:                                          # there all sizes are multiples of 8, and N is above 16
        n, out, inner = len(rows), len(weight), -rows.shape[1] % 8
        rows = F.pad(rows, (0, inner, 0, max(24 - n, -n % 8)))
        weight = F.pad(weight, (0, inner, 0, -out % 8)) if inner or out % 8 else weight
        return torch._int_mm(rows, weight.t())[:n, :out]
    if len(rows) == 1:                                        # reads memory up to half as fast again
        return torch._int_mm(weight, rows.t()).t()
    return torch._int_mm(rows, weight.t())


def int8_linear(x, weight, scale, outlier=OUTLIER):
    """x (N, in) times weight (out, in) int8 * scale (out,), transposed -> (N, out), computed in float32.

    outlier: columns of x with a value above it are multiplied exactly; infinity is the plain scheme.
    """
    x, exact = x.float(), None
    largest = x.abs().amax(dim=-1, keepdim=True)
    if largest.max().item() > outlier:
        columns = (x.abs().amax(dim=0) > outlier).nonzero()[:, 0]
        exact = x[:, columns] @ weight.t().index_select(0, columns).float()
        x, largest = x.index_fill(1, columns, 0), None
    rows, row_scale = quantise(x, largest)
    y = int_matmul(rows, weight).float().mul_(row_scale)      # (N, out); in place: fresh memory is slow
    return (y if exact is None else y.add_(exact)).mul_(scale)


class Int8Matmul(torch.autograd.Function):
    """int8_linear with a gradient to its input; the weight is frozen. It keeps no copy of either."""

    @staticmethod
    def forward(ctx, x, weight, scale):
        ctx.save_for_backward(weight, scale)
        return int8_linear(x, weight, scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        weight, scale = ctx.saved_tensors
        return ((grad.float() * scale) @ weight.float()).to(grad.dtype), None, None


class Int8Linear(nn.Module):
    """A frozen Linear: weight int8 (out, in), scale float32 (out,), the bias if there is one in floats."""

    def __init__(self, inputs, outputs, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, dtype=torch.int8), requires_grad=False)
        self.register_buffer("scale", torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs), requires_grad=False) if bias else None

    def forward(self, x):                                     # (..., in) -> (..., out)
        rows = x.flatten(0, -2)
        if rows.requires_grad and torch.is_grad_enabled():
            y = Int8Matmul.apply(rows, self.weight, self.scale)
        else:
            y = int8_linear(rows, self.weight, self.scale).to(x.dtype)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias
