"""The public checkpoints as their owners publish them: one table of names for each format.

A table maps a name in artgpt4.py to the name in the released file. {i} stands for the number of a
block, * for the rest of a name. "a + b" are concatenated along the first dimension; "zeros" is a
part of the same shape as the part before it.
"""
import re
from dataclasses import dataclass

EVA_VIT = {
    "vit.cls_token": "cls_token",
    "vit.pos_embed": "pos_embed",
    "vit.patch_embed.*": "patch_embed.proj.*",
    "vit.blocks.{i}.norm1.*": "blocks.{i}.norm1.*",
    "vit.blocks.{i}.attn.qkv.weight": "blocks.{i}.attn.qkv.weight",
    "vit.blocks.{i}.attn.qkv.bias": "blocks.{i}.attn.q_bias + zeros + blocks.{i}.attn.v_bias",
    "vit.blocks.{i}.attn.proj.*": "blocks.{i}.attn.proj.*",
    "vit.blocks.{i}.norm2.*": "blocks.{i}.norm2.*",
    "vit.blocks.{i}.*": "blocks.{i}.mlp.*",
}

BLIP2 = {
    "ln_vision.*": "ln_vision.*",
    "qformer.queries": "query_tokens",
    "qformer.norm.*": "Qformer.bert.embeddings.LayerNorm.*",
    "qformer.layers.{i}.self_attn.out.*": "Qformer.bert.encoder.layer.{i}.attention.output.dense.*",
    "qformer.layers.{i}.self_attn.norm.*":
        "Qformer.bert.encoder.layer.{i}.attention.output.LayerNorm.*",
    "qformer.layers.{i}.self_attn.*": "Qformer.bert.encoder.layer.{i}.attention.self.*",
    "qformer.layers.{i}.cross_attn.out.*":
        "Qformer.bert.encoder.layer.{i}.crossattention.output.dense.*",
    "qformer.layers.{i}.cross_attn.norm.*":
        "Qformer.bert.encoder.layer.{i}.crossattention.output.LayerNorm.*",
    "qformer.layers.{i}.cross_attn.*": "Qformer.bert.encoder.layer.{i}.crossattention.self.*",
    "qformer.layers.{i}.fc1.*": "Qformer.bert.encoder.layer.{i}.intermediate_query.dense.*",
    "qformer.layers.{i}.fc2.*": "Qformer.bert.encoder.layer.{i}.output_query.dense.*",
    "qformer.layers.{i}.norm.*": "Qformer.bert.encoder.layer.{i}.output_query.LayerNorm.*",
}

BLIP2_HF = {
    "vit.cls_token": "vision_model.embeddings.class_embedding",
    "vit.pos_embed": "vision_model.embeddings.position_embedding",
    "vit.patch_embed.*": "vision_model.embeddings.patch_embedding.*",
    "vit.blocks.{i}.norm1.*": "vision_model.encoder.layers.{i}.layer_norm1.*",
    "vit.blocks.{i}.attn.qkv.*": "vision_model.encoder.layers.{i}.self_attn.qkv.*",
    "vit.blocks.{i}.attn.proj.*": "vision_model.encoder.layers.{i}.self_attn.projection.*",
    "vit.blocks.{i}.norm2.*": "vision_model.encoder.layers.{i}.layer_norm2.*",
    "vit.blocks.{i}.*": "vision_model.encoder.layers.{i}.mlp.*",
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
    """A kind of checkpoint.

    what: what it is, in words. published: where its owner publishes it. flags: the flags of
    convert_weights.py that accept it. table: its names. marker: the tensor that only this format
    has; None if it is recognised in another way. unused: a pattern of the names that stay unread.
    """
    what: str
    published: str
    flags: tuple
    table: dict
    marker: str | None
    unused: str


BUFFERS = r".*\.rotary_emb\.inv_freq|.*\.position_ids"
FORMATS = {
    "eva": Format(
        what="EVA-ViT-g",
        published="eva_vit_g.pth, 2.03 GB, salesforce/LAVIS (BLIP2)",
        flags=("vit",),
        table=EVA_VIT,
        marker="blocks.0.attn.q_bias",
        unused=r"(head|norm)\.(weight|bias)"),
    "blip2": Format(
        what="BLIP-2's Q-Former",
        published="blip2_pretrained_flant5xxl.pth, 0.43 GB, salesforce/LAVIS (BLIP2)",
        flags=("qformer",),
        table=BLIP2,
        marker="Qformer.bert.embeddings.LayerNorm.weight",
        unused=r"t5_proj\..*|Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight|"
               r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.(dense|LayerNorm)\..*|"
               + BUFFERS),
    "blip2_hf": Format(
        what="BLIP-2 in transformers' format",
        published="Salesforce/blip2-flan-t5-xxl, 49 GB, Hugging Face",
        flags=("vit", "qformer"),
        table=BLIP2_HF,
        marker="vision_model.post_layernorm.weight",
        unused=r"language_(model|projection)\..*|" + BUFFERS),
    "llama": Format(
        what="LLaMA or Vicuna in transformers' format",
        published="Vicuna v0 is published only as a delta to LLaMA",
        flags=("llm",),
        table=LLAMA,
        marker="model.embed_tokens.weight",
        unused=BUFFERS),
    "meta": Format(
        what="LLaMA in Meta's format",
        published="LLaMA 13B: consolidated.*.pth, params.json, tokenizer.model, 26.0 GB, "
                  "Meta AI, on request",
        flags=("llm",),
        table=LLAMA,                                          # opened under transformers' names
        marker=None,
        unused=""),
    "delta": Format(
        what="a Vicuna delta (for --delta, with LLaMA as --llm)",
        published="lmsys/vicuna-13b-delta-v0, 26.0 GB, Hugging Face",
        flags=("delta",),
        table=LLAMA,
        marker=None,
        unused=BUFFERS),
    "artgpt4": Format(
        what="ArtGPT-4's adapter",
        published="ArtGPT-4.pth, 6.34 GB, Tyrannosaurus/ArtGPT-4, Hugging Face",
        flags=("adapter",),
        table=ARTGPT4,
        marker="llama_model.model.layers.0.self_attn.1.down.weight",
        unused=BUFFERS),
    "minigpt4": Format(
        what="MiniGPT-4's projection",
        published="pretrained_minigpt4.pth, 0.05 GB, Vision-CAIR/MiniGPT-4, Hugging Face",
        flags=("adapter",),
        table=ARTGPT4,
        marker="llama_proj.weight",
        unused=BUFFERS),
}


def their_names(kind, name):
    """The names of the parts of artgpt4.py's tensor `name` in the format `kind`, a key of FORMATS.

    The list is empty if that format does not hold the tensor.
    """
    table = FORMATS[kind].table
    block = re.search(r"\.(\d+)\.", name)
    number = block[1] if block else ""
    pattern = name.replace(block[0], ".{i}.", 1) if block else name
    if pattern in table:
        return table[pattern].replace("{i}", number).split(" + ")

    words = pattern.split(".")
    for known in range(len(words) - 1, 0, -1):                # of a.b.weight: a.b.*, then a.*
        key = ".".join(words[:known]) + ".*"
        if key in table:
            rest = ".".join(words[known:])
            return table[key].replace("*", rest).replace("{i}", number).split(" + ")
    return []
