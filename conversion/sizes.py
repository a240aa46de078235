"""The Config that follows from the checkpoints: from shapes, and from config.json for the rest."""
import json
import math
import sys

from artgpt4 import Config, LlamaConfig, QFormerConfig, ViTConfig
from common.files import load_tokenizer
from common.sizes import check_config, check_llama, check_values
from conversion.language_models import check_head_dim

VIT_HEAD_WIDTH, QFORMER_HEAD_WIDTH = 88, 64                   # of the released models
SUPPORTED = {  # settings that change the arithmetic, and the value that artgpt4.py implements
    "llm": {
        "model_type": "llama", "hidden_act": "silu", "rope_scaling": None, "attention_bias": False,
        "mlp_bias": False, "attention_dropout": 0, "sliding_window": None,
        "quantization_config": None, "partial_rotary_factor": 1, "int8": False,
    },
    "rope": {"factor": 1, "partial_rotary_factor": 1},
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
        value = values.get(key, supported)
        if value != supported or (isinstance(value, bool) and not isinstance(supported, bool)):
            raise ValueError(f"{file}: {key} is {json.dumps(values[key])}; "
                             f"only {json.dumps(supported)} is supported")


HEADS = {"vision_config": 16, "qformer_config": 12}           # what transformers takes by default


def check_blip2(checkpoint, part, config, **others):
    """Check a part of the config.json of BLIP-2 in transformers' format against the shapes.

    part: "vision_config" or "qformer_config". config: the ViTConfig or QFormerConfig of all that
    the checkpoint holds. others: more values by their names in config.json. Raises ValueError.
    """
    file = checkpoint.config_file
    values = checkpoint.config.get(part, {})
    if not checkpoint.path.is_dir():
        return                                                # a file alone has no config.json
    if not isinstance(values, dict):
        raise ValueError(f"{file}: {part} is {json.dumps(values)}; expected an object")
    refuse_unsupported(values, part, file)
    found = {
        "hidden_size": config.width, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "intermediate_size": config.mlp_width} | others
    for key, size in found.items():
        default = HEADS[part] if key == "num_attention_heads" else size
        if values.get(key, default) != size:
            raise ValueError(f"{file}: {part}: {key} is {json.dumps(values.get(key, default))}, "
                             f"but by the tensors it is {size}")


def kept_layers(vit, found, width, asked=None):
    """The number of ViT blocks to keep, of `found`: those asked for, or else 39 of EVA-ViT-g.

    BLIP-2 reads the features of the last block but one. A file that was cut to 39 blocks already
    keeps them all. A smaller model of EVA's format loses its last block.
    """
    if asked is not None:
        layers = asked
    elif vit.kind != "eva":
        return found
    elif width == ViTConfig.width:
        layers = ViTConfig.layers
    else:
        layers = found - 1
    if not 0 < layers <= found:
        raise ValueError(f"{vit.path}: {found} blocks, but --vit-layers is {layers}")
    return layers


def vit_config(vit, layers=None):
    """The ViTConfig of a checkpoint, and the image size that its position embedding is made for.

    layers: the number of blocks to keep, or None (see kept_layers).
    """
    found = vit.count("vit.blocks.{i}.fc1.weight")
    _, rows, width = vit.shape("vit.pos_embed", 3)
    grid = math.isqrt(max(rows - 1, 0))
    if grid == 0 or grid * grid + 1 != rows:
        raise ValueError(f"{vit.path}: the position embedding has {rows} rows; "
                         "expected a square number and 1")
    if width % VIT_HEAD_WIDTH:
        raise ValueError(f"{vit.path}: width {width}; expected a multiple of {VIT_HEAD_WIDTH}, "
                         "the width of a head")
    patch_size = vit.shape("vit.patch_embed.weight", 4)[-1]
    config = ViTConfig(
        width=width, layers=found, heads=width // VIT_HEAD_WIDTH, patch_size=patch_size,
        mlp_width=vit.shape("vit.blocks.0.fc1.weight")[0])
    check_values(vit.path, vars(config), ViTConfig())
    if vit.kind == "blip2_hf":
        check_blip2(vit, "vision_config", config,
                    image_size=grid * patch_size, patch_size=patch_size)
    config.layers = kept_layers(vit, found, width, layers)
    return config, grid * patch_size


def qformer_config(qformer):
    """The QFormerConfig of a checkpoint in either format."""
    _, queries, width = qformer.shape("qformer.queries", 3)
    if width % QFORMER_HEAD_WIDTH:
        raise ValueError(f"{qformer.path}: width {width}; expected a multiple of "
                         f"{QFORMER_HEAD_WIDTH}, the width of a head")
    config = QFormerConfig(
        width=width, queries=queries, heads=width // QFORMER_HEAD_WIDTH,
        layers=qformer.count("qformer.layers.{i}.fc1.weight"),
        mlp_width=qformer.shape("qformer.layers.0.fc1.weight")[0])
    check_values(qformer.path, vars(config), QFormerConfig())
    if qformer.kind == "blip2_hf":
        check_blip2(qformer, "qformer_config", config)
        asked = qformer.config.get("num_query_tokens", queries)
        if asked != queries:
            raise ValueError(f"{qformer.config_file}: num_query_tokens is "
                             f"{json.dumps(asked)}, but by the tensors it is {queries}")
    return config


def llama_config(values, file):
    """The LlamaConfig from the values of a config.json.

    Raises ValueError for a setting that would change the arithmetic, and for impossible sizes.
    """
    values = {"rope_theta": 10000.0, "tie_word_embeddings": False} | values
    for key in ("rope_scaling", "rope_parameters"):           # the second of newer transformers
        values |= plain_rope(values.pop(key, None), key, file)
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = values.get("num_attention_heads")
    refuse_unsupported(values, "llm", file)
    values["int8"] = False
    defaults = LlamaConfig()
    check_values(file, values, defaults)
    config = LlamaConfig(**{key: values[key] for key in vars(defaults)})
    check_llama(file, config)
    head_dim = config.hidden_size // config.num_attention_heads
    if values.get("head_dim") not in (None, head_dim):
        raise ValueError(f"{file}: head_dim is {json.dumps(values['head_dim'])}; "
                         "only hidden_size / num_attention_heads is supported")
    return config


def plain_rope(rope, key, file):
    """The rope_theta, as a dictionary of one value or none, in a config.json's rope_scaling or
    rope_parameters. Raises ValueError for any other kind of position than plain RoPE."""
    if rope is None:
        return {}
    is_plain = isinstance(rope, dict) and all(
        rope.get(name, "default") == "default" for name in ("rope_type", "type"))
    if not is_plain:
        raise ValueError(f"{file}: {key} is {json.dumps(rope)}; as rope_scaling and "
                         'rope_parameters only null and the rope_type "default" are supported')
    refuse_unsupported(rope, "rope", file)
    return {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}


def config_of(vit, qformer, llm, adapter=None, vit_layers=None, image_size=None):
    """The Config of four Checkpoints; adapter None stands for an untrained one.

    vit_layers and image_size: those of the flags, or None. Raises ValueError for sizes that do not
    fit together and for settings that artgpt4.py does not compute.
    """
    config = Config(
        llama=llama_config(llm.config, llm.config_file),
        qformer=qformer_config(qformer),
        ln_vision_eps=1e-5 if qformer.kind == "blip2" else 1e-6)
    config.vit, trained_size = vit_config(vit, vit_layers)
    config.image_size = trained_size if image_size is None else image_size
    file, blocks = llm.config_file, llm.count("llama.blocks.{i}.attn_norm.weight")
    if blocks != config.llama.num_hidden_layers:
        raise ValueError(f"{file}: num_hidden_layers is {config.llama.num_hidden_layers}, "
                         f"but the tensors are of {blocks} blocks")
    head_dim = config.llama.hidden_size // config.llama.num_attention_heads
    for name, tensor in llm.tensors.items():
        if name.endswith(".rotary_emb.inv_freq"):             # older files have it
            check_head_dim(file, "num_attention_heads", head_dim, tensor)
    if config.image_size <= 0 or config.image_size % config.vit.patch_size:
        raise ValueError(f"--image-size {config.image_size}: "
                         f"expected a multiple of {config.vit.patch_size}")
    config.adapter_width = config.llama.hidden_size // 4
    if adapter is not None and adapter.kind == "artgpt4":
        config.adapter_width = adapter.shape("llama.blocks.0.adapter.down.weight")[0]
    check_config(llm.path, config)
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
