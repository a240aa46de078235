"""AdamW, and what lets a large model be trained on a small card: moments of two bytes per weight,
and activations that are computed a second time."""
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from training.processes import local


def optimizer_for(parameters, recipe, moments="float32"):
    """AdamW with weight decay on matrices only, not on norms. moments: their dtype, float32 or
    bfloat16. They are there before the first step, for a checkpoint to be copied into."""
    decay, options = recipe.weight_decay, {"lr": recipe.lr, "betas": (0.9, 0.999), "eps": 1e-8}
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
              {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
    adamw = (AdamWbfloat16(groups, options) if moments == "bfloat16" else
             torch.optim.AdamW(groups, **options, fused=True))
    for parameter in parameters:
        zeros = torch.zeros_like(parameter, dtype=getattr(torch, moments))
        adamw.state[parameter] = {"step": torch.zeros((), device=parameter.device),
                                  "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
    return adamw


def rounded(values, generator):
    """float32 values as bfloat16, rounded up or down at random, in proportion: a moment changes by
    a thousandth in a step, which rounding to the nearest would lose."""
    noise = torch.randint(2 ** 16, values.shape, dtype=torch.int32, generator=generator,
                          device=values.device)
    bits = values.view(torch.int32) + noise
    return (bits >> 16 << 16).view(torch.float32).bfloat16()


class AdamWbfloat16(torch.optim.Optimizer):
    """torch.optim.AdamW with both moments in bfloat16. Its random numbers follow from the step
    alone: a run that is resumed has the same bits, and so have the processes of DDP."""

    @torch.no_grad()
    def step(self):
        number = 0
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                number, state = number + 1, self.state[parameter]
                state["step"] += 1
                step, weights = int(state["step"]), local(parameter)
                gradient = local(parameter.grad)
                mean, square = local(state["exp_avg"]), local(state["exp_avg_sq"])
                new_mean = mean.float().lerp_(gradient, 1 - beta1)
                new_square = square.float().mul_(beta2)
                new_square.addcmul_(gradient, gradient, value=1 - beta2)
                weights.mul_(1 - group["lr"] * group["weight_decay"])
                deviation = (new_square / (1 - beta2 ** step)).sqrt_().add_(group["eps"])
                weights.addcdiv_(new_mean, deviation, value=-group["lr"] / (1 - beta1 ** step))
                generator = torch.Generator(weights.device).manual_seed(step * 1_000_003 + number)
                mean.copy_(rounded(new_mean, generator))
                square.copy_(rounded(new_square, generator))


def recompute_blocks(llama):
    """Activation checkpointing: keep each block's input alone, and compute the block again when its
    gradient is needed. Less memory for about a third more arithmetic."""
    for block in llama.blocks:                                # nothing in them is drawn at random
        block.forward = partial(checkpoint, block.forward, use_reentrant=False,
                                preserve_rng_state=False)
