"""One check of all sizes, for the converter and the loader: each by name, file and key."""
import json
import math
from dataclasses import asdict, is_dataclass

LIMITS = {  # key: the lowest and the highest value that makes sense
    "image_size": (1, 10_000),
    "ln_vision_eps": (1e-15, 0.1),
    "adapter_width": (0, 1_000_000),
    "width": (1, 1_000_000),
    "layers": (1, 1_000),
    "heads": (1, 10_000),
    "mlp_width": (1, 1_000_000),
    "patch_size": (1, 1_000),
    "queries": (1, 10_000),
    "cross_every": (1, 1_000),
    "hidden_size": (2, 1_000_000),
    "intermediate_size": (1, 1_000_000),
    "num_hidden_layers": (1, 1_000),
    "num_attention_heads": (1, 10_000),
    "num_key_value_heads": (1, 10_000),
    "rms_norm_eps": (1e-15, 0.1),
    "rope_theta": (1.0, 1e12),
    "max_position_embeddings": (1, 100_000_000),
    "vocab_size": (1, 10_000_000),
}


def check_value(file, key, value, example):
    """Raises ValueError unless a value is of the type of `example`, finite, and within LIMITS."""
    kinds = (int, float) if isinstance(example, float) else (type(example),)
    low, high = LIMITS.get(key, (None, None))
    fits = type(value) in kinds                               # True is not a number here
    if fits and low is not None:
        fits = math.isfinite(value) and low <= value <= high
    if not fits:
        bounds = "" if low is None else f", from {low:,} to {high:,}"
        raise ValueError(f"{file}: {key} is {json.dumps(value)}; "
                         f"expected something like {json.dumps(example)}{bounds}")


def check_values(file, values, examples):
    """check_value for each key of a dataclass, `examples`, in the dictionary `values`."""
    for key, example in asdict(examples).items():
        check_value(file, key, values.get(key), example)


def check_llama(file, config):
    """Raises ValueError, naming the file, for sizes of a LlamaConfig that no LLaMA can have."""
    check_values(file, vars(config), type(config)())
    heads, width = config.num_attention_heads, config.hidden_size
    if width % heads or heads % config.num_key_value_heads:
        raise ValueError(f"{file}: num_attention_heads is {heads}; expected a divisor of "
                         "hidden_size and a multiple of num_key_value_heads")
    if width // heads % 2:
        raise ValueError(f"{file}: num_attention_heads is {heads}, which makes a head of "
                         f"{width // heads}; expected an even size, for rotary positions")


def check_config(file, config):
    """Raises ValueError, naming the file, for sizes of a Config that make no model."""
    defaults = type(config)()
    for key, example in vars(defaults).items():
        if is_dataclass(example):
            check_values(file, vars(getattr(config, key)), example)
        else:
            check_value(file, key, getattr(config, key), example)
    check_llama(file, config.llama)
    for part in (config.vit, config.qformer):
        if part.width % part.heads:
            raise ValueError(f"{file}: heads is {part.heads}; expected a divisor of width, "
                             f"which is {part.width}")
    if config.image_size % config.vit.patch_size:
        raise ValueError(f"{file}: image_size is {config.image_size}; expected a multiple of "
                         f"patch_size, which is {config.vit.patch_size}")
