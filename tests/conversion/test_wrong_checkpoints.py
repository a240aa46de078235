"""What is not the model that it is given for: refused in one line that names it, nothing left."""
import io
import json
import os
import pickle
import shutil
import signal
import struct
import zipfile

import pytest
import sentencepiece
import torch

import convert_weights
from common.command_line import Progress
from tests.conftest import GOLDEN, HUB, RELEASED, golden_tensors, released, save_llama
from tests.conversion.conftest import save_delta, save_meta

QKV = "model.layers.1.self_attn.{}_proj.weight"
MLP = "model.layers.1.mlp.{}_proj.weight"
VIT_BIAS, EYE = "blocks.0.attn.{}_bias", torch.eye(96)
DEEPER = {f"llama_model.model.layers.4.self_attn.1.{name}": torch.ones(size) for name, size in {
    "down.weight": (24, 96), "down.bias": 24, "up.weight": (96, 24), "up.bias": 96}.items()}


# ---- config.json: honoured, harmless or refused

SETTINGS = [  # of the language model
    ("model_type", "mistral"), ("hidden_act", "gelu"), ("head_dim", 32), ("attention_bias", True),
    ("mlp_bias", True), ("sliding_window", 4096), ("quantization_config", {"bits": 4}),
    ("rope_scaling", {"type": "linear", "factor": 2.0}), ("rope_scaling", "linear"),
    ("rope_parameters", {"rope_type": "yarn", "factor": 4.0}), ("rope_parameters", [1]),
    ("rope_parameters", {"rope_theta": 5e5, "mscale": 1}), ("partial_rotary_factor", 0.5),
    ("rope_type", "linear"), ("rotary_scaling", 2.0), ("no_rope_layers", [1, 0]), ("alibi", True),
    ("architectures", ["MistralForCausalLM"]), ("logit_scale", 0.5), ("embedding_multiplier", 12),
    ("auto_map", {"AutoModel": "modeling.Other"}), ("qk_layernorm", True), ("int8", True),
    ("rms_norm_eps", float("nan")), ("rms_norm_eps", float("inf")), ("rms_norm_eps", True),
    ("rms_norm_eps", 5.0), ("rope_theta", float("nan")), ("rope_theta", True), ("rope_theta", 0.5),
    ("num_hidden_layers", 10**9), ("num_hidden_layers", 4.0), ("num_hidden_layers", 0),
    ("hidden_size", True), ("hidden_size", "96"), ("hidden_size", None), ("vocab_size", -1),
    ("vocab_size", None), ("num_attention_heads", 32), ("num_attention_heads", 5),
    ("num_attention_heads", 10**6), ("num_key_value_heads", 3), ("tie_word_embeddings", 1.5),
    ("max_position_embeddings", "4k"), ("intermediate_size", None),
]


@pytest.mark.parametrize("key, value", SETTINGS)
def test_a_setting_that_is_not_computed_is_refused_by_name(refused, changed, key, value):
    line = refused(llm=changed("vicuna", config={key: value}))
    assert "config.json" in line and key in line


def test_what_contradicts_another_setting_or_the_tensors_is_refused(refused, changed):
    other = {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert "rope_theta" in refused(llm=changed("vicuna", config=other))
    assert "model_type" in refused(llm=changed("vicuna", config={"model_type": "absent"}))
    theta = {"model_type": "absent", "architectures": ["PhiForCausalLM"]}
    assert "architectures" in refused(llm=changed("vicuna", config=theta))
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq":
                   11000.0 ** -(torch.arange(0, 24, 2) / 24)}
    assert "inv_freq" in refused(llm=changed("vicuna", frequencies))
    frequencies["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(7)
    assert "inv_freq" in refused(llm=changed("vicuna", frequencies))
    for layers in (3, 5):
        assert "num_hidden_layers" in refused(llm=changed(
            "vicuna", config={"num_hidden_layers": layers}))
    tied = changed("vicuna", config={"tie_word_embeddings": True})
    assert "tie_word_embeddings" in refused(llm=tied)


@pytest.mark.parametrize("part, key, value", [
    ("vision_config", "num_attention_heads", 4), ("vision_config", "num_hidden_layers", 3),
    ("vision_config", "num_attention_heads", "absent"), ("vision_config", "layer_norm_eps", 1e-3),
    ("vision_config", "patch_size", 7), ("vision_config", "qkv_bias", False),
    ("vision_config", "use_rope", True), ("vision_config", None, 5),
    ("qformer_config", "num_attention_heads", 8), ("qformer_config", "num_hidden_layers", 5),
    ("qformer_config", "cross_attention_frequency", 1), ("qformer_config", None, []),
    ("qformer_config", "position_embedding_type", "relative_key"),
    ("num_query_tokens", None, 7), ("model_type", None, "llava"), ("image_grid", None, [1, 2]),
])
def test_a_blip2_config_that_differs_from_the_tensors_is_refused(
        refused, changed, part, key, value):
    inner = {name: old for name, old in (HUB["blip2_config"].get(part, {}) if key else {}).items()
             if (name, value) != (key, "absent")}
    if value != "absent" and key:
        inner[key] = value
    folder = changed("blip2-hf", config={part: inner if key else value})
    line = refused(vit=folder, qformer=folder)
    assert "blip2-hf/config.json: " in line and (key or part) in line


# ---- Tensors: each part has its own shape

TENSORS = {  # flag: file, {tensor: value}, what is named
    "gate 100 and up 300": ("vicuna", {MLP.format("gate"): torch.ones(100, 96),
                                       MLP.format("up"): torch.ones(300, 96)}, "gate_proj"),
    "q_bias 175 and v_bias 178": ("eva_vit_g.pth", {VIT_BIAS.format("q"): torch.ones(175),
                                                    VIT_BIAS.format("v"): torch.ones(178)}, "q_bias"),
    "no v_bias": ("eva_vit_g.pth", {VIT_BIAS.format("v"): None}, "blocks.0.attn.v_bias"),
    "no q_bias": ("eva_vit_g.pth", {VIT_BIAS.format("q"): None}, "blocks.0.attn.q_bias"),
    "a short k": ("vicuna", {QKV.format("k"): torch.ones(95, 96)}, "k_proj"),
    "int8": ("vicuna", {QKV.format("k"): EYE.to(torch.int8)}, "k_proj"),
    "a scalar": ("vicuna", {QKV.format("k"): torch.tensor(1.0)}, "k_proj"),
    "a scalar norm": ("vicuna", {"model.norm.weight": torch.tensor(1.0)}, "model.norm"),
    "no norm": ("vicuna", {"model.norm.weight": None}, "model.norm.weight"),
    "NaN": ("vicuna", {QKV.format("v"): EYE * float("nan")}, "v_proj"),
    "infinity": ("vicuna", {MLP.format("up"): torch.full((200, 96), -float("inf"))}, "up_proj"),
    "zeros": ("vicuna", {QKV.format("k"): torch.zeros(96, 96)}, "k_proj"),
    "a bias": ("vicuna", {"model.layers.0.self_attn.q_proj.bias": torch.ones(96)}, "q_proj.bias"),
    "a norm of zeros": ("eva_vit_g.pth", {"blocks.0.norm1.weight": torch.zeros(176)}, "norm1"),
    "a missing matrix": ("eva_vit_g.pth", {"blocks.1.mlp.fc1.weight": None}, "blocks.1.mlp.fc1"),
    "an unknown tensor": ("eva_vit_g.pth", {"blocks.0.gamma_1": torch.ones(2)}, "gamma_1"),
    "a far block": ("eva_vit_g.pth", {"blocks.99999.mlp.fc1.weight": torch.ones(2)}, "99999"),
    "a flat token": ("eva_vit_g.pth", {"cls_token": torch.ones(176)}, "cls_token"),
    "a flat embedding": ("eva_vit_g.pth", {"pos_embed": torch.ones(17, 176)}, "pos_embed"),
    "19 positions": ("eva_vit_g.pth", {"pos_embed": torch.ones(1, 19, 176)}, "eva_vit_g.pth"),
    "a Q-Former of 96": ("blip2_pretrained_flant5xxl.pth", {
        "query_tokens": torch.ones(1, 6, 96)}, "blip2_pretrained_flant5xxl.pth"),
    "no cross-attention": ("blip2_pretrained_flant5xxl.pth", {
        "Qformer.bert.encoder.layer.2.crossattention.self.key.weight": None}, "layer.2.cross"),
    "no even norm": ("ArtGPT-4.pth", {
        "llama_model.model.layers.2.input_layernorm.weight": None}, "layers.2.input_layernorm"),
    "a narrow adapter": ("pretrained_minigpt4.pth", {"llama_proj.weight": torch.ones(64, 128)},
                         "llama_proj"),
    "four patches": ("pretrained_minigpt4.pth", {"llama_proj.weight": torch.ones(96, 704)},
                     "no Q-Former"),
    "a deeper adapter": ("ArtGPT-4.pth", DEEPER, "layers.4"),
}
FLAGS = {"vicuna": "llm", "eva_vit_g.pth": "vit", "blip2_pretrained_flant5xxl.pth": "qformer"}


@pytest.mark.parametrize("case", TENSORS)
def test_a_tensor_that_is_wrong_is_named(refused, changed, case):
    name, tensors, said = TENSORS[case]
    line = refused(**{FLAGS.get(name, "adapter"): changed(name, tensors)})
    assert name in line and said in line


def test_q_and_k_that_are_swapped_are_noticed_with_grouped_queries(refused, changed):
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qk"]
    tensors = golden_tensors(HUB, "llama-gqa/model.safetensors")
    swapped = dict(zip(names, (tensors[name] for name in reversed(names)), strict=True))
    assert "q_proj" in refused(llm=changed("llama-gqa", swapped), adapter=None)


def test_sizes_that_flags_ask_for_are_checked(refused):
    assert "--image-size" in refused(image_size=50)


# ---- What belongs together: tokenizers, shards, deltas


def trained_tokenizer(folder, **options):
    """A folder with another small sentencepiece model in place of its own."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a picture of a red boat on the sea"] * 20), vocab_size=30,
        model_prefix=str(folder / "tokenizer"), minloglevel=2, hard_vocab_limit=False, **options)
    return folder


@pytest.mark.parametrize("options", [{}, {"bos_id": -1}, {"eos_id": -1},
                                     {"bos_piece": "</s>", "eos_piece": "<s>"}])
def test_a_tokenizer_of_another_model_is_refused(refused, changed, options):
    folder = trained_tokenizer(changed("vicuna"), **options)
    assert "tokenizer.model: " in refused(llm=folder)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(refused, changed):
    short = {name: released("vicuna")[name][:300].contiguous()
             for name in ("model.embed_tokens.weight", "lm_head.weight")}
    assert "tokenizer.model: " in refused(llm=changed("vicuna", short, {"vocab_size": 300}))
    swapped = {"bos_token_id": 2, "eos_token_id": 1}
    assert "tokenizer.model: " in refused(llm=changed("vicuna", config=swapped))
    for content in (b"", b"text"):
        folder = changed("vicuna")
        (folder / "tokenizer.model").write_bytes(content)
        assert "tokenizer.model: " in refused(llm=folder)
    (folder / "tokenizer.model").unlink()
    assert "tokenizer.model: " in refused(llm=folder)


def test_meta_shards_that_are_not_one_model_are_refused(refused, tmp_path):
    config, tensors = RELEASED["llama_config"], released("vicuna")
    meta = save_meta(tmp_path / "13B", config, tensors)
    first, second = meta / "consolidated.00.pth", meta / "consolidated.01.pth"
    content = second.read_bytes()
    shutil.copy(first, second)
    assert "consolidated.01.pth" in refused(llm=meta)         # a copy of the first
    shard = torch.load(io.BytesIO(content))
    torch.save(shard | {"norm.weight": shard["norm.weight"] + 1}, second)
    assert "norm.weight" in refused(llm=meta)                 # of another model
    torch.save(shard | {"layers.0.attention.wo.weight": torch.tensor(1.0)}, second)
    assert "wo.weight" in refused(llm=meta)
    second.unlink()
    assert "13B" in refused(llm=meta)
    (meta / "consolidated.00 (1).pth").write_bytes(content)
    assert "consolidated.00 (1).pth" in refused(llm=meta)
    for key, value in {"use_scaled_rope": True, "n_heads": 5, "dim": "96", "moe": 8}.items():
        folder = save_meta(tmp_path / key, config, tensors, 1, **{key: value})
        assert "params.json" in refused(llm=folder) or key == "dim"


def test_a_delta_is_added_to_its_own_llama_alone(refused, changed, tmp_path):
    llama, delta, _ = save_delta(tmp_path, 321)
    assert "delta" in refused(llm=delta)
    assert "vicuna" in refused(llm=llama, delta=changed("vicuna"))
    assert str(delta) in refused(llm="llama-gqa", delta=delta)
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    assert "context is 256, but 4096" in refused(llm=llama, delta=delta)     # as of LLaMA 2


# ---- Files


def damaged(kind, source, file):
    """A copy of a golden .pth that is not whole, or not what it seems."""
    content, values = source.read_bytes(), released(source.name)["llama_proj.weight"].numpy()
    start = content.index(values.tobytes())
    if kind == "cut":
        content = content[:len(content) * 9 // 10]
    elif kind in ("a flipped byte", "zeros"):
        change = bytes(4096) if kind == "zeros" else bytes([content[start + 500] ^ 1])
        content = content[:start + 500] + change + content[start + 500 + len(change):]
    elif kind == "compressed":
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(
                file, "w", zipfile.ZIP_DEFLATED) as new:
            for member in old.infolist():
                new.writestr(member.filename, old.read(member))
        return
    file.write_bytes(content)


@pytest.mark.parametrize("kind", ["cut", "a flipped byte", "zeros", "compressed"])
def test_a_damaged_archive_is_refused(refused, checkpoints, tmp_path, kind):
    damaged(kind, checkpoints / "pretrained_minigpt4.pth", tmp_path / "bad.pth")
    assert "bad.pth: " in refused(adapter=tmp_path / "bad.pth")


class RunsCode:
    """Creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(refused, tmp_path, as_zip):
    code = RunsCode(tmp_path / "ran")
    trap = {"model": released("pretrained_minigpt4.pth"), "config": code}
    torch.save(trap, tmp_path / "trap.pth", _use_new_zipfile_serialization=as_zip)
    assert "trap.pth: holds posix.system" in refused(adapter=tmp_path / "trap.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(code))
    assert "bare.pth: " in refused(adapter=tmp_path / "bare.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [
    {"model": None}, {"model": [1]}, {1: torch.ones(2)}, [1], None, {"model": {("a",): torch.ones(2)}},
    released("eva_vit_g.pth") | {"cls_token": torch.eye(3).to_sparse()},
    released("eva_vit_g.pth") | {"cls_token": torch.zeros(3, device="meta")},
    b"", b"hello", b"PK\x03\x04" * 20, pickle.dumps([1, 2]), b"\xff" * 7 + b"\x7f{", b"GGUF\3\0\0\0",
    b"<!doctype html><html>not found</html>", b"version https://git-lfs.github.com/spec/v1\n",
    b"\x10\0\0\0\0\0\0\0{\"a\": 1}", b'{"error": "not found"}',
])
def test_what_is_no_checkpoint_is_refused(refused, tmp_path, content):
    if isinstance(content, bytes):
        (tmp_path / "odd.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "odd.pth")
    assert "odd.pth: " in refused(vit=tmp_path / "odd.pth")


def test_pipes_and_what_is_not_there_are_refused(refused, changed, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero", "nowhere"):
        assert name in refused(vit=tmp_path / name)
    folder = changed("vicuna")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "config.json" in refused(llm=folder)
    assert "golden" in refused(llm=GOLDEN)
    assert "EVA-ViT-g" in refused(qformer="eva_vit_g.pth")
    assert "Q-Former" in refused(vit="blip2_pretrained_flant5xxl.pth")


@pytest.fixture
def shards(tmp_path):
    """shards(weight_map changes): the golden Vicuna in two .bin shards, with another index."""
    def make(changes=None):
        shutil.rmtree(tmp_path / "shards", ignore_errors=True)
        save_llama(tmp_path / "shards", RELEASED["llama_config"], released("vicuna"))
        index = tmp_path / "shards" / "pytorch_model.bin.index.json"
        where = json.loads(index.read_text())["weight_map"] | (changes or {})
        index.write_text(json.dumps({"weight_map": where}))
        return tmp_path / "shards"
    return make


@pytest.mark.parametrize("shard", ["../elsewhere.bin", "/etc/passwd", "", "..", 7, None, ["a"],
                                   "pytorch_model-00001-of-00002.bin", "nowhere.bin"])
def test_an_index_that_is_wrong_is_refused(refused, shards, shard):
    assert str(shards()) in refused(llm=shards({"lm_head.weight": shard}))


def test_shards_that_are_missing_or_overlap_are_refused(refused, shards):
    folder = shards()
    first, second = sorted(folder.glob("*.bin"))
    held = torch.load(second) | {"model.embed_tokens.weight": torch.ones(321, 96)}
    torch.save(held, second)
    assert "model.embed_tokens.weight" in refused(llm=folder)
    second.unlink()
    assert second.name in refused(llm=folder)
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    assert "index.json" in refused(llm=folder)
    assert first.name in refused(llm=first)                   # a shard is no model


@pytest.mark.parametrize("change", [
    lambda start, end: [0, end - start], lambda start, end: [start - 10**7, end - 10**7],
    lambda start, end: [start + 4, end + 4], lambda start, end: [end, start],
    lambda start, end: [start + 10**7, end + 10**7], lambda start, end: [start, end - 4]])
def test_offsets_in_a_safetensors_header_are_checked(refused, changed, change):
    folder = changed("llama-gqa")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size, = struct.unpack("<Q", content[:8])
    header = json.loads(content[8:8 + size])
    tensor = header[list(header)[5]]
    tensor["data_offsets"] = change(*tensor["data_offsets"])
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size:])
    assert "model.safetensors: " in refused(llm=folder, adapter=None)


def test_a_full_disk_and_ctrl_c_leave_nothing(refused, convert, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
        assert "0.00 are free" in refused()
    with monkeypatch.context() as patch:
        patch.setattr(convert_weights, "write_tensors", fail)
        assert "No space left" in refused()
    monkeypatch.setattr(Progress, "show", lambda *_: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(signal, "default_int_handler", signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore Ctrl-C
    with pytest.raises(SystemExit) as stopped:
        convert(tmp_path / "out" / "weights")
    assert stopped.value.code == 130 and list((tmp_path / "out").iterdir()) == []


def fail(*_):
    raise OSError(28, "No space left on device")
