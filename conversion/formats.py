"""The public checkpoints as their owners publish them: tables of names, and of settings in their
config.json. A table of names maps a name in artgpt4.py to that in the released file; the first line
that fits counts. {i} stands for the number of a block, * for the rest of a name. "(a + b)" are two
tensors joined along the first dimension, "a 1/3" is the first of three equal parts of one, and
"a 0/1" zeros in its place."""
import json
import math
import re
from typing import NamedTuple

from artgpt4 import Config

EVA_VIT = {
    "vit.cls_token": "cls_token",
    "vit.pos_embed": "pos_embed",
    "vit.patch_embed.*": "patch_embed.proj.*",
    "vit.blocks.{i}.norm*": "blocks.{i}.norm*",
    "vit.blocks.{i}.attn.query.bias": "blocks.{i}.attn.q_bias",
    "vit.blocks.{i}.attn.key.bias": "blocks.{i}.attn.q_bias 0/1",
    "vit.blocks.{i}.attn.value.bias": "blocks.{i}.attn.v_bias",
    "vit.blocks.{i}.attn.out.*": "blocks.{i}.attn.proj.*",
    "vit.blocks.{i}.attn.query.*": "blocks.{i}.attn.qkv.* 1/3",
    "vit.blocks.{i}.attn.key.*": "blocks.{i}.attn.qkv.* 2/3",
    "vit.blocks.{i}.attn.value.*": "blocks.{i}.attn.qkv.* 3/3",
    "vit.blocks.{i}.*": "blocks.{i}.mlp.*",
}

LAYER = "Qformer.bert.encoder.layer.{i}"
BLIP2 = {
    "ln_vision.*": "ln_vision.*",
    "qformer.queries": "query_tokens",
    "qformer.norm.*": "Qformer.bert.embeddings.LayerNorm.*",
    "qformer.layers.{i}.self_attn.out.*": f"{LAYER}.attention.output.dense.*",
    "qformer.layers.{i}.self_attn.*": f"{LAYER}.attention.self.*",
    "qformer.layers.{i}.self_norm.*": f"{LAYER}.attention.output.LayerNorm.*",
    "qformer.layers.{i}.cross_attn.out.*": f"{LAYER}.crossattention.output.dense.*",
    "qformer.layers.{i}.cross_attn.*": f"{LAYER}.crossattention.self.*",
    "qformer.layers.{i}.cross_norm.*": f"{LAYER}.crossattention.output.LayerNorm.*",
    "qformer.layers.{i}.fc1.*": f"{LAYER}.intermediate_query.dense.*",
    "qformer.layers.{i}.fc2.*": f"{LAYER}.output_query.dense.*",
    "qformer.layers.{i}.norm.*": f"{LAYER}.output_query.LayerNorm.*",
}

BLOCK = "vision_model.encoder.layers.{i}"
BLIP2_HF = {
    "vit.cls_token": "vision_model.embeddings.class_embedding",
    "vit.pos_embed": "vision_model.embeddings.position_embedding",
    "vit.patch_embed.*": "vision_model.embeddings.patch_embedding.*",
    "vit.blocks.{i}.norm*": f"{BLOCK}.layer_norm*",
    "vit.blocks.{i}.attn.query.*": f"{BLOCK}.self_attn.qkv.* 1/3",
    "vit.blocks.{i}.attn.key.*": f"{BLOCK}.self_attn.qkv.* 2/3",
    "vit.blocks.{i}.attn.value.*": f"{BLOCK}.self_attn.qkv.* 3/3",
    "vit.blocks.{i}.attn.out.*": f"{BLOCK}.self_attn.projection.*",
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
    "llama.blocks.{i}.adapter.*": "llama_model.model.layers.{i}.self_attn.1.*",
} | {ours: f"llama_model.{theirs}" for ours, theirs in LLAMA.items() if "_norm" in ours}


class Format(NamedTuple):
    """A kind of checkpoint: what it is in words, the flags of convert_weights.py that take it, its
    table of names, a tensor that only this kind has (None: recognised in another way), and a
    pattern of the names that stay unread."""
    what: str
    flags: list
    table: dict
    marker: str | None
    unused: str


BUFFERS = r"|.*\.rotary_emb\.inv_freq|.*\.position_ids"
TEXT_PATH = (r"(embeddings\.(word|position)_embeddings|"
             r"encoder\.layer\.\d+\.(intermediate|output))\..*")
UNREAD_HF = (r"(language_model|language_projection|embeddings|vision_projection|text_projection|"
             r"itm_head)\..*|qformer\." + TEXT_PATH + BUFFERS)
FORMATS = {
    "eva": Format("EVA-ViT-g", ["vit"], EVA_VIT, "blocks.0.attn.qkv.weight",
                  r"(head|norm)\.(weight|bias)"),
    "blip2": Format("BLIP-2's Q-Former", ["qformer"], BLIP2,
                    "Qformer.bert.embeddings.LayerNorm.weight",
                    r"t5_proj\..*|Qformer\.bert\." + TEXT_PATH + BUFFERS),
    "blip2_hf": Format("BLIP-2's or InstructBLIP's folder", ["vit", "qformer"], BLIP2_HF,
                       "vision_model.post_layernorm.weight", UNREAD_HF),
    "instructblip_llm": Format("InstructBLIP's Vicuna", ["llm"],
                               {ours: f"language_model.{name}" for ours, name in LLAMA.items()},
                               "language_model.model.embed_tokens.weight",
                               r"(?!language_model\.).*" + BUFFERS),
    "llama": Format("LLaMA or Vicuna", ["llm"], LLAMA, "model.embed_tokens.weight", BUFFERS),
    "meta": Format("Meta's LLaMA", ["llm"], META, "tok_embeddings.weight", r"rope\.freqs"),
    "delta": Format("a delta, with LLaMA as --llm", ["delta"], LLAMA, None, BUFFERS),
    "artgpt4": Format("ArtGPT-4's adapter", ["adapter"], ARTGPT4,
                      "llama_model.model.layers.0.self_attn.1.down.weight", BUFFERS),
    "minigpt4": Format("a projection", ["adapter"], ARTGPT4, "llama_proj.weight", BUFFERS),
}


def parts_of(kind, name):
    """The parts of artgpt4.py's tensor `name` in the format `kind`, a key of FORMATS: (their name,
    which part of that tensor, of how many). The list is empty if the format lacks the tensor."""
    for ours, theirs in FORMATS[kind].table.items():
        pattern = re.escape(ours).replace(r"\{i\}", r"(\d+)").replace(r"\*", "(.+)")
        found = re.fullmatch(pattern, name)
        if found:
            for mark, text in zip(re.findall(r"\{i\}|\*", ours), found.groups(), strict=True):
                theirs = theirs.replace(mark, text)
            before, joined, after = re.fullmatch(r"([^(]*)\(?([^)]*)\)?(.*)", theirs).groups()
            parts = [f"{before}{part}{after} 1/1".split(" ")[:2] for part in joined.split(" + ")]
            return [(source, *map(int, share.split("/"))) for source, share in parts]
    return []


def their_names(kind, name):
    """The names of those parts."""
    return [source for source, _, _ in parts_of(kind, name)]


LLAMA_SIZES = {  # of config.json: of Config
    "hidden_size": "llama_width", "num_attention_heads": "llama_heads",
    "num_key_value_heads": "llama_kv_heads", "intermediate_size": "llama_mlp_width",
    "rms_norm_eps": "rms_norm_eps", "rope_theta": "rope_theta",
    "max_position_embeddings": "context", "vocab_size": "vocab_size",
}
META_SETTINGS = {  # of Meta's params.json: of config.json
    "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads", "norm_eps": "rms_norm_eps",
}
VISION_SIZES = {
    "vision_config": {"hidden_size": "vit_width", "num_hidden_layers": "vit_layers",
                      "num_attention_heads": "vit_heads", "intermediate_size": "vit_mlp_width",
                      "image_size": "image_size", "patch_size": "patch_size"},
    "qformer_config": {"hidden_size": "qformer_width", "num_hidden_layers": "qformer_layers",
                       "num_attention_heads": "qformer_heads", "encoder_hidden_size": "vit_width",
                       "intermediate_size": "qformer_mlp_width"},
}
SETTINGS = {
    "llm": {"model_type": ("llama",), "hidden_act": ("silu",), "attention_bias": (False,),
            "architectures": (["LlamaForCausalLM"], ["LLaMAForCausalLM"]), "mlp_bias": (False,),
            "tie_word_embeddings": (False, True)},
    "rope": {"rope_type": ("default",), "type": ("default",), "factor": (1,),
             "partial_rotary_factor": (1,)},
    "vision_config": {"hidden_act": ("gelu",), "layer_norm_eps": (1e-6, 1e-5),
                      "qkv_bias": (True,), "num_channels": (3,)},
    "qformer_config": {"hidden_act": ("gelu",), "layer_norm_eps": (1e-12,),
                       "cross_attention_frequency": (2,), "position_embedding_type": ("absolute",),
                       "use_qformer_text_input": (False, True)},
    "blip2": {"model_type": ("blip-2", "instructblip"), "tie_word_embeddings": (False, True)},
}
HARMLESS = set("""
    _commit_hash _name_or_path add_cross_attention architectures attention_dropout
    attention_probs_dropout_prob bos_token_id chunk_size_feed_forward diversity_penalty do_sample
    dropout dtype early_stopping encoder_no_repeat_ngram_size eos_token_id ffn_dim_multiplier
    hidden_dropout_prob id2label image_text_hidden_size image_token_index initializer_factor
    initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length
    max_position_embeddings min_length model_type multiple_of no_repeat_ngram_size num_beam_groups
    num_beams num_return_sequences output_attentions output_hidden_states output_scores pad_token_id
    pretraining_tp projection_dim pruned_heads qformer_config remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate temperature text_config tf_legacy_loss
    tie_encoder_decoder top_k top_p torch_dtype torchscript transformers_version typical_p
    unk_token_id use_bfloat16 use_cache use_decoder_only_language_model vision_config vocab_size
""".split())


def check_settings(values, allowed, file):
    """Raises ValueError for a setting of config.json that artgpt4.py does not compute or that is
    not known. allowed: {key: the values that it may have}. null: not set."""
    for key, value in values.items():
        known = allowed.get(key, (value,) if key in HARMLESS else ())
        if value is not None and value not in known:
            expected = " or ".join(map(json.dumps, known)) or "nothing of that name"
            raise ValueError(f"{file}: {key} is {json.dumps(value)}; expected {expected}")


def llama_sizes(values, file, layers):
    """{name in Config: value} of the language model, from the values of a config.json and its
    number of layers. Raises ValueError for what artgpt4.py does not compute, and for odd sizes."""
    values = {key: value for key, value in values.items() if value is not None}
    for key in ("rope_parameters", "rope_scaling"):           # of newer transformers
        rope = values.pop(key, {})
        rope = rope if isinstance(rope, dict) else {key: rope}
        theta = values.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        check_settings(rope, SETTINGS["rope"] | {"rope_theta": (theta,)}, f"{file}: {key}")
    values = {
        "model_type": "not given", "rms_norm_eps": 1e-6,      # what LLaMA's first config.json lacks
        "num_key_value_heads": values.get("num_attention_heads"),
        "max_position_embeddings": values.pop("max_sequence_length", 2048)} | values
    sizes = {"llama_layers": layers}
    for key, ours in LLAMA_SIZES.items():
        value, example = values.pop(key, None), getattr(Config, ours)
        if type(value) not in (int, type(example)) or not 0 < value <= 1e9:
            raise ValueError(f"{file}: {key} is {json.dumps(value)}; of the 13B it is {example}")
        sizes[ours] = type(example)(value)
    width, heads = sizes["llama_width"], sizes["llama_heads"]
    if width % (2 * heads) or heads % sizes["llama_kv_heads"]:
        raise ValueError(f"{file}: num_attention_heads or num_key_value_heads is no divisor")
    found = {"head_dim": (width // heads,), "num_hidden_layers": (layers,)}
    check_settings(values, SETTINGS["llm"] | found, file)
    return sizes


def vision_sizes(vit, qformer):
    """{name in Config: value} of all that the tensors of two Checkpoints hold; the image size is
    that of the position embedding. Raises ValueError if a config.json differs from that."""
    _, rows, vit_width = vit.shape("vit.pos_embed", 3)
    *_, patch = vit.shape("vit.patch_embed.weight", 4)
    vit_mlp_width, _ = vit.shape("vit.blocks.0.fc1.weight")
    _, queries, qformer_width = qformer.shape("qformer.queries", 3)
    qformer_mlp_width, _ = qformer.shape("qformer.layers.0.fc1.weight")
    sizes = {"image_size": math.isqrt(max(rows - 1, 0)) * patch, "patch_size": patch,
             "vit_width": vit_width, "vit_layers": vit.count("vit.blocks.0.fc1.weight"),
             "vit_heads": vit_width // 88, "vit_mlp_width": vit_mlp_width,    # 88 wide, and 64
             "queries": queries, "qformer_width": qformer_width,
             "qformer_layers": qformer.count("qformer.layers.0.fc1.weight"),
             "qformer_heads": qformer_width // 64, "qformer_mlp_width": qformer_mlp_width}
    for checkpoint, part in ((vit, "vision_config"), (qformer, "qformer_config")):
        if checkpoint.path.is_dir():
            file, config = checkpoint.config_file, checkpoint.config
            check_settings(config, SETTINGS["blip2"] | {"num_query_tokens": (queries,)}, file)
            for key in VISION_SIZES:
                if not isinstance(config.get(key), dict):
                    raise ValueError(f"{file}: {key} is {json.dumps(config.get(key))}")
            found = {key: (sizes[ours],) for key, ours in VISION_SIZES[part].items()}
            check_settings(config[part], SETTINGS[part] | found, f"{file}: {part}")
    vision = qformer.config.get("vision_config", {"layer_norm_eps": 1e-5})   # of LAVIS's ln_vision
    return sizes | {"ln_vision_eps": vision.get("layer_norm_eps") or 1e-6}
