"""What is not the model that it is given for: refused in one line that names it, nothing left."""
import io
import json
import os
import pickle
import shutil
import zipfile

import pytest
import sentencepiece
import torch

from tests.conftest import GOLDEN, HUB, RELEASED, golden_tensors, released, save_folder
from tests.conversion.conftest import save_delta, save_meta

SETTINGS = [  # of the language model's config.json: what is refused by name
    ("model_type", "mistral"), ("hidden_act", "gelu"), ("head_dim", 32), ("attention_bias", True),
    ("mlp_bias", True), ("sliding_window", 4096), ("quantization_config", {"bits": 4}),
    ("rope_scaling", {"type": "linear", "factor": 2.0}), ("rope_scaling", "linear"),
    ("rope_parameters", {"rope_type": "yarn", "factor": 4.0}), ("rope_parameters", [1]),
    ("rope_parameters", {"rope_theta": 5e5, "mscale": 1}), ("partial_rotary_factor", 0.5),
    ("rope_type", "linear"), ("rotary_scaling", 2.0), ("no_rope_layers", [1, 0]), ("alibi", True),
    ("architectures", ["MistralForCausalLM"]), ("logit_scale", 0.5), ("embedding_multiplier", 12),
    ("auto_map", {"AutoModel": "modeling.Other"}), ("qk_layernorm", True), ("int8", True),
    ("rms_norm_eps", float("nan")), ("rms_norm_eps", float("inf")), ("rms_norm_eps", True),
    ("rope_theta", float("nan")),
    ("num_hidden_layers", 10**9), ("num_hidden_layers", 3),
    ("hidden_size", "96"), ("hidden_size", None), ("vocab_size", -1),
    ("num_attention_heads", 32), ("num_attention_heads", 5),
    ("num_key_value_heads", 3), ("tie_word_embeddings", 1.5),
    ("max_position_embeddings", "4k"), ("intermediate_size", None), ("model_type", "absent"),
]
TWICE = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 1e4}


@pytest.mark.parametrize("config", [{key: value} for key, value in SETTINGS] + [TWICE])
def test_a_setting_that_is_not_computed_is_refused_by_name(refused, changed, config):
    line = refused(llm=changed("vicuna", config=config))
    assert "config.json" in line and [*config][-1] in line


@pytest.mark.parametrize("part, key, value", [
    ("vision_config", "num_attention_heads", 4), ("vision_config", "num_hidden_layers", 3),
    ("vision_config", "layer_norm_eps", 1e-3), ("vision_config", "patch_size", 7),
    ("vision_config", "qkv_bias", False), ("vision_config", "use_rope", True),
    ("vision_config", None, 5),
    ("qformer_config", "num_attention_heads", 8), ("qformer_config", "num_hidden_layers", 5),
    ("qformer_config", "cross_attention_frequency", 1), ("qformer_config", None, []),
    ("qformer_config", "position_embedding_type", "relative_key"),
    ("num_query_tokens", None, 7), ("model_type", None, "llava"), ("image_grid", None, [1, 2]),
])
def test_a_blip2_config_unlike_the_tensors_is_refused(refused, changed, part, key, value):
    if key is not None:
        value = HUB["blip2_config"][part] | {key: value}
    folder = changed("blip2-hf", config={part: value})
    line = refused(vit=folder, qformer=folder)
    assert "blip2-hf/config.json: " in line and (key or part) in line


VICUNA, EVA, BLIP2, ARTGPT4, MINIGPT4 = (
    "vicuna", "eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth", "ArtGPT-4.pth",
    "pretrained_minigpt4.pth")
FLAGS = {VICUNA: "llm", EVA: "vit", BLIP2: "qformer", ARTGPT4: "adapter", MINIGPT4: "adapter"}
Q, K, V = (f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv")
GATE, UP = (f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up"))
FREQUENCIES = "model.layers.0.self_attn.rotary_emb.inv_freq"
ADAPTER = "llama_model.model.layers.{}.self_attn.1."
ones = torch.ones
TENSORS = [  # what differs in a golden checkpoint, and what is then named
    (VICUNA, {GATE: ones(100, 96), UP: ones(300, 96)}, "gate_proj"),
    (VICUNA, {K: ones(95, 96)}, "k_proj"), (VICUNA, {K: torch.tensor(1.0)}, "k_proj"),
    (VICUNA, {K: torch.eye(96).to(torch.int8)}, "k_proj"), (VICUNA, {K: None}, "k_proj"),
    (VICUNA, {K: torch.zeros(96, 96)}, "k_proj"), (VICUNA, {V: ones(96, 96) * 1e39}, "v_proj"),
    (VICUNA, {UP: ones(200, 96) * float("nan")}, "up_proj"),
    (VICUNA, {"model.norm.weight": torch.tensor(1.0)}, "model.norm.weight"),
    (VICUNA, {"model.norm.weight": None}, "model.norm.weight"),
    (VICUNA, {"model.layers.0.self_attn.q_proj.bias": ones(96)}, "q_proj.bias"),
    (VICUNA, {FREQUENCIES: 11000.0 ** -(torch.arange(0, 24, 2) / 24)}, "inv_freq"),
    (VICUNA, {FREQUENCIES: ones(7)}, "inv_freq"),
    (EVA, {"blocks.0.attn.q_bias": ones(175), "blocks.0.attn.v_bias": ones(178)}, "q_bias"),
    (EVA, {"blocks.0.attn.v_bias": None}, "v_bias"), (EVA, {"blocks.0.attn.q_bias": None}, "q_bia"),
    (EVA, {"blocks.0.norm1.weight": torch.zeros(176)}, "norm1"),
    (EVA, {"blocks.1.mlp.fc1.weight": None}, "blocks.1.mlp.fc1"),
    (EVA, {"blocks.0.gamma_1": ones(2)}, "gamma_1"), (EVA, {"cls_token": ones(176)}, "cls_token"),
    (EVA, {"blocks.99999.mlp.fc1.weight": ones(2)}, "99999"),
    (EVA, {"pos_embed": ones(17, 176)}, "pos_embed"), (EVA, {"pos_embed": ones(1, 19, 176)}, EVA),
    (BLIP2, {"query_tokens": ones(1, 6, 96)}, BLIP2),
    (BLIP2, {"Qformer.bert.encoder.layer.2.crossattention.self.key.weight": None}, "layer.2.cross"),
    (ARTGPT4, {"llama_model.model.layers.2.input_layernorm.weight": None}, "layers.2.input"),
    (ARTGPT4, {ADAPTER.format(2) + "down.weight": None}, "layers.2"),
    (ARTGPT4, {ADAPTER.format(0) + "down.weight": None}, "llama_model"),
    (ARTGPT4, {ADAPTER.format(4) + "up.bias": ones(96)}, "layers.4"),
    (MINIGPT4, {"llama_proj.weight": ones(64, 128)}, "llama_proj"),
    (MINIGPT4, {"llama_proj.weight": ones(96, 704)}, "no Q-Former"),
]


@pytest.mark.parametrize("name, tensors, said", TENSORS)
def test_a_tensor_that_is_wrong_is_named(refused, changed, name, tensors, said):
    line = refused(**{FLAGS[name]: changed(name, tensors)})
    assert name in line and said in line


def test_q_and_k_that_are_swapped_are_noticed_with_grouped_queries(refused, changed):
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qk"]
    tensors = golden_tensors(HUB, "llama-gqa/model.safetensors")
    swapped = dict(zip(names, (tensors[name] for name in reversed(names)), strict=True))
    assert "q_proj" in refused(llm=changed("llama-gqa", swapped), adapter=None)


# ---- What belongs together: tokenizers, shards, deltas

def test_a_tokenizer_of_another_model_is_refused(refused, changed):
    folder = changed("vicuna")
    for content in (b"", b"text"):
        (folder / "tokenizer.model").write_bytes(content)
        assert "tokenizer.model: " in refused(llm=folder)
    for options in ({}, {"bos_id": -1}, {"eos_id": -1}, {"bos_piece": "</s>", "eos_piece": "<s>"}):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a picture of a red boat on the sea"] * 20), vocab_size=30,
            model_prefix=str(folder / "tokenizer"), minloglevel=2, hard_vocab_limit=False,
            **options)
        assert "tokenizer.model: " in refused(llm=folder)
    (folder / "tokenizer.model").unlink()
    assert "tokenizer.model: " in refused(llm=folder)
    short = {name: released("vicuna")[name][:300]
             for name in ("model.embed_tokens.weight", "lm_head.weight")}
    assert "tokenizer.model: " in refused(llm=changed("vicuna", short, {"vocab_size": 300}))


def test_meta_shards_that_are_not_one_model_are_refused(refused, tmp_path):
    config, tensors = RELEASED["llama_config"], released("vicuna")
    meta = save_meta(tmp_path / "13B", config, tensors)
    first, second = meta / "consolidated.00.pth", meta / "consolidated.01.pth"
    content = second.read_bytes()
    shutil.copy(first, second)
    assert "consolidated.01.pth" in refused(llm=meta)         # a copy of the first
    shard = torch.load(io.BytesIO(content), weights_only=True)
    torch.save(shard | {"norm.weight": shard["norm.weight"] + 1}, second)
    assert "norm.weight" in refused(llm=meta)                 # of another model
    torch.save(shard | {"layers.0.attention.wo.weight": torch.tensor(1.0)}, second)
    assert "wo.weight" in refused(llm=meta)
    second.unlink()
    assert "13B" in refused(llm=meta)
    (meta / "consolidated.00 (1).pth").write_bytes(content)
    assert "consolidated.00 (1).pth" in refused(llm=meta)
    for key, value in {"use_scaled_rope": True, "n_heads": 5, "moe": 8}.items():
        folder = save_meta(tmp_path / key, config, tensors, 1, **{key: value})
        assert "params.json" in refused(llm=folder)


def test_a_delta_is_added_to_its_own_llama_alone(refused, changed, tmp_path):
    llama, delta, _ = save_delta(tmp_path, 321)
    assert "delta" in refused(llm=delta)
    assert "vicuna" in refused(llm=llama, delta=changed("vicuna"))
    assert str(delta) in refused(llm="llama-gqa", delta=delta)
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    assert "context is 256, but 4096" in refused(llm=llama, delta=delta)     # as of LLaMA 2


def test_shards_that_are_missing_elsewhere_or_overlap_are_refused(refused, tmp_path):
    folder = save_folder(tmp_path / "shards", released("vicuna"), RELEASED["llama_config"], True)
    index = folder / "pytorch_model.bin.index.json"
    whole = index.read_text()
    for shard in ("../elsewhere.bin", "/etc/passwd", "", "..", 7, None, ["a"], "nowhere.bin"):
        where = json.loads(whole)["weight_map"] | {"lm_head.weight": shard}
        index.write_text(json.dumps({"weight_map": where}))
        assert str(folder) in refused(llm=folder)
    index.write_text(whole)
    first, second = sorted(folder.glob("*.bin"))
    assert first.name in refused(llm=first)                   # a shard is no model
    held = torch.load(second, weights_only=True)
    torch.save(held | {"model.embed_tokens.weight": torch.ones(321, 96)}, second)
    assert "model.embed_tokens.weight" in refused(llm=folder)
    second.unlink()
    assert second.name in refused(llm=folder)


# ---- Files

class RunsCode:
    """Creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def damaged(kind, content):
    """The bytes of an archive that is not whole, or not what it seems."""
    if kind == "cut":
        return content[:len(content) * 9 // 10]
    place = content.index(released(MINIGPT4)["llama_proj.weight"].numpy().tobytes()) + 500
    if kind == "a flipped bit":
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1:]
    packed = io.BytesIO()                                     # compressed
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w", 8) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return packed.getvalue()


@pytest.mark.parametrize("kind", ["cut", "a flipped bit", "compressed"])
def test_a_damaged_archive_is_refused(refused, checkpoints, tmp_path, kind):
    (tmp_path / "bad.pth").write_bytes(damaged(kind, (checkpoints / MINIGPT4).read_bytes()))
    assert "bad.pth: " in refused(adapter=tmp_path / "bad.pth")


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(refused, tmp_path, as_zip):
    trap = {"model": released(MINIGPT4), "config": RunsCode(tmp_path / "ran")}
    torch.save(trap, tmp_path / "trap.pth", _use_new_zipfile_serialization=as_zip)
    assert "trap.pth: holds posix.system" in refused(adapter=tmp_path / "trap.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [
    {"model": None}, {"model": [1]}, {1: ones(2)}, [1], None, {"model": {("a",): ones(2)}},
    pickle.dumps([1, 2]),
    pickle.dumps(RunsCode("/nowhere/ran")), b"", b"hello", b"PK\3\4" * 20, b"\xff" * 7 + b"\x7f{",
    b"GGUF\3\0\0\0", b"<!doctype html><html>not found</html>", b'{"error": "not found"}',
    b"version https://git-lfs.github.com/spec/v1\n", b"\x10\0\0\0\0\0\0\0{\"a\": 1}",
])
def test_what_is_no_checkpoint_is_refused(refused, tmp_path, content):
    if isinstance(content, bytes):
        (tmp_path / "odd.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "odd.pth")
    assert "odd.pth: " in refused(vit=tmp_path / "odd.pth")


def test_what_is_no_file_or_in_the_place_of_another_is_refused(refused, changed, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "nowhere"):
        assert name in refused(vit=tmp_path / name)
    folder = changed("vicuna")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "config.json" in refused(llm=folder)
    assert "golden" in refused(llm=GOLDEN)
    assert EVA in refused(qformer=EVA) and BLIP2 in refused(vit=BLIP2)
    assert "--image-size" in refused(image_size=50)


@pytest.mark.parametrize("start, end", [(0, 0), (-10**7, -10**7), (4, 4), (10**7, 10**7), (0, -4)])
def test_offsets_in_a_safetensors_header_are_checked(refused, changed, start, end):
    folder = changed("llama-gqa")
    content = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + size])
    first, tensor = (header[name] for name in list(header)[4:6])
    before = first["data_offsets"] if start == end == 0 else tensor["data_offsets"]
    tensor["data_offsets"] = [before[0] + start, before[1] + end]
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + content[8 + size:])
    assert "model.safetensors: " in refused(llm=folder, adapter=None)
