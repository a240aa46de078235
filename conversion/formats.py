"""The public checkpoints as their owners publish them: one table of names for each format, one of
settings for each config.json.

A table of names maps a name in artgpt4.py to that in the released file. {i} stands for the number
of a block, * for the rest of a name. "a + b" are joined along the first dimension, "a 1/3" is the
first of three equal parts of a tensor, and "zeros" stand in no file.
"""
import json
import math
import re
from dataclasses import dataclass

from artgpt4 import Config

ATTENTION = "query key value".split()


def attention(ours, fused):
    """A table of names: query, key and value are the thirds of one matrix."""
    return {f"{ours}.{part}.*": f"{fused}.* {i}/3" for i, part in enumerate(ATTENTION, 1)}


EVA_VIT = attention("vit.blocks.{i}.attn", "blocks.{i}.attn.qkv") | {
    "vit.cls_token": "cls_token",
    "vit.pos_embed": "pos_embed",
    "vit.patch_embed.*": "patch_embed.proj.*",
    "vit.blocks.{i}.norm1.*": "blocks.{i}.norm1.*",
    "vit.blocks.{i}.attn.query.bias": "blocks.{i}.attn.q_bias",
    "vit.blocks.{i}.attn.key.bias": "zeros",
    "vit.blocks.{i}.attn.value.bias": "blocks.{i}.attn.v_bias",
    "vit.blocks.{i}.attn.out.*": "blocks.{i}.attn.proj.*",
    "vit.blocks.{i}.norm2.*": "blocks.{i}.norm2.*",
    "vit.blocks.{i}.*": "blocks.{i}.mlp.*",
}

LAYER = "Qformer.bert.encoder.layer.{i}"
BLIP2 = {
    "ln_vision.*": "ln_vision.*",
    "qformer.queries": "query_tokens",
    "qformer.norm.*": "Qformer.bert.embeddings.LayerNorm.*",
    "qformer.layers.{i}.self_attn.*": f"{LAYER}.attention.self.*",
    "qformer.layers.{i}.self_attn.out.*": f"{LAYER}.attention.output.dense.*",
    "qformer.layers.{i}.self_norm.*": f"{LAYER}.attention.output.LayerNorm.*",
    "qformer.layers.{i}.cross_attn.*": f"{LAYER}.crossattention.self.*",
    "qformer.layers.{i}.cross_attn.out.*": f"{LAYER}.crossattention.output.dense.*",
    "qformer.layers.{i}.cross_norm.*": f"{LAYER}.crossattention.output.LayerNorm.*",
    "qformer.layers.{i}.fc1.*": f"{LAYER}.intermediate_query.dense.*",
    "qformer.layers.{i}.fc2.*": f"{LAYER}.output_query.dense.*",
    "qformer.layers.{i}.norm.*": f"{LAYER}.output_query.LayerNorm.*",
}

BLOCK = "vision_model.encoder.layers.{i}"
BLIP2_HF = attention("vit.blocks.{i}.attn", f"{BLOCK}.self_attn.qkv") | {
    "vit.cls_token": "vision_model.embeddings.class_embedding",
    "vit.pos_embed": "vision_model.embeddings.position_embedding",
    "vit.patch_embed.*": "vision_model.embeddings.patch_embedding.*",
    "vit.blocks.{i}.norm1.*": f"{BLOCK}.layer_norm1.*",
    "vit.blocks.{i}.attn.out.*": f"{BLOCK}.self_attn.projection.*",
    "vit.blocks.{i}.norm2.*": f"{BLOCK}.layer_norm2.*",
    "vit.blocks.{i}.*": f"{BLOCK}.mlp.*",
    "ln_vision.*": "vision_model.post_layernorm.*",
    "qformer.queries": "query_tokens",
    "qformer.norm.*": "qformer.layernorm.*",
}
BLIP2_HF |= {                                                 # the layers differ in two words only
    ours: theirs.replace("Qformer.bert.encoder", "qformer.encoder").replace(".self.", ".attention.")
    for ours, theirs in BLIP2.items() if "{i}" in ours
}

LLAMA = {
    "llama.embed.weight": "model.embed_tokens.weight",
    "llama.blocks.{i}.attn_norm.weight": "model.layers.{i}.input_layernorm.weight",
    "llama.blocks.{i}.attn.qkv.weight": (
        "model.layers.{i}.self_attn.q_proj.weight + model.layers.{i}.self_attn.k_proj.weight + "
        "model.layers.{i}.self_attn.v_proj.weight"),
    "llama.blocks.{i}.attn.out.weight": "model.layers.{i}.self_attn.o_proj.weight",
    "llama.blocks.{i}.mlp_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    "llama.blocks.{i}.mlp.gate_up.weight": (
        "model.layers.{i}.mlp.gate_proj.weight + model.layers.{i}.mlp.up_proj.weight"),
    "llama.blocks.{i}.mlp.down.weight": "model.layers.{i}.mlp.down_proj.weight",
    "llama.norm.weight": "model.norm.weight",
    "llama.head.weight": "lm_head.weight",
}

ARTGPT4 = {  # pretrained_minigpt4.pth holds only the first line
    "proj.*": "llama_proj.*",
    "llama.blocks.{i}.attn_norm.weight": "llama_model.model.layers.{i}.input_layernorm.weight",
    "llama.blocks.{i}.mlp_norm.weight":
        "llama_model.model.layers.{i}.post_attention_layernorm.weight",
    "llama.blocks.{i}.adapter.*": "llama_model.model.layers.{i}.self_attn.1.*",
}

META = {  # Meta's name: transformers' name, and the dimension along which shards are split
    "tok_embeddings": ("model.embed_tokens", 1),
    "layers.{i}.attention.wq": ("model.layers.{i}.self_attn.q_proj", 0),
    "layers.{i}.attention.wk": ("model.layers.{i}.self_attn.k_proj", 0),
    "layers.{i}.attention.wv": ("model.layers.{i}.self_attn.v_proj", 0),
    "layers.{i}.attention.wo": ("model.layers.{i}.self_attn.o_proj", 1),
    "layers.{i}.feed_forward.w1": ("model.layers.{i}.mlp.gate_proj", 0),
    "layers.{i}.feed_forward.w2": ("model.layers.{i}.mlp.down_proj", 1),
    "layers.{i}.feed_forward.w3": ("model.layers.{i}.mlp.up_proj", 0),
    "layers.{i}.attention_norm": ("model.layers.{i}.input_layernorm", None),
    "layers.{i}.ffn_norm": ("model.layers.{i}.post_attention_layernorm", None),
    "norm": ("model.norm", None),
    "output": ("lm_head", 0),
}


@dataclass
class Format:
    """A kind of checkpoint: what it is in words, the flags of convert_weights.py that take it, its
    table of names, a tensor that only this kind has (None: recognised in another way), and a
    pattern of the names that stay unread."""
    what: str
    flags: tuple
    table: dict
    marker: str | None
    unused: str


BUFFERS = r".*\.rotary_emb\.inv_freq|.*\.position_ids"
TEXT_PATH = (r"(language_model|language_projection|embeddings|vision_projection|text_projection|"
             r"itm_head|qformer\.embeddings\.(word|position)_embeddings)\..*|"
             r"qformer\.encoder\.layer\.\d+\.(intermediate|output)\..*|" + BUFFERS)
FORMATS = {
    "eva": Format("EVA-ViT-g", ("vit",), EVA_VIT, "blocks.0.attn.qkv.weight",
                  r"(head|norm)\.(weight|bias)"),
    "blip2": Format(
        "BLIP-2's Q-Former", ("qformer",), BLIP2, "Qformer.bert.embeddings.LayerNorm.weight",
        r"t5_proj\..*|Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight|"
        r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.(dense|LayerNorm)\..*|"
        + BUFFERS),
    "blip2_hf": Format("BLIP-2 in transformers' format", ("vit", "qformer"), BLIP2_HF,
                       "qformer.layernorm.weight", TEXT_PATH),
    "instructblip": Format(
        "InstructBLIP in transformers' format", ("vit", "qformer"),
        BLIP2_HF | {"qformer.norm.*": "qformer.embeddings.layernorm.*"},
        "qformer.embeddings.layernorm.weight", TEXT_PATH),
    "instructblip_llm": Format(
        "InstructBLIP's Vicuna", ("llm",),
        {ours: re.sub(r"(^| )(model|lm_head)\.", r"\1language_model.\2.", theirs)
         for ours, theirs in LLAMA.items()},
        "language_model.model.embed_tokens.weight", r"(?!language_model\.).*|" + BUFFERS),
    "llama": Format("LLaMA or Vicuna in transformers' format", ("llm",), LLAMA,
                    "model.embed_tokens.weight", BUFFERS),
    "meta": Format("LLaMA in Meta's format", ("llm",), LLAMA, None, r"rope\.freqs"),
    "delta": Format("a Vicuna delta (for --delta, with LLaMA as --llm)", ("delta",), LLAMA, None,
                    BUFFERS),
    "artgpt4": Format("ArtGPT-4's adapter", ("adapter",), ARTGPT4,
                      "llama_model.model.layers.0.self_attn.1.down.weight", BUFFERS),
    "minigpt4": Format("MiniGPT-4's projection", ("adapter",), ARTGPT4, "llama_proj.weight",
                       BUFFERS),
}


def parts_of(kind, name):
    """The parts of artgpt4.py's tensor `name` in the format `kind`, a key of FORMATS: (their name,
    which part of that tensor, of how many). The list is empty if the format lacks the tensor."""
    table = FORMATS[kind].table
    block = re.search(r"\.(\d+)\.", name)
    number = block[1] if block else ""
    pattern = name.replace(block[0], ".{i}.", 1) if block else name
    words = pattern.split(".")
    for known in range(len(words), 0, -1):                    # a.b.weight itself, a.b.*, then a.*
        rest = ".".join(words[known:])
        theirs = table.get(pattern if not rest else ".".join(words[:known]) + ".*")
        if theirs:
            theirs = theirs.replace("*", rest).replace("{i}", number)
            parts = [part.partition(" ") for part in theirs.split(" + ")]
            return [(source, *map(int, (share or "1/1").split("/"))) for source, _, share in parts]
    return []


def their_names(kind, name):
    """The names of those parts."""
    return [source for source, _, _ in parts_of(kind, name)]


# ---- config.json: each setting is a size, has one of these values, or is known to be harmless

LLAMA_SIZES = {  # of config.json: of Config
    "hidden_size": "llama_width",
    "num_hidden_layers": "llama_layers",
    "num_attention_heads": "llama_heads",
    "num_key_value_heads": "llama_kv_heads",
    "intermediate_size": "llama_mlp_width",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "max_position_embeddings": "context",
    "vocab_size": "vocab_size",
}
META_SETTINGS = {  # of Meta's params.json
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
}
SETTINGS = {
    "llm": {
        "model_type": ("llama",), "architectures": (["LlamaForCausalLM"], ["LLaMAForCausalLM"]),
        "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,),
        "sliding_window": (None,), "quantization_config": (None,),
        "partial_rotary_factor": (1,), "tie_word_embeddings": (False, True),
        "use_scaled_rope": (False,), "rope_scaling": (None,), "rope_parameters": (None,),
    },
    "rope": {"rope_type": ("default",), "type": ("default",), "factor": (1,),
             "partial_rotary_factor": (1,)},
    "vision_config": {"hidden_act": ("gelu",), "layer_norm_eps": (1e-6, 1e-5), "qkv_bias": (True,),
                      "num_channels": (3,), "model_type": ("blip_2_vision_model",
                                                           "instructblip_vision_model")},
    "qformer_config": {"hidden_act": ("gelu",), "layer_norm_eps": (1e-12,),
                       "cross_attention_frequency": (2,),
                       "position_embedding_type": ("absolute",),
                       "use_qformer_text_input": (False, True),
                       "model_type": ("blip_2_qformer", "instructblip_qformer")},
    "blip2": {"model_type": ("blip-2", "instructblip"), "tie_word_embeddings": (False, True),
              "architectures": tuple([name] for name in (
                  "Blip2ForConditionalGeneration", "Blip2ForImageTextRetrieval", "Blip2Model",
                  "InstructBlipForConditionalGeneration"))},
}
HARMLESS = set("""
    _commit_hash _name_or_path add_cross_attention attention_dropout attention_probs_dropout_prob
    bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward classifier_dropout
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dropout dtype
    early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    ffn_dim_multiplier finetuning_task forced_bos_token_id forced_eos_token_id hidden_dropout_prob
    id2label image_text_hidden_size image_token_index initializer_factor initializer_range
    is_decoder is_encoder_decoder label2id length_penalty max_length min_length multiple_of
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type
    projection_dim pruned_heads remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p unk_token_id use_bfloat16 use_cache
    use_decoder_only_language_model
""".split())


def check_settings(values, part, sizes, file):
    """Raises ValueError for a setting of config.json that artgpt4.py does not compute, or that it
    does not know.

    part: a key of SETTINGS. sizes: the keys that the caller reads. file: the config.json.
    """
    for key, value in values.items():
        allowed = SETTINGS[part].get(key)
        if key in sizes or allowed is None and key in HARMLESS:
            continue
        if allowed is None or value not in allowed or value is True and True not in allowed:
            raise ValueError(f"{file}: {key} is {json.dumps(value)}, which is not supported")


def check_size(value, key, example, file):
    """A size or another number of config.json, of the type of `example`. Raises ValueError for what
    no model has."""
    low, high = (1e-15, 0.1) if key.endswith("eps") else (1, 1e9)
    kinds = (int, float) if isinstance(example, float) else (int,)
    if type(value) not in kinds or not low <= value <= high:
        raise ValueError(f"{file}: {key} is {json.dumps(value)}; of the 13B it is {example}")
    return value


def llama_sizes(values, file):
    """{name in Config: value} of the language model, from the values of a config.json. Raises
    ValueError for what artgpt4.py does not compute, and for a size that is missing."""
    values = {key: value for key, value in values.items() if value is not None}
    for key in ("rope_scaling", "rope_parameters"):           # the second of newer transformers
        rope = values.get(key)
        if isinstance(rope, dict):
            check_settings(values.pop(key), "rope", ("rope_theta",), f"{file}: {key}")
            theta = rope.get("rope_theta", values.get("rope_theta", 10000.0))
            if values.setdefault("rope_theta", theta) != theta:
                raise ValueError(f"{file}: rope_theta is given twice, as {json.dumps(theta)} too")
    context = values.pop("max_sequence_length", 2048)         # of 2023
    values = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": context,
              "num_key_value_heads": values.get("num_attention_heads")} | values
    check_settings(values, "llm", (*LLAMA_SIZES, "head_dim"), file)
    if not values.keys() & {"model_type", "architectures"}:
        raise ValueError(f"{file}: neither model_type nor architectures says what model it is")
    sizes = {ours: check_size(values.get(key), key, getattr(Config, ours), file)
             for key, ours in LLAMA_SIZES.items()}
    width, heads = sizes["llama_width"], sizes["llama_heads"]
    head_dim = values.get("head_dim", width // heads)
    if head_dim * heads != width or head_dim % 2 or heads % sizes["llama_kv_heads"]:
        raise ValueError(f"{file}: num_attention_heads is {heads}; expected heads of an even size "
                         "that make up hidden_size, a multiple of num_key_value_heads")
    return sizes


def check_blip2(checkpoint, part, found):
    """Check a part of the config.json of BLIP-2 in transformers' format, "vision_config" or
    "qformer_config", against what is `found` by the tensors, {key: size}. Returns the part."""
    file, config = checkpoint.config_file, checkpoint.config
    parts = ("vision_config", "qformer_config", "text_config", "num_query_tokens")
    check_settings(config, "blip2", parts, file)
    values = config.get(part)
    if not isinstance(values, dict):
        raise ValueError(f"{file}: {part} is {json.dumps(values)}; expected an object")
    check_settings(values, part, (*found, "max_position_embeddings", "vocab_size"),
                   f"{file}: {part}")
    values = {key: value for key, value in found.items() if key != "num_attention_heads"} | {
        "num_attention_heads": 16 if part == "vision_config" else 12} | values
    for key, size in found.items():                           # heads: transformers' defaults
        if values[key] != size:
            raise ValueError(f"{file}: {part}: {key} is {json.dumps(values[key])}, but by the "
                             f"tensors it is {size}")
    return values


def heads_of(checkpoint, width, head_width):
    """The number of heads: their width is fixed, and no .pth names it."""
    if width % head_width:
        raise ValueError(f"{checkpoint.path}: width {width}; expected a multiple of {head_width}, "
                         "the width of a head")
    return width // head_width


def vit_sizes(vit):
    """{name in Config: value} of all that a checkpoint of the ViT holds; the image size is that of
    its position embedding."""
    _, rows, width = vit.shape("vit.pos_embed", 3)
    grid, patch_size = math.isqrt(max(rows - 1, 0)), vit.shape("vit.patch_embed.weight", 4)[-1]
    if grid == 0 or grid * grid + 1 != rows:
        raise ValueError(f"{vit.path}: the position embedding has {rows} rows; expected a square "
                         "number and 1")
    sizes = {
        "vit_width": width, "vit_layers": vit.count("vit.blocks.0.fc1.weight"),
        "vit_heads": heads_of(vit, width, 88), "patch_size": patch_size,
        "vit_mlp_width": vit.shape("vit.blocks.0.fc1.weight")[0], "image_size": grid * patch_size}
    if vit.kind != "eva":
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size",
                 "intermediate_size", "image_size")
        check_blip2(vit, "vision_config", dict(zip(names, sizes.values(), strict=True)))
    return sizes


def qformer_sizes(qformer):
    """{name in Config: value} of a checkpoint of the Q-Former, and of ln_vision."""
    _, queries, width = qformer.shape("qformer.queries", 3)
    sizes = {
        "qformer_width": width, "qformer_layers": qformer.count("qformer.layers.0.fc1.weight"),
        "qformer_heads": heads_of(qformer, width, 64),
        "qformer_mlp_width": qformer.shape("qformer.layers.0.fc1.weight")[0], "queries": queries}
    if qformer.kind != "blip2":
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        image_width, = qformer.shape("ln_vision.weight", 1)
        check_blip2(qformer, "qformer_config", dict(zip(names, sizes.values(), strict=False)) | {
            "encoder_hidden_size": image_width})
        found = qformer.config.get("num_query_tokens", queries)
        if found != queries:
            raise ValueError(f"{qformer.config_file}: num_query_tokens is {json.dumps(found)}, "
                             f"but by the tensors it is {queries}")
        vision = qformer.config.get("vision_config")
        eps = vision.get("layer_norm_eps", 1e-6) if isinstance(vision, dict) else 1e-6
        check_settings({"layer_norm_eps": eps}, "vision_config", (), qformer.config_file)
        sizes["ln_vision_eps"] = eps                          # 1e-5: as LAVIS computes
    return sizes
