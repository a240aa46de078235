"""The arithmetic of a training step, and how much of it the machine can do."""
import sys
import time

import torch

from training.processes import say


def parameters_in_matrices(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)


def operations(model, mode, checkpointing=False):
    """Multiplications and additions that a step does for each (pair, token, text token).

    Tokens are those of prompts, texts and image vectors. Only products with weight matrices count,
    not those inside attention, nor padding.
    """
    queries, vision = model.config.qformer.queries, 0
    if model.vit is not None:                                 # else its vectors come from a file
        vision = vision_operations(model)
    trainable = {id(p) for module in model.trainable_modules(mode) for p in module.parameters()}
    passes = 3 if checkpointing else 2                        # forward, again, gradient of inputs

    def products(module):
        matrices = [p for p in module.parameters() if p.ndim > 1]
        return sum(p.numel() * (passes + int(id(p) in trainable)) for p in matrices)

    blocks, last = products(model.llama.blocks), model.llama.blocks[-1]
    at_text = products(last) - products(last.attn.qkv)        # the last block's other rows are left
    head = 2 * model.config.llama.vocab_size * model.config.llama.hidden_size
    proj = 2 * parameters_in_matrices(model.proj)
    return [2 * count for count in (vision + proj * queries, blocks - at_text, at_text + head)]


def vision_operations(model):
    """Products of weights and activations that ViT and Q-Former take for a picture."""
    patches, queries = model.vit.pos_embed.shape[1], model.config.qformer.queries
    count = parameters_in_matrices(model.vit) * patches
    for layer in model.qformer.layers:
        count += parameters_in_matrices(layer) * queries
        if layer.cross_attn is not None:                      # keys and values of all patches
            cross = layer.cross_attn
            count += (cross.key.weight.numel() + cross.value.weight.numel()) * (patches - queries)
    return count


def machine_operations(device, dtype):
    """Operations per second of a product of square matrices: the best of three."""
    size = 8192 if device.type == "cuda" else 1024
    square = torch.ones(size, size, dtype=dtype, device=device)
    best = 0.0
    for repeat in range(4):                                   # the first warms up
        start = time.perf_counter()
        (square @ square)[0, 0].item()
        if repeat > 0:
            best = max(best, 2 * size ** 3 / (time.perf_counter() - start))
    return best


def share_of_machine(model, mode, device, dtype, checkpointing=False):
    """A function (seconds, pairs, tokens, text_tokens) of a step -> its operations per second, as a
    share of what the machine's product reaches, which is measured now."""
    per_pair, per_token, per_text_token = operations(model, mode, checkpointing)
    machine = machine_operations(device, dtype)
    if dtype == torch.bfloat16 and device.type == "cpu":
        in_float32 = machine_operations(device, torch.float32)
        if machine < in_float32:
            say(f"warning: this CPU's matrix product in bfloat16 has {machine / in_float32:.2f} "
                "times the speed of float32; --dtype float32 is faster (python bench.py --train)",
                sys.stderr)

    def share(seconds, pairs, tokens, text_tokens):
        done = pairs * per_pair + tokens * per_token + text_tokens * per_text_token
        return done / seconds / machine
    return share
