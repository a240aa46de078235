"""AdamW, and what lets a large model be trained on a small card: moments of two bytes per weight,
and activations that are computed a second time."""
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from training.processes import RANK, local


def optimizer_for(parameters, recipe, moments="float32"):
    """AdamW with weight decay on matrices only, not on norms. moments: their dtype, float32 or
    bfloat16."""
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    if moments == "bfloat16":
        return AdamWbfloat16(groups, {"lr": recipe.lr, "betas": (0.9, 0.999), "eps": 1e-8})
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.999), fused=True)


def rounded(values, generator):
    """float32 values as bfloat16, rounded up or down at random, in proportion: a moment changes by
    a thousandth in a step, which rounding to the nearest would lose."""
    noise = torch.randint(2 ** 16, values.shape, dtype=torch.int32, generator=generator,
                          device=values.device)
    bits = values.view(torch.int32) + noise
    return (bits >> 16 << 16).view(torch.float32).bfloat16()


class AdamWbfloat16(torch.optim.Optimizer):
    """torch.optim.AdamW with both moments in bfloat16. Its random numbers follow from the step
    alone, so a run that is resumed has the same bits."""

    @torch.no_grad()
    def step(self):
        number = RANK * 1000
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                number, state = number + 1, self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                    state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                state["step"] += 1
                step, weights = int(state["step"]), local(parameter)
                gradient = local(parameter.grad)
                mean = local(state["exp_avg"]).float().lerp_(gradient, 1 - beta1)
                square = local(state["exp_avg_sq"]).float().mul_(beta2)
                square.addcmul_(gradient, gradient, value=1 - beta2)
                weights.mul_(1 - group["lr"] * group["weight_decay"])
                deviation = (square / (1 - beta2 ** step)).sqrt_().add_(group["eps"])
                weights.addcdiv_(mean, deviation, value=-group["lr"] / (1 - beta1 ** step))
                generator = torch.Generator(weights.device).manual_seed(step * 1_000_003 + number)
                local(state["exp_avg"]).copy_(rounded(mean, generator))
                local(state["exp_avg_sq"]).copy_(rounded(square, generator))


def recompute_blocks(llama):
    """Activation checkpointing: keep each block's input alone, and compute the block again when its
    gradient is needed. Less memory for about a third more arithmetic."""
    for block in llama.blocks:
        block.forward = partial(recomputed, block.forward)


def recomputed(forward, *arguments):
    if torch.is_grad_enabled():
        return checkpoint(forward, *arguments, use_reentrant=False)
    return forward(*arguments)
