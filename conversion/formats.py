"""The public checkpoints as their owners publish them: a table of names for each format, and of
settings for their config.json.

A table of names maps a name in artgpt4.py to that in the released file. {i} stands for the number
of a block, * for the rest of a name. "(a + b)" are two tensors joined along the first dimension,
"a 1/3" is the first of three equal parts of one, and "a 0/1" zeros in its place.
"""
import json
import math
import re
from dataclasses import dataclass

from artgpt4 import Config


def thirds(ours, fused):
    """A table of names: query, key and value are the thirds of one matrix."""
    return {f"{ours}.{part}.*": f"{fused}.* {i}/3"
            for i, part in enumerate(("query", "key", "value"), 1)}


EVA_VIT = thirds("vit.blocks.{i}.attn", "blocks.{i}.attn.qkv") | {
    "vit.cls_token": "cls_token",
    "vit.pos_embed": "pos_embed",
    "vit.patch_embed.*": "patch_embed.proj.*",
    "vit.blocks.{i}.norm1.*": "blocks.{i}.norm1.*",
    "vit.blocks.{i}.attn.query.bias": "blocks.{i}.attn.q_bias",
    "vit.blocks.{i}.attn.key.bias": "blocks.{i}.attn.q_bias 0/1",
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
BLIP2_HF = thirds("vit.blocks.{i}.attn", f"{BLOCK}.self_attn.qkv") | {
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
    "llama.blocks.{i}.attn.qkv.weight":
        "model.layers.{i}.self_attn.(q_proj + k_proj + v_proj).weight",
    "llama.blocks.{i}.attn.out.weight": "model.layers.{i}.self_attn.o_proj.weight",
    "llama.blocks.{i}.mlp_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    "llama.blocks.{i}.mlp.gate_up.weight": "model.layers.{i}.mlp.(gate_proj + up_proj).weight",
    "llama.blocks.{i}.mlp.down.weight": "model.layers.{i}.mlp.down_proj.weight",
    "llama.norm.weight": "model.norm.weight",
    "llama.head.weight": "lm_head.weight",
}

META = {
    "llama.embed.weight": "tok_embeddings.weight",
    "llama.blocks.{i}.attn_norm.weight": "layers.{i}.attention_norm.weight",
    "llama.blocks.{i}.attn.qkv.weight": "layers.{i}.attention.(wq + wk + wv).weight",
    "llama.blocks.{i}.attn.out.weight": "layers.{i}.attention.wo.weight",
    "llama.blocks.{i}.mlp_norm.weight": "layers.{i}.ffn_norm.weight",
    "llama.blocks.{i}.mlp.gate_up.weight": "layers.{i}.feed_forward.(w1 + w3).weight",
    "llama.blocks.{i}.mlp.down.weight": "layers.{i}.feed_forward.w2.weight",
    "llama.norm.weight": "norm.weight",
    "llama.head.weight": "output.weight",
}

ARTGPT4 = {  # pretrained_minigpt4.pth holds only the first line
    "proj.*": "llama_proj.*",
    "llama.blocks.{i}.attn_norm.weight": "llama_model.model.layers.{i}.input_layernorm.weight",
    "llama.blocks.{i}.mlp_norm.weight":
        "llama_model.model.layers.{i}.post_attention_layernorm.weight",
    "llama.blocks.{i}.adapter.*": "llama_model.model.layers.{i}.self_attn.1.*",
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


BUFFERS = r"|.*\.rotary_emb\.inv_freq|.*\.position_ids"
TEXT_PATH = (r"(embeddings\.(word|position)_embeddings|"
             r"encoder\.layer\.\d+\.(intermediate|output))\..*")
UNREAD_HF = (r"(language_model|language_projection|embeddings|vision_projection|text_projection|"
             r"itm_head)\..*|qformer\." + TEXT_PATH + BUFFERS)
FORMATS = {
    "eva": Format("EVA-ViT-g", ("vit",), EVA_VIT, "blocks.0.attn.qkv.weight",
                  r"(head|norm)\.(weight|bias)"),
    "blip2": Format("BLIP-2's Q-Former", ("qformer",), BLIP2,
                    "Qformer.bert.embeddings.LayerNorm.weight",
                    r"t5_proj\..*|Qformer\.bert\." + TEXT_PATH + BUFFERS),
    "blip2_hf": Format("BLIP-2 in transformers' format", ("vit", "qformer"), BLIP2_HF,
                       "qformer.layernorm.weight", UNREAD_HF),
    "instructblip": Format("InstructBLIP in transformers' format", ("vit", "qformer"),
                           BLIP2_HF | {"qformer.norm.*": "qformer.embeddings.layernorm.*"},
                           "qformer.embeddings.layernorm.weight", UNREAD_HF),
    "instructblip_llm": Format("InstructBLIP's Vicuna", ("llm",),
                               {ours: f"language_model.{name}" for ours, name in LLAMA.items()},
                               "language_model.model.embed_tokens.weight",
                               r"(?!language_model\.).*" + BUFFERS),
    "llama": Format("LLaMA or Vicuna in transformers' format", ("llm",), LLAMA,
                    "model.embed_tokens.weight", BUFFERS),
    "meta": Format("LLaMA in Meta's format", ("llm",), META, "tok_embeddings.weight",
                   r"rope\.freqs"),
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
    words, theirs = pattern.split("."), table.get(pattern)
    for known in range(len(words) - 1, 0, -1):                # of a.b.weight: a.b.*, then a.*
        if theirs is None and ".".join(words[:known]) + ".*" in table:
            theirs = table[".".join(words[:known]) + ".*"].replace("*", ".".join(words[known:]))
    if theirs is None:
        return []
    before, joined, after = re.fullmatch(r"([^(]*)\(?([^)]*)\)?(.*)", theirs).groups()
    sources = [before + part + after for part in joined.split(" + ")]
    shares = [source.replace("{i}", number).partition(" ") for source in sources]
    return [(source, *map(int, (share or "1/1").split("/"))) for source, _, share in shares]


def their_names(kind, name):
    """The names of those parts."""
    return [source for source, _, _ in parts_of(kind, name)]


# ---- config.json: each setting is a size, has one of these values, or is known to be harmless

LLAMA_SIZES = {  # of config.json: of Config
    "hidden_size": "llama_width", "num_hidden_layers": "llama_layers",
    "num_attention_heads": "llama_heads", "num_key_value_heads": "llama_kv_heads",
    "intermediate_size": "llama_mlp_width", "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta", "max_position_embeddings": "context", "vocab_size": "vocab_size",
}
META_SETTINGS = {  # of Meta's params.json: of config.json
    "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads", "norm_eps": "rms_norm_eps",
}
TOWERS = {  # its part of config.json, its embedding, a tensor of block 0, the width of a head
    "vit": ("vision_config", "vit.pos_embed", "vit.blocks.0.fc1.weight", 88),
    "qformer": ("qformer_config", "qformer.queries", "qformer.layers.0.fc1.weight", 64),
}
SETTINGS = {
    "llm": {
        "model_type": ("llama",), "architectures": (["LlamaForCausalLM"], ["LLaMAForCausalLM"]),
        "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,),
        "partial_rotary_factor": (1,), "tie_word_embeddings": (False, True),
        "use_scaled_rope": (False,),
    },
    "rope": {"rope_type": ("default",), "type": ("default",), "factor": (1,),
             "partial_rotary_factor": (1,)},
    "vision_config": {
        "model_type": ("blip_2_vision_model", "instructblip_vision_model"),
        "hidden_act": ("gelu",), "layer_norm_eps": (1e-6, 1e-5), "qkv_bias": (True,),
        "num_channels": (3,),
    },
    "qformer_config": {
        "model_type": ("blip_2_qformer", "instructblip_qformer"), "hidden_act": ("gelu",),
        "layer_norm_eps": (1e-12,), "cross_attention_frequency": (2,),
        "position_embedding_type": ("absolute",), "use_qformer_text_input": (False, True),
    },
    "blip2": {
        "model_type": ("blip-2", "instructblip"), "tie_word_embeddings": (False, True),
        "architectures": (
            ["Blip2ForConditionalGeneration"], ["Blip2ForImageTextRetrieval"], ["Blip2Model"],
            ["InstructBlipForConditionalGeneration"]),
    },
}
HARMLESS = set("""
    _commit_hash _name_or_path add_cross_attention attention_dropout attention_probs_dropout_prob
    bos_token_id chunk_size_feed_forward diversity_penalty do_sample dropout dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id ffn_dim_multiplier hidden_dropout_prob id2label
    image_text_hidden_size image_token_index initializer_factor initializer_range is_decoder
    is_encoder_decoder label2id length_penalty max_length min_length multiple_of
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id pretraining_tp projection_dim pruned_heads
    qformer_config remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    temperature text_config tf_legacy_loss tie_encoder_decoder top_k top_p torch_dtype torchscript
    transformers_version typical_p unk_token_id use_bfloat16 use_cache
    use_decoder_only_language_model vision_config
""".split())


def check_settings(values, allowed, file):
    """Raises ValueError for a setting of config.json that artgpt4.py does not compute or that is
    not known. allowed: {key: the values that it may have}. null: not set."""
    for key, value in values.items():
        if value is not None and key not in HARMLESS and value not in allowed.get(key, ()):
            expected = " or ".join(map(json.dumps, allowed.get(key, ()))) or "nothing of that name"
            raise ValueError(f"{file}: {key} is {json.dumps(value)}; expected {expected}")


def llama_sizes(values, file):
    """{name in Config: value} of the language model, from the values of a config.json. Raises
    ValueError for what artgpt4.py does not compute, and for a size that is missing or odd."""
    values = {key: value for key, value in values.items() if value is not None}
    for key in values.keys() & {"rope_scaling", "rope_parameters"}:   # of newer transformers
        rope = values[key] if isinstance(values[key], dict) else {key: values[key]}
        theta = values.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        check_settings(rope, SETTINGS["rope"] | {"rope_theta": (theta,)}, f"{file}: {key}")
        del values[key]                                       # a theta given twice must agree
    values = {
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0,          # what LLaMA's first config.json lacks
        "num_key_value_heads": values.get("num_attention_heads"),
        "max_position_embeddings": values.pop("max_sequence_length", 2048)} | values
    sizes = {}
    for key, ours in LLAMA_SIZES.items():
        value, example = values.pop(key, None), getattr(Config, ours)
        low, high = (1e-15, 0.1) if key.endswith("eps") else (1, 1e9)
        kinds = (int, float) if isinstance(example, float) else (int,)
        if type(value) not in kinds or not low <= value <= high:
            raise ValueError(f"{file}: {key} is {json.dumps(value)}; of the 13B it is {example}")
        sizes[ours] = type(example)(value)
    width, heads = sizes["llama_width"], sizes["llama_heads"]
    if width % (2 * heads) or heads % sizes["llama_kv_heads"]:
        raise ValueError(f"{file}: num_attention_heads is {heads}; expected heads of an even size "
                         "that make up hidden_size, a multiple of num_key_value_heads")
    check_settings(values, SETTINGS["llm"] | {"head_dim": (width // heads,)}, file)
    if not values.keys() & {"model_type", "architectures"}:
        raise ValueError(f"{file}: neither model_type nor architectures says what model it is")
    return sizes


def vision_sizes(vit, qformer):
    """{name in Config: value} of all that two Checkpoints hold; the image size is that of the
    position embedding. Raises ValueError if a config.json differs from the tensors."""
    sizes = {"patch_size": vit.shape("vit.patch_embed.weight", 4)[-1]}
    for tower, checkpoint in (("vit", vit), ("qformer", qformer)):
        part, embedding, block, head_width = TOWERS[tower]
        _, rows, width = checkpoint.shape(embedding, 3)
        grid = math.isqrt(max(rows - 1, 0))
        if width % head_width or tower == "vit" and (grid == 0 or grid * grid + 1 != rows):
            raise ValueError(f"{checkpoint.path}: {embedding} is {(rows, width)}; expected heads "
                             f"of {head_width}, and a square number and 1 of positions")
        found = {"hidden_size": width, "num_hidden_layers": checkpoint.count(block),
                 "num_attention_heads": width // head_width,
                 "intermediate_size": checkpoint.shape(block)[0]}
        sizes |= dict(zip((f"{tower}_width", f"{tower}_layers", f"{tower}_heads",
                           f"{tower}_mlp_width"), found.values(), strict=True))
        if tower == "vit":
            sizes["image_size"] = grid * sizes["patch_size"]
            found |= {key: sizes[key] for key in ("image_size", "patch_size")}
        else:
            sizes["queries"], found["encoder_hidden_size"] = rows, sizes["vit_width"]
        if checkpoint.path.is_dir():
            check_blip2(checkpoint, part, found, sizes.get("queries"))
    vision = qformer.config.get("vision_config", {})          # its ln_vision; 1e-5 in LAVIS's file
    eps = vision.get("layer_norm_eps") or 1e-6 if qformer.path.is_dir() else 1e-5
    return sizes | {"ln_vision_eps": eps}


def check_blip2(checkpoint, part, found, queries):
    """Raises ValueError unless a part of the config.json of BLIP-2 in transformers' format fits to
    what is found by the tensors, {key: size}."""
    file, config = checkpoint.config_file, checkpoint.config
    queries = queries or config.get("num_query_tokens")       # known with the Q-Former
    check_settings(config, SETTINGS["blip2"] | {"num_query_tokens": (queries,)}, file)
    for each in ("vision_config", "qformer_config"):
        if not isinstance(config.get(each), dict):
            raise ValueError(f"{file}: {each} is {json.dumps(config.get(each))}")
    eps = {"layer_norm_eps": config["vision_config"].get("layer_norm_eps")}
    check_settings(eps, SETTINGS["vision_config"], file)
    values = {"num_attention_heads": 16 if part == "vision_config" else 12} | config[part]
    for unread in ("max_position_embeddings", "vocab_size"):  # of the text path
        values.pop(unread, None)
    check_settings(values, SETTINGS[part] | {key: (size,) for key, size in found.items()},
                   f"{file}: {part}")
