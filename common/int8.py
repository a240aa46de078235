"""LLM.int8 in one linear layer: a frozen matrix at a byte a weight, computed with in bytes.

    y = x W^T      x (T, in) activations, W (out, in) int8 with a scale a row: W = weight * scale

The rows of x are quantised as they come, so that the product is one of integers
(torch._int_mm), which CPUs and GPUs do several times as fast as one of floats. A few columns of a
language model's activations are far larger than the rest, and would leave the rest of their row
no resolution: columns with a value above 6.0 go through an exact product. Paper: LLM.int8()
(2022), section 3. Written for CPU and CUDA; it has not been run on CUDA.
"""
import torch
import torch.nn.functional as F
from torch import nn

OUTLIER = 6.0                                                 # the paper's threshold


def quantise(rows, largest=None):
    """Rows (N, D) of floats -> int8 (N, D) and float32 scales (N, 1), with rows = int8 * scale.

    The scale is absmax / 127. largest: the absmax (N, 1), if it is known.
    """
    if largest is None:
        largest = rows.abs().amax(dim=-1, keepdim=True)
    scale = largest.float().clamp(min=1e-30).div_(127)
    return (rows / scale).round_().to(torch.int8), scale


def int_matmul(rows, weight):
    """int8 (N, in) times int8 (out, in), transposed -> int32 (N, out)."""
    if rows.is_cuda:                          # there all sizes are multiples of 8, and N above 16
        n, out, inner = len(rows), len(weight), -rows.shape[1] % 8
        rows = F.pad(rows, (0, inner, 0, max(24 - n, -n % 8)))
        if inner or out % 8:
            weight = F.pad(weight, (0, inner, 0, -out % 8))
        return torch._int_mm(rows, weight.t())[:n, :out]
    if len(rows) == 1:  # reads memory up to half as fast again
        return torch._int_mm(weight, rows.t()).t()
    return torch._int_mm(rows, weight.t())


def int8_linear(x, weight, scale, outlier=OUTLIER):
    """x (N, in) times weight (out, in) int8 * scale (out,), transposed -> (N, out), float32.

    outlier: columns of x with a value above it are multiplied exactly; infinity: none are.
    """
    x, exact = x.float(), None
    largest = x.abs().amax(dim=-1, keepdim=True)
    if largest.max().item() > outlier:
        columns = (x.abs().amax(dim=0) > outlier).nonzero()[:, 0]
        exact = x[:, columns] @ weight.t().index_select(0, columns).float()
        x, largest = x.index_fill(1, columns, 0), None
    rows, row_scale = quantise(x, largest)
    y = int_matmul(rows, weight).float().mul_(row_scale)      # (N, out); in place: memory is slow
    if exact is not None:
        y.add_(exact)
    return y.mul_(scale)


class Int8Matmul(torch.autograd.Function):
    """int8_linear with a gradient to its input; the weight is frozen. No copy is kept."""

    @staticmethod
    def forward(ctx, x, weight, scale):
        ctx.save_for_backward(weight, scale)
        return int8_linear(x, weight, scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        weight, scale = ctx.saved_tensors
        return ((grad.float() * scale) @ weight.float()).to(grad.dtype), None, None


class Int8Linear(nn.Module):
    """A frozen Linear: weight int8 (out, in), scale float32 (out,), a bias of floats if any."""

    def __init__(self, inputs, outputs, bias=True):
        super().__init__()
        weight = torch.zeros(outputs, inputs, dtype=torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)
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
    """replace_linears, and in state, {name: tensor}, int8 weights and scales for float ones."""
    for name in replace_linears(model):
        weight = state.get(f"{name}.weight")
        if weight is not None and weight.is_floating_point() and weight.ndim == 2:
            state[f"{name}.weight"], scale = quantise(weight)
            state[f"{name}.scale"] = scale[:, 0]
