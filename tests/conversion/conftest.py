"""Public checkpoints in small: the golden tensors in every layout that people can get, and the same
with one thing changed."""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import GOLDEN, HUB, RELEASED, golden_tensors, released, save_folder


@pytest.fixture
def refused(convert, tmp_path, capfd):
    """refused(flag=value, ...): run convert_weights.py, which must fail with one line. Returns that
    line. Nothing may be left behind."""
    def run(**changes):
        (tmp_path / "out").mkdir(exist_ok=True)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            convert(**{"out": tmp_path / "out" / "weights"} | changes)
        said = [line for line in capfd.readouterr().err.splitlines()
                if not line.startswith(("checksums", "written"))]
        assert stopped.value.code == 1 and len(said) == 1 and "internal error" not in said[0]
        assert list((tmp_path / "out").iterdir()) == []
        return said[0]
    return run


@pytest.fixture
def changed(checkpoints, tmp_path):
    """changed(name, {tensor: value}, {setting: value}): a golden checkpoint with other tensors, of
    which None leaves one out, and settings. A folder then holds one safetensors file."""
    def make(name, tensors=None, config=None):
        source, path = checkpoints / name, tmp_path / name
        held = released(name) if name in RELEASED["files"] else load_file(
            source / "model.safetensors")
        held = {key: value.contiguous() for key, value in (held | (tensors or {})).items()
                if value is not None}
        if source.is_file():
            torch.save({"model": held}, path)
            return path
        values = json.loads((source / "config.json").read_text()) | (config or {})
        values = {key: value for key, value in values.items() if value != "absent"}
        return save_folder(path, held, values)
    return make


def interleaved(weight, head_dim):
    """Rows of q or k as Meta orders them: the inverse of half_split."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape(weight.shape)


META_NAMES = {  # transformers' name: Meta's, and the dimension along which shards are split
    "model.embed_tokens": ("tok_embeddings", 1), "lm_head": ("output", 0),
    "self_attn.q_proj": ("attention.wq", 0), "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0), "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0), "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0), "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None), "model.norm": ("norm", None),
}


def save_meta(folder, config, tensors, shards=2, **params):
    """A language model as Meta releases it, from transformers' names and row order."""
    folder.mkdir()
    width, heads = config["hidden_size"], config["num_attention_heads"]
    theta, head_dim = config.get("rope_theta", 10000.0), width // heads
    parts = [{"rope.freqs": theta ** -(torch.arange(0, head_dim, 2) / head_dim)}
             for _ in range(shards)]
    for name, weight in tensors.items():
        known = next(key for key in META_NAMES if f".{key}." in f".{name}")
        theirs, dim = META_NAMES[known]
        name = name.replace(known, theirs).removeprefix("model.")
        if theirs in ("attention.wq", "attention.wk"):
            weight = interleaved(weight, head_dim)
        pieces = [weight] * shards if dim is None else weight.chunk(shards, dim)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    for i, part in enumerate(parts):
        torch.save(part, folder / f"consolidated.{i:02d}.pth")
    (folder / "params.json").write_text(json.dumps({
        "dim": width, "n_heads": heads, "n_kv_heads": config.get("num_key_value_heads"),
        "n_layers": config["num_hidden_layers"], "multiple_of": 8, "vocab_size": -1,
        "norm_eps": config["rms_norm_eps"], "rope_theta": theta} | params))
    shutil.copy(GOLDEN / "tokenizer.model", folder)
    return folder


def blip2_hf():
    """BLIP-2 in transformers' format without its language model, and with the parts of the Q-Former
    that read text, which ours does not."""
    tensors = golden_tensors(HUB, "blip2-hf/model.safetensors")
    tensors = {name: tensors[name] for name in tensors if not name.startswith("language_model.")}
    return tensors | {f"qformer.encoder.layer.{i}.{part}": torch.ones(2) for i in range(4)
                      for part in ("intermediate.dense.bias", "output.dense.weight",
                                   "output.LayerNorm.bias")}


def save_itm(folder):
    """BLIP-2's folder of the first stage: blip2-itm-vit-g."""
    tensors = blip2_hf() | {name: torch.ones(2) for name in (
        "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight",
        "vision_projection.weight", "text_projection.bias", "itm_head.weight")}
    config = HUB["blip2_config"] | {
        "model_type": "blip-2", "architectures": ["Blip2ForImageTextRetrieval"],
        "image_text_hidden_size": 256, "text_config": {}}
    config["qformer_config"] = config["qformer_config"] | {"use_qformer_text_input": True}
    return save_folder(folder, tensors, config)


def save_instructblip(folder):
    """InstructBLIP's folder: ViT, Q-Former and a Vicuna v1.1 with two rows more than it uses."""
    tensors = {name.replace("qformer.layernorm", "qformer.embeddings.layernorm"): value
               for name, value in blip2_hf().items()}
    for part in ("word_embeddings", "position_embeddings"):
        tensors[f"qformer.embeddings.{part}.weight"] = torch.ones(2)
    for name, value in released("vicuna").items():
        more = torch.ones(2, 96) if len(value) == 321 else value[:0]
        tensors[f"language_model.{name}"] = torch.cat((value, more))
    text = RELEASED["llama_config"] | {
        "architectures": ["LlamaForCausalLM"], "length_penalty": 1.0, "bos_token_id": 0,
        "eos_token_id": 1, "pruned_heads": {}, "max_position_embeddings": None}
    config = HUB["blip2_config"] | {"model_type": "instructblip", "text_config": text}
    for part, kind in {"vision": "vision_model", "qformer": "qformer"}.items():
        config[f"{part}_config"] = config[f"{part}_config"] | {"model_type": f"instructblip_{kind}"}
    return save_folder(folder, tensors, config)


def save_delta(folder, tokens):
    """Write LLaMA with 320 tokens, and the delta that makes it a Vicuna with `tokens`.

    Returns both folders, and the tensors of the sum in float16.
    """
    generator = torch.Generator().manual_seed(0)
    base, delta, total = {}, {}, {}
    for name, tensor in released("vicuna").items():
        vicuna = tensor[:tokens].half()                       # only embedding and head are longer
        noisy = vicuna + 0.02 * torch.randn(vicuna.shape, generator=generator)
        base[name] = noisy.half()[:320].clone()
        extended = torch.zeros_like(vicuna)
        extended[:len(base[name])] = base[name]
        delta[name] = vicuna - extended
        total[name] = extended + delta[name]
    config = RELEASED["llama_config"]
    llama = save_folder(folder / "llama", base, config | {"vocab_size": 320})
    return llama, save_folder(folder / "delta", delta, config | {"vocab_size": tokens}), total
