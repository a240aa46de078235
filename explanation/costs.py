"""What each part of a model costs, from its Config alone.

The model is built and run on torch's "meta" device, which has shapes but no numbers, and every
product is counted as it comes by. So the 13B is counted in a second, without its weights.
"""
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import nn

from artgpt4 import ArtGPT4, KVCache, LlamaAttention, QFormerAttention, ViTAttention
from explanation.recording import hooked

PARTS = {"ViT": ("vit", "ln_vision"), "Q-Former": ("qformer",), "projection": ("proj",),
         "language model": ("llama",), "adapters": ("adapter",)}


class Cost(NamedTuple):
    """Of one part of a model."""
    parameters: int
    trainable: int
    multiplications: int          # to encode a picture and read the prompt
    for_a_word: int               # multiplications for one more token
    size: int                     # bytes: frozen parameters in 2, trainable ones in 4
    size_int8: int                # the same with a byte a weight in the language model's matrices


def part_of(name):
    """The part to which a parameter or a module belongs. An adapter is not the language model."""
    names = name.split(".")
    if "adapter" in names:
        return "adapters"
    return next(part for part, beginnings in PARTS.items() if names[0] in beginnings)


def attention_products(module, inputs):
    """Multiplications of the two products q k^T and weights @ v, as far as tokens are seen."""
    x = inputs[0]
    width, queries = x.shape[-1], x.shape[1]
    if isinstance(module, LlamaAttention):
        first, cache = inputs[3:]
        asking = len(range(queries)[first:])                  # the last tokens; none looks ahead
        pairs = asking * (cache.length + queries) - asking * (asking - 1) // 2
    elif isinstance(module, QFormerAttention):
        width = module.query.out_features
        pairs = queries * inputs[1].shape[1]
    else:
        pairs = queries * queries
    return 2 * pairs * width


@torch.inference_mode()
def multiplications(model, tokens):
    """({part: count} for a picture and a prompt of `tokens` tokens, the same for one token more).
    model: on "meta"."""
    count = dict.fromkeys(PARTS, 0)

    def matrix(part):
        def add(module, inputs, output):
            count[part] += output.numel() * module.weight[0].numel()
        return add

    def convolution(module, inputs, output):
        count["ViT"] += output.numel() * module.weight[0].numel()

    def attention(part):
        def add(module, inputs, output):
            count[part] += attention_products(module, inputs)
        return add

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append((module, matrix(part_of(name))))
        elif isinstance(module, nn.Conv2d):
            hooks.append((module, convolution))
        elif isinstance(module, LlamaAttention | QFormerAttention | ViTAttention):
            hooks.append((module, attention(part_of(name))))
    size, width = model.config.image_size, model.config.llama.hidden_size
    cache = KVCache()
    with hooked(*hooks):
        model.encode_image(torch.empty(1, 3, size, size, device="meta"))
        for new in (tokens, 1):
            hidden = model.llama.hidden(torch.empty(1, new, width, device="meta"), cache,
                                        first=-1)
            model.llama.logits(hidden)
            if new == tokens:
                first = dict(count)
    return first, {part: count[part] - first[part] for part in PARTS}


def costs(config, tokens):
    """{part: Cost} of a model, for a prompt of `tokens` tokens with its image vectors."""
    config = deepcopy(config)
    config.llama.int8 = config.vit.int8 = False               # int8 needs numbers, not shapes
    with torch.device("meta"):
        model = ArtGPT4(config, None)
    trainable = set(model.trainable_names())
    matrices = {f"{name}.weight" for name, module in model.llama.named_modules()
                if type(module) is nn.Linear}                 # those that int8 replaces
    sums = {part: [0, 0, 0, 0] for part in PARTS}
    for name, parameter in model.named_parameters():
        is_trainable, n = name in trainable, parameter.numel()
        width = 4 if is_trainable else 2
        in_int8 = name.removeprefix("llama.") in matrices
        row = sums[part_of(name)]
        row[0] += n
        row[1] += n if is_trainable else 0
        row[2] += width * n
        row[3] += n if in_int8 else width * n
    once, for_a_word = multiplications(model, tokens)
    return {part: Cost(parameters, trained, once[part], for_a_word[part], size, size_int8)
            for part, (parameters, trained, size, size_int8) in sums.items()}


def cache_bytes(config):
    """Bytes of the keys and values of one token, at 2 a number."""
    llama = config.llama
    head_width = llama.hidden_size // llama.num_attention_heads
    return 2 * 2 * llama.num_hidden_layers * llama.num_key_value_heads * head_width
