"""The Config that follows from the checkpoints: from shapes, and from config.json for the rest."""
import json
import math
import sys
from dataclasses import asdict

from artgpt4 import Config, LlamaConfig, QFormerConfig, ViTConfig
from common.files import load_tokenizer

VIT_HEAD_WIDTH, QFORMER_HEAD_WIDTH = 88, 64                   # of the released models
SUPPORTED = {  # settings that change the arithmetic, and the value that artgpt4.py implements
    "llm": {
        "model_type": "llama", "hidden_act": "silu", "rope_scaling": None, "attention_bias": False,
        "mlp_bias": False, "attention_dropout": 0, "sliding_window": None,
        "quantization_config": None, "partial_rotary_factor": 1,
    },
    "vision_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    "qformer_config": {
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "cross_attention_frequency": 2,
    },
}


def refuse_unsupported(values, part, file):
    """Raises ValueError for a setting of config.json that artgpt4.py does not compute.

    values: the settings. part: a key of SUPPORTED. file: the config.json, for the message.
    """
    for key, supported in SUPPORTED[part].items():
        if values.get(key, supported) != supported:
            raise ValueError(f"{file}: {key} is {json.dumps(values[key])}; "
                             f"only {json.dumps(supported)} is supported")


def vit_config(vit, layers=None):
    """The ViTConfig of a checkpoint, and the image size that its position embedding is made for.

    layers: the number of blocks to keep; by default all, but 39 of the 40 in eva_vit_g.pth.
    """
    found = vit.count("vit.blocks.{i}.fc1.weight")
    layers = layers or (found - 1 if vit.kind == "eva" else found)
    if not 0 < layers <= found:
        raise ValueError(f"{vit.path}: {found} blocks, but --vit-layers is {layers}")
    _, rows, width = vit.shape("vit.pos_embed", 3)
    grid = math.isqrt(rows - 1)
    if grid * grid + 1 != rows:
        raise ValueError(f"{vit.path}: the position embedding has {rows} rows; "
                         "expected a square number and 1")
    if width % VIT_HEAD_WIDTH:
        raise ValueError(f"{vit.path}: width {width}; expected a multiple of {VIT_HEAD_WIDTH}, "
                         "the width of a head")
    patch_size = vit.shape("vit.patch_embed.weight", 4)[-1]
    config = ViTConfig(
        width=width, layers=layers, heads=width // VIT_HEAD_WIDTH, patch_size=patch_size,
        mlp_width=vit.shape("vit.blocks.0.fc1.weight")[0])
    return config, grid * patch_size


def qformer_config(qformer):
    """The QFormerConfig of a checkpoint in either format."""
    _, queries, width = qformer.shape("qformer.queries", 3)
    if width % QFORMER_HEAD_WIDTH:
        raise ValueError(f"{qformer.path}: width {width}; expected a multiple of "
                         f"{QFORMER_HEAD_WIDTH}, the width of a head")
    return QFormerConfig(
        width=width, queries=queries, heads=width // QFORMER_HEAD_WIDTH,
        layers=qformer.count("qformer.layers.{i}.fc1.weight"),
        mlp_width=qformer.shape("qformer.layers.0.fc1.weight")[0])


def llama_config(values, file):
    """The LlamaConfig from the values of a config.json.

    Raises ValueError for a setting that would change the arithmetic, and for impossible sizes.
    """
    values = {"rope_theta": 10000.0, "tie_word_embeddings": False} | values
    rope = values.get("rope_parameters") or {}                # of newer transformers releases
    values |= rope
    if rope.get("rope_type", "default") != "default":
        values["rope_scaling"] = rope["rope_type"]
    key_value_heads = values.get("num_key_value_heads") or values.get("num_attention_heads")
    values["num_key_value_heads"] = key_value_heads
    values.setdefault("int8", False)
    refuse_unsupported(values, "llm", file)
    config = checked_llama_config(values, file)
    head_dim = config.hidden_size // config.num_attention_heads
    if values.get("head_dim") not in (None, head_dim):
        raise ValueError(f"{file}: head_dim is {values['head_dim']}; "
                         "only hidden_size / num_attention_heads is supported")
    return config


def checked_llama_config(values, file):
    """A LlamaConfig of `values`. Raises ValueError for a type or a size that makes no sense."""
    sizes = {}
    for key, example in asdict(LlamaConfig()).items():
        value = values.get(key)
        expected_type = (int, float) if isinstance(example, float) else type(example)
        positive = example is False or (isinstance(value, int | float) and value > 0)
        if not isinstance(value, expected_type) or not positive:
            raise ValueError(f"{file}: {key} is {json.dumps(value)}; "
                             f"expected something like {json.dumps(example)}")
        sizes[key] = value
    config = LlamaConfig(**sizes)
    heads = config.num_attention_heads
    if config.hidden_size % heads or heads % config.num_key_value_heads:
        raise ValueError(f"{file}: num_attention_heads is {heads}; expected a divisor of "
                         "hidden_size and a multiple of num_key_value_heads")
    return config


def config_of(vit, qformer, llm, adapter=None, vit_layers=None, image_size=None):
    """The Config of four Checkpoints; adapter None stands for an untrained one.

    vit_layers and image_size: those of the flags, or None. Raises ValueError for sizes that do not
    fit together and for settings that artgpt4.py does not compute.
    """
    for checkpoint in (vit, qformer):
        for part in ("vision_config", "qformer_config"):
            values = checkpoint.config.get(part, {})
            refuse_unsupported(values, part, checkpoint.path / "config.json")
    config = Config(
        llama=llama_config(llm.config, llm.path / "config.json"),
        qformer=qformer_config(qformer),
        ln_vision_eps=1e-5 if qformer.kind == "blip2" else 1e-6)
    config.vit, trained_size = vit_config(vit, vit_layers)
    config.image_size = trained_size if image_size is None else image_size
    if config.image_size <= 0 or config.image_size % config.vit.patch_size:
        raise ValueError(f"--image-size {config.image_size}: "
                         f"expected a multiple of {config.vit.patch_size}")
    config.adapter_width = config.llama.hidden_size // 4
    if adapter is not None and adapter.kind == "artgpt4":
        config.adapter_width = adapter.shape("llama.blocks.0.adapter.down.weight")[0]
    return config


def check_vocabulary(llm, base, adapter, config):
    """Check the language model against its tokenizer, and warn if the adapter was made for another.

    base: what --llm names, which is `llm` unless a delta was added. Raises ValueError if
    tokenizer.model does not fit, or if the delta was added to a Vicuna.
    """
    pieces = load_tokenizer(llm.tokenizer, config).get_piece_size()
    vocab_size = config.llama.vocab_size
    if llm is not base and base.shape("llama.embed.weight")[0] == vocab_size > pieces:
        raise ValueError(f"{base.path}: has more tokens than tokenizer.model has pieces, so it is "
                         "Vicuna v0 already; leave --delta out")
    if adapter is not None and vocab_size != pieces + 1:
        version = "LLaMA or Vicuna v1.1 to v1.3"
        if config.llama.max_position_embeddings > 2048:
            version = "Vicuna v1.5 or LLaMA 2"
        print(f"warning: {llm.path} has {vocab_size:,} tokens: {version}. {adapter.path} was made "
              f"for Vicuna v0, which has {pieces + 1:,}; its answers may be poor", file=sys.stderr)
