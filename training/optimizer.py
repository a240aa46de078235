"""AdamW whose two moments take a byte per weight each: a quarter of the memory.

A moment is stored in blocks of 256 values, as codes beside the largest absolute value of the
block. A code is a root of the value, so that small values have about the same relative precision
as large ones: the square root of the mean, the fourth root of the squared mean. Codes are rounded
up or down at random, in proportion: a moment changes by a thousandth in a step, which rounding to
the nearest would lose. The random numbers follow from the step alone, so a run that is resumed
has the same bits. After "8-bit Optimizers via Block-wise Quantization" (2022).
"""
import math

import torch
import torch.nn.functional as F

BLOCK = 256             # values that share a scale
SMALLEST = 4096         # parameters with fewer values keep float32 moments
CHUNK = 2 ** 20         # values at a time: what is unpacked is small
MOMENTS = {             # of each: the root that a code is of, the largest code, the codes' type
    "exp_avg": (2, 127, torch.int8),
    "exp_avg_sq": (4, 255, torch.uint8),
}


def pack(values, moment, generator):
    """Values (N,) float32 -> codes (N,) and scales (N / BLOCK, rounded up)."""
    root, largest, dtype = MOMENTS[moment]
    blocks = F.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1)
    codes = (blocks / scales.clamp(min=1e-38)[:, None]).abs_().pow_(1 / root).mul_(largest)
    codes.mul_(blocks.sign())
    codes.add_(torch.rand(codes.shape, generator=generator, device=codes.device)).floor_()
    if moment == "exp_avg_sq":
        codes.clamp_(min=1)                                   # 0 would make the step infinite
    return codes.clamp_(-largest, largest).to(dtype).view(-1)[:len(values)], scales


def unpack(codes, scales, moment):
    """The float32 values (N,) that codes (N,) and their scales stand for."""
    root, largest, _ = MOMENTS[moment]
    blocks = F.pad(codes, (0, -len(codes) % BLOCK)).view(-1, BLOCK).float().div_(largest)
    values = blocks.abs().pow_(root).mul_(blocks.sign()).mul_(scales[:, None])
    return values.view(-1)[:len(codes)]


def moment_bytes(values):
    """The memory of both moments of a parameter with so many values."""
    if values < SMALLEST:
        return 2 * 4 * values
    return 2 * (values + 4 * math.ceil(values / BLOCK))


class AdamW8bit(torch.optim.Optimizer):
    """torch.optim.AdamW with moments of 8 bits."""

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self.update(parameter, group, number)

    def start(self, parameter):
        """The state of a parameter before its first step: moments of 0."""
        state = {"step": torch.tensor(0.0)}
        values = parameter.numel()
        for moment, (_, _, dtype) in MOMENTS.items():
            if values < SMALLEST:
                state[moment] = torch.zeros(values, device=parameter.device)
            else:
                state[moment] = torch.zeros(values, dtype=dtype, device=parameter.device)
                blocks = math.ceil(values / BLOCK)
                state[f"{moment}_scale"] = torch.zeros(blocks, device=parameter.device)
        return state

    def update(self, parameter, group, number):
        """One step of a parameter, CHUNK values at a time."""
        if not self.state[parameter]:
            self.state[parameter] = self.start(parameter)
        state = self.state[parameter]
        state["step"] += 1
        step = int(state["step"].item())
        generator = torch.Generator(parameter.device).manual_seed(step * 1_000_003 + number)
        weights, gradients = parameter.view(-1), parameter.grad.reshape(-1)
        for start in range(0, len(weights), CHUNK):
            part = slice(start, start + CHUNK)
            blocks = slice(start // BLOCK, (start + CHUNK) // BLOCK)
            moments = {moment: self.moment(state, moment, part, blocks) for moment in MOMENTS}
            adamw(weights[part], gradients[part], *moments.values(), step, group)
            for moment, values in moments.items():
                if f"{moment}_scale" in state:
                    codes, scales = pack(values, moment, generator)
                    state[moment][part], state[f"{moment}_scale"][blocks] = codes, scales

    def moment(self, state, moment, part, blocks):
        """Some values of a moment, float32; to be changed in place if they are stored so."""
        codes = state[moment][part]
        if f"{moment}_scale" not in state:
            return codes
        return unpack(codes, state[f"{moment}_scale"][blocks], moment)


def adamw(weights, gradients, mean, square, step, group):
    """A step of AdamW, in place, on vectors. step: the number of this one, from 1."""
    beta1, beta2 = group["betas"]
    mean.lerp_(gradients, 1 - beta1)
    square.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
    weights.mul_(1 - group["lr"] * group["weight_decay"])
    deviation = (square / (1 - beta2 ** step)).sqrt_().add_(group["eps"])
    weights.addcdiv_(mean, deviation, value=-group["lr"] / (1 - beta1 ** step))
