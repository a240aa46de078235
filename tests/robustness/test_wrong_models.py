"""What once converted or loaded as a wrong model, by its sizes, names and parts: now one line, or
the right model. test_wrong_files.py has the damaged files."""
import json
import shutil

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

import convert_weights
from artgpt4 import ArtGPT4
from common.loading import load_folder
from conversion.checkpoints import Checkpoint
from conversion.sizes import kept_layers
from tests.conftest import VICUNA_SHARDS, released, same_tensors


# ---- Language models: heads, positions, shards


@pytest.fixture
def gqa(checkpoints, tmp_path):
    """gqa(config, tensors): the golden LLaMA with tied embeddings, changed."""
    def make(config=None, tensors=None):
        folder = tmp_path / "gqa"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(checkpoints / "llama-gqa", folder)
        file = folder / "model.safetensors"
        save_file(load_file(file) | (tensors or {}), file)
        values = json.loads((folder / "config.json").read_text()) | (config or {})
        (folder / "config.json").write_text(json.dumps(values))
        return folder
    return make


def test_a_head_beside_tied_embeddings_is_kept_if_it_differs(convert, gqa, tmp_path, capsys):
    embed = load_file(gqa() / "model.safetensors")["model.embed_tokens.weight"]
    other = convert(tmp_path / "other", adapter=None, llm=gqa(tensors={"lm_head.weight": -embed}))
    assert "it is kept, untied" in capsys.readouterr().err
    model = load_folder(other)
    assert not model.config.llama.tie_word_embeddings
    assert torch.equal(model.llama.head.weight, -embed)
    same = convert(tmp_path / "same", adapter=None,
                   llm=gqa(tensors={"lm_head.weight": embed.clone()}))
    assert "untied" not in capsys.readouterr().err
    assert load_folder(same).config.llama.tie_word_embeddings


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_positions_but_plain_rope_are_refused_under_either_key(refused, vicuna, key):
    for kind in ("type", "rope_type"):
        line = refused(llm=vicuna({key: {kind: "linear", "factor": 2.0}}))
        assert f'config.json: {key} is {{"{kind}": "linear"' in line
    for odd in ([1], "linear", 3, {"type": ["default"]}):
        assert f"config.json: {key} is " in refused(llm=vicuna({key: odd}))


def test_plain_rope_under_either_key_is_taken(convert, vicuna, weights, tmp_path):
    plain = {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"type": "default"}}
    out = convert(tmp_path / "out", llm=vicuna(plain))
    assert same_tensors(out, weights["artgpt4"], "config.json", "llama.safetensors")


def test_a_tensor_in_two_shards_is_refused(refused, vicuna):
    folder = vicuna()
    second = torch.load(folder / VICUNA_SHARDS[1], weights_only=True)
    name = "model.embed_tokens.weight"
    torch.save(second | {name: torch.ones(321, 96)}, folder / VICUNA_SHARDS[1])
    line = refused(llm=folder)
    assert f"{VICUNA_SHARDS[1]}: {name} is also in {VICUNA_SHARDS[0]}" in line


@pytest.mark.parametrize("shard", ["../elsewhere.bin", "/etc/passwd", "", "..", 7, None, ["a"]])
def test_an_index_that_leads_out_of_its_folder_is_refused(refused, vicuna, shard):
    folder = vicuna()
    index = folder / "pytorch_model.bin.index.json"
    where = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": where | {"lm_head.weight": shard}}))
    line = refused(llm=folder)
    assert f"index.json: lm_head.weight is in {json.dumps(shard)}; expected the name" in line


def test_an_index_that_names_the_wrong_shard_is_refused(refused, vicuna):
    folder = vicuna()
    index = folder / "pytorch_model.bin.index.json"
    where = json.loads(index.read_text())["weight_map"]
    where["lm_head.weight"] = VICUNA_SHARDS[0]
    index.write_text(json.dumps({"weight_map": where}))
    assert f"{VICUNA_SHARDS[0]}: lm_head.weight is not in it" in refused(llm=folder)


def test_links_of_a_download_cache_are_taken(convert, vicuna, weights, tmp_path):
    folder, blobs = vicuna(), tmp_path / "blobs"
    blobs.mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(i))
        file.symlink_to(blobs / str(i))
    assert same_tensors(convert(tmp_path / "out", llm=folder), weights["artgpt4"],
                        "llama.safetensors", "config.json")


# ---- Blocks


def test_a_missing_matrix_is_not_the_end_of_the_model(refused, spoiled, vicuna, checkpoints,
                                                      tmp_path):
    name = "blocks.1.mlp.fc1.weight"
    assert f"{name} is missing" in refused(vit=spoiled("eva_vit_g.pth", {name: None}))
    name = "Qformer.bert.encoder.layer.2.intermediate_query.dense.weight"
    qformer = spoiled("blip2_pretrained_flant5xxl.pth", {name: None})
    assert f"{name} is missing" in refused(qformer=qformer)
    name = "llama_model.model.layers.2.self_attn.1.down.weight"
    assert f"{name} is missing" in refused(adapter=spoiled("ArtGPT-4.pth", {name: None}))
    block = {name: None for name in released("vicuna") if ".layers.3." in name}
    line = refused(llm=vicuna(tensors=block))
    assert "num_hidden_layers is 4, but the tensors are of 3 blocks" in line
    far = {"blocks.999999999.mlp.fc1.weight": torch.zeros(2)}
    assert "layers is 1000000000" in refused(vit=spoiled("eva_vit_g.pth", far))


def test_heads_that_differ_from_the_rotary_frequencies_are_refused(refused, vicuna):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder = vicuna({"num_attention_heads": 8}, {name: torch.ones(12)})
    assert "config.json: num_attention_heads makes heads of 12, but" in refused(llm=folder)


def test_a_vit_that_was_cut_to_39_blocks_keeps_them():
    eva = Checkpoint("eva.pth", "eva", {}, {}, None)
    assert [kept_layers(eva, found, 1408) for found in (40, 39)] == [39, 39]
    assert kept_layers(eva, 40, 1408, asked=12) == 12
    with pytest.raises(ValueError, match="38 blocks, but --vit-layers is 39"):
        kept_layers(eva, 38, 1408)


# ---- Tokenizers


def tokenizer_without(piece_of, file):
    """Train a small sentencepiece model that lacks BOS or EOS."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a picture of a red boat on the sea"] * 20), vocab_size=30,
        model_prefix=str(file.with_suffix("")), minloglevel=2, hard_vocab_limit=False,
        **{f"{piece_of}_id": -1})


@pytest.mark.parametrize("piece", ["bos", "eos"])
def test_a_tokenizer_without_bos_or_eos_is_refused(refused, vicuna, weights, tmp_path, piece):
    folder = vicuna()
    tokenizer_without(piece, folder / "tokenizer.model")
    assert f"tokenizer.model: has no {piece.upper()}" in refused(llm=folder)
    shutil.copytree(weights["artgpt4"], tmp_path / "weights")
    shutil.copy(folder / "tokenizer.model", tmp_path / "weights")
    with pytest.raises(ValueError, match=f"tokenizer.model: has no {piece.upper()}"):
        load_folder(tmp_path / "weights")
    with pytest.raises(ValueError, match="no BOS or EOS"):
        ArtGPT4.from_pretrained(tmp_path / "weights")


def test_an_empty_tokenizer_and_tokenizer_json_alone_are_named(
        refused, vicuna, weights, tmp_path):
    folder = vicuna()
    (folder / "tokenizer.model").write_bytes(b"")
    assert "tokenizer.model: empty (0 bytes)" in refused(llm=folder)
    (folder / "tokenizer.model").rename(folder / "tokenizer.json")
    assert "tokenizer.json is not supported, add the" in refused(llm=folder)
    shutil.copytree(weights["artgpt4"], tmp_path / "weights")
    (tmp_path / "weights" / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ValueError, match="tokenizer.model: not a sentencepiece model"):
        load_folder(tmp_path / "weights")


# ---- Sizes: one validator


BAD = [
    ("rms_norm_eps", float("nan")), ("rms_norm_eps", float("inf")), ("rms_norm_eps", True),
    ("rms_norm_eps", 5.0), ("rope_theta", float("nan")), ("rope_theta", True),
    ("rope_theta", 0.5), ("num_hidden_layers", 10**9), ("num_hidden_layers", 4.0),
    ("hidden_size", True), ("vocab_size", -1), ("num_attention_heads", 32),
    ("num_attention_heads", 10**6), ("tie_word_embeddings", 1), ("max_position_embeddings", "4k"),
]


@pytest.mark.parametrize("key, value", BAD)
def test_converter_and_loader_refuse_a_size_by_file_and_key(
        refused, vicuna, weights, tmp_path, key, value):
    assert f"config.json: {key} is " in refused(llm=vicuna({key: value}))
    folder = tmp_path / "weights"
    shutil.copytree(weights["artgpt4"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["llama"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"config.json: {key} is "):
        load_folder(folder)


@pytest.mark.parametrize("key, value", [
    ("image_size", 57), ("image_size", "56"), ("ln_vision_eps", float("nan")),
    ("adapter_width", 10**9), ("adapter_width", -1), ("about", []), ("prompt", 1),
])
def test_the_loader_refuses_other_sizes_by_key(weights, tmp_path, key, value):
    shutil.copytree(weights["artgpt4"], tmp_path / "weights")
    file = tmp_path / "weights" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=f"config.json: {key} is "):
        load_folder(tmp_path / "weights")


def test_int8_in_a_foreign_config_is_refused(refused, vicuna):
    assert "config.json: int8 is true" in refused(llm=vicuna({"int8": True}))


@pytest.mark.parametrize("part, key, value", [
    ("vision_config", "num_attention_heads", 4), ("vision_config", "num_hidden_layers", 3),
    ("vision_config", "patch_size", 7), ("vision_config", None, 5), ("vision_config", None, None),
    ("qformer_config", "num_attention_heads", 8), ("qformer_config", "num_hidden_layers", 5),
    ("qformer_config", "cross_attention_frequency", 1), ("qformer_config", None, []),
])
def test_a_blip2_config_that_differs_from_the_shapes_is_refused(
        refused, checkpoints, tmp_path, part, key, value):
    folder = tmp_path / "hf"
    shutil.copytree(checkpoints / "blip2-hf", folder)
    config = json.loads((folder / "config.json").read_text())
    config[part] = value if key is None else config[part] | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    line = refused(vit=folder, qformer=folder)
    assert "hf/config.json: " in line and (key or part) in line


def test_only_the_shards_that_are_read_must_be_there(convert, refused, weights, checkpoints,
                                                     tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    tensors = load_file(checkpoints / "blip2-hf/model.safetensors")
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    where = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    where["language_model.lm_head.weight"] = "model-00002-of-00002.safetensors"
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    shutil.copy(checkpoints / "blip2-hf/config.json", folder)
    out = convert(tmp_path / "part", vit=folder, qformer=folder)
    whole = convert(tmp_path / "whole", vit="blip2-hf", qformer="blip2-hf")
    assert same_tensors(out, whole, "vision.safetensors")
    where["query_tokens"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": where}))
    line = refused(vit=folder, qformer=folder)
    assert "names model-00002-of-00002.safetensors, which is not there" in line


# ---- Weights folders


def test_a_tensor_in_two_files_of_a_weights_folder_is_refused(weights, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(weights["artgpt4"], folder)
    save_file({"llama.norm.weight": torch.ones(96)}, folder / "llama-old.safetensors")
    with pytest.raises(ValueError, match="llama.norm.weight is also in llama-old.safetensors"):
        load_folder(folder)
    (folder / "llama-old.safetensors").unlink()
    adapter = load_file(folder / "adapter.safetensors")
    save_file(adapter | {"llama.norm.weight": torch.ones(96)}, folder / "adapter.safetensors")
    with pytest.raises(ValueError, match="llama.norm.weight is not a trainable parameter"):
        load_folder(folder)


def test_shards_of_a_weights_folder_are_those_of_its_index(convert, tmp_path, monkeypatch):
    monkeypatch.setattr("conversion.writing.SHARD", 300_000)
    folder = convert(tmp_path / "shards")
    first, second = sorted(folder.glob("llama-*.safetensors"))[:2]
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(ValueError, match="names llama-00002-of-00009.safetensors, which is not"):
        load_folder(folder)
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="is also in llama-00001"):
        load_folder(folder)
    second.write_bytes(content)
    load_folder(folder)


def test_tensors_of_another_dtype_in_a_weights_folder_are_refused(weights, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(weights["artgpt4"], folder)
    tensors = load_file(folder / "vision.safetensors")
    tensors["vit.cls_token"] = tensors["vit.cls_token"].long()
    save_file(tensors, folder / "vision.safetensors")
    with pytest.raises(ValueError, match="vision.safetensors: vit.cls_token is I64; expected one"):
        load_folder(folder)


# ---- The command


def test_what_does_not_belong_together_is_misuse(convert, weights, tmp_path, capsys):
    folder, out = str(weights["artgpt4"]), str(tmp_path / "out.pth")
    for arguments, said in (
            (["--weights", folder, "--export", out, "--vit", "x"], "not used here: --vit"),
            (["--weights", folder, "--export", out, "--int8"], "not used here: --int8"),
            (["--yes", "--weights", folder], "also needed: --export"),
            (["--vit-layers", "0"], "'0' is not a whole number from 1"),
            (["--image-size", "0"], "'0' is not a whole number from 1")):
        with pytest.raises(SystemExit) as stopped:
            convert_weights.main(arguments)
        assert stopped.value.code == 2 and said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        convert(tmp_path / "out", yes=True)
    assert "not used here: --yes" in capsys.readouterr().err


def test_export_refuses_nan(weights, tmp_path, capsys):
    shutil.copytree(weights["artgpt4"], tmp_path / "weights")
    file = tmp_path / "weights" / "adapter.safetensors"
    tensors = load_file(file)
    tensors["proj.bias"][3] = float("nan")
    save_file(tensors, file)
    with pytest.raises(SystemExit):
        convert_weights.main(["--weights", str(tmp_path / "weights"),
                              "--export", str(tmp_path / "deep/er/mine.pth")])
    assert "adapter.safetensors: proj.bias: holds NaN" in capsys.readouterr().err
    assert not (tmp_path / "deep").exists()


def test_what_a_killed_export_left_is_named_by_the_next(weights, tmp_path, capsys):
    (tmp_path / ".mine.pth.1a2b3c4d.77.part").write_bytes(bytes(10 ** 7))
    (tmp_path / ".other.pth.1a2b3c4d.77.part").write_bytes(b"half")
    convert_weights.main(["--weights", str(weights["start"]), "--export",
                          str(tmp_path / "mine.pth")])
    err = capsys.readouterr().err
    assert f"{tmp_path}/.mine.pth.1a2b3c4d.77.part: 0.01 GB, left by an export that was" in err
    assert err.count("\n") == 1 and (tmp_path / "mine.pth").exists()


def test_an_exported_untrained_adapter_converts_again(convert, weights, tmp_path):
    file = tmp_path / "start.pth"
    convert_weights.main(["--weights", str(weights["start"]), "--export", str(file)])
    again = convert(tmp_path / "again", adapter=file)
    assert same_tensors(again, weights["start"], "adapter.safetensors")
