"""convert_weights.py on the golden checkpoints: every format in, the bytes that come out, and every refusal."""
import json
import os
import pickle
import resource
import shutil
import signal
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import convert_weights
from artgpt4 import ArtGPT4, initial_adapter, rotate, trainable_names
from conversion.formats import META, half_split
from tests.conftest import GOLDEN, VICUNA_SHARDS, golden_tensors, save_llama

RELEASED = json.loads((GOLDEN / "manifest.json").read_text())
HUB = json.loads((GOLDEN / "manifest_hf.json").read_text())


@pytest.fixture
def refused(convert, tmp_path, capfd):
    """refused(flag=value, ...): the one line with which convert_weights.py refuses; nothing may be left behind."""
    def run(**changes):
        (tmp_path / "out").mkdir(exist_ok=True)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            convert(**{"out": tmp_path / "out" / "weights"} | changes)
        assert stopped.value.code == 1
        assert list((tmp_path / "out").iterdir()) == []
        lines = capfd.readouterr().err.splitlines()
        return lines[-1]
    return run


@pytest.fixture
def spoiled(checkpoints, tmp_path):
    """spoiled(file, {name: tensor or None}): a copy of a golden .pth with tensors replaced or taken out."""
    def make(file, changes):
        tensors = golden_tensors(RELEASED, file)
        for name, tensor in changes.items():
            tensors.pop(name, None)
            if tensor is not None:
                tensors[name] = tensor
        torch.save({"model": tensors}, tmp_path / file)
        return tmp_path / file
    return make


@pytest.fixture
def vicuna(tmp_path):
    """vicuna(config changes, tensor changes): a changed copy of the golden Vicuna."""
    def make(config=None, tensors=None):
        shutil.rmtree(tmp_path / "vicuna", ignore_errors=True)
        changed = golden_tensors(RELEASED, "vicuna") | (tensors or {})
        save_llama(tmp_path / "vicuna", RELEASED["llama_config"] | (config or {}),
                   {name: tensor for name, tensor in changed.items() if tensor is not None})
        return tmp_path / "vicuna"
    return make


def test_sizes_follow_from_the_files(weights):
    config = json.loads((weights["artgpt4"] / "config.json").read_text())
    assert config["image_size"] == 56 and config["adapter_width"] == 24 and config["ln_vision_eps"] == 1e-5
    assert config["vit"] == {"width": 176, "layers": 2, "heads": 2, "mlp_width": 768, "patch_size": 14,
                             "int8": False}
    assert config["qformer"] == {"width": 128, "layers": 4, "heads": 2, "mlp_width": 192, "queries": 6,
                                 "cross_every": 2}
    assert config["llama"]["num_key_value_heads"] == 4 and config["llama"]["vocab_size"] == 321


def test_the_prompt_that_the_language_model_expects_is_kept(convert, weights, tmp_path):
    folders = (weights["artgpt4"], convert(tmp_path / "chat", prompt="llama2_chat"))
    assert [ArtGPT4.from_pretrained(each).config.prompt for each in folders] == ["vicuna_v0", "llama2_chat"]
    config = json.loads((folders[1] / "config.json").read_text())
    (folders[1] / "config.json").write_text(json.dumps(config | {"prompt": "alpaca"}))
    with pytest.raises(ValueError, match="config.json: 'alpaca'"):
        ArtGPT4.from_pretrained(folders[1])


def test_vit_layers_may_be_chosen(convert, tmp_path):
    assert len(ArtGPT4.from_pretrained(convert(tmp_path / "all", vit_layers=3)).vit.blocks) == 3


def test_frozen_weights_keep_the_bytes_of_the_source(weights):
    llama, vicuna = load_file(weights["artgpt4"] / "llama.safetensors"), golden_tensors(RELEASED, "vicuna")
    block = "model.layers.1.self_attn."
    assert torch.equal(llama["llama.blocks.1.attn.qkv.weight"],
                       torch.cat([vicuna[f"{block}{part}_proj.weight"] for part in "qkv"]))
    assert torch.equal(llama["llama.blocks.0.mlp_norm.weight"],
                       vicuna["model.layers.0.post_attention_layernorm.weight"])
    vision, vit = load_file(weights["artgpt4"] / "vision.safetensors"), golden_tensors(RELEASED, "eva_vit_g.pth")
    q_bias, zeros, v_bias = vision["vit.blocks.1.attn.qkv.bias"].chunk(3)
    assert torch.equal(q_bias, vit["blocks.1.attn.q_bias"]) and torch.equal(v_bias, vit["blocks.1.attn.v_bias"])
    assert not zeros.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frozen_weights_keep_the_dtype_of_the_source_and_the_adapter_is_float32(convert, vicuna, tmp_path, dtype):
    half = {name: tensor.to(dtype) for name, tensor in golden_tensors(RELEASED, "vicuna").items()}
    out = convert(tmp_path / "half", llm=vicuna(tensors=half))
    assert {tensor.dtype for tensor in load_file(out / "llama.safetensors").values()} == {dtype}
    adapter = load_file(out / "adapter.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert adapter.keys() == set(trainable_names(ArtGPT4.from_pretrained(out).config))


def test_files_of_different_dtypes_make_one_model(convert, vicuna, checkpoints, tmp_path, expected):
    half = {name: tensor.half() for name, tensor in golden_tensors(RELEASED, "vicuna").items()}
    vit = {name: tensor.half() for name, tensor in golden_tensors(RELEASED, "eva_vit_g.pth").items()}
    torch.save(vit, tmp_path / "vit.pth")                     # as published; the Q-Former is float32
    model = ArtGPT4.from_pretrained(convert(tmp_path / "mixed", vit=tmp_path / "vit.pth", llm=vicuna(tensors=half)))
    with torch.inference_mode():
        embeds = model.embed_prompt(expected["chat_prompt"], model.encode_image(expected["pixels"])[:1])
        logits = model.llama(embeds)[0, -8:]
    assert embeds.dtype == torch.float16
    assert (logits - expected["chat_logits_last_8"]).abs().max() < 0.1


@pytest.mark.parametrize("qformer", ["blip2-hf", "blip2_pretrained_flant5xxl.pth"])
def test_fewer_blocks_of_a_vit_may_be_kept(convert, tmp_path, qformer):
    out = convert(tmp_path / "one", vit="blip2-hf", qformer=qformer, vit_layers=1)
    assert ArtGPT4.from_pretrained(out).config.vit.layers == 1


def test_what_no_adapter_file_holds_starts_as_training_does(weights):
    start, minigpt4 = (load_file(weights[name] / "adapter.safetensors") for name in ("start", "minigpt4"))
    config, vicuna = ArtGPT4.from_pretrained(weights["start"]).config, golden_tensors(RELEASED, "vicuna")
    assert start.keys() == minigpt4.keys() == set(trainable_names(config))
    torch.manual_seed(42)
    for name, tensor in initial_adapter(config):
        assert torch.equal(start[name], tensor), name
        assert torch.equal(minigpt4[name], tensor) or name.startswith("proj."), name
    assert torch.equal(minigpt4["proj.bias"], golden_tensors(RELEASED, "pretrained_minigpt4.pth")["llama_proj.bias"])
    for norms in (start, minigpt4):
        assert torch.equal(norms["llama.blocks.2.attn_norm.weight"], vicuna["model.layers.2.input_layernorm.weight"])


def test_the_end_says_what_was_written_and_what_to_type_next(convert, tmp_path, capsys):
    trained = convert(tmp_path / "trained")
    assert f"next: python chat.py --weights {trained} image.jpg" in capsys.readouterr().out
    start = convert(tmp_path / "start", adapter=None)
    said = capsys.readouterr().out
    assert f"next: python train.py --stage 1 --recipe paper --dtype bfloat16 --weights {start} --data cc_sbu" in said
    assert f"{start}/llama.safetensors" in said and "float32" in said


# Every format


@pytest.fixture(scope="session")
def expected_hf():
    return load_file(GOLDEN / "expected_hf.safetensors")


def close(found, expected):
    return found.shape == expected.shape and (found - expected).abs().max().item() <= 2e-5


@torch.no_grad()
def test_blip2_of_transformers_reaches_the_golden_data(convert, tmp_path, expected_hf):
    model = ArtGPT4.from_pretrained(convert(tmp_path / "hf", vit="blip2-hf", qformer="blip2-hf"))
    assert len(model.vit.blocks) == 2 and model.ln_vision.eps == 1e-6
    features = model.ln_vision(model.vit(expected_hf["pixels"]))
    assert close(features, expected_hf["vit_ln"])
    assert close(model.qformer(features), expected_hf["qformer"])


def test_the_vit_and_the_qformer_may_come_from_different_formats(convert, tmp_path, weights):
    mixed = load_file(convert(tmp_path / "mixed", qformer="blip2-hf") / "vision.safetensors")
    released = load_file(weights["artgpt4"] / "vision.safetensors")
    assert all(torch.equal(mixed[name], released[name]) for name in released if name.startswith("vit."))
    hub = golden_tensors(HUB, "blip2-hf/model.safetensors")
    assert torch.equal(mixed["ln_vision.bias"], hub["vision_model.post_layernorm.bias"])


@torch.no_grad()
def test_grouped_queries_tied_embeddings_and_rope_theta_reach_the_golden_data(convert, tmp_path, expected_hf):
    model = ArtGPT4.from_pretrained(convert(tmp_path / "gqa", llm="llama-gqa", adapter=None))
    assert close(model.llama(model.llama.embed(expected_hf["gqa_ids"])), expected_hf["gqa_logits"])


def test_rope_theta_is_also_read_where_newer_releases_keep_it(convert, vicuna, tmp_path):
    nested = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    assert ArtGPT4.from_pretrained(convert(tmp_path / "new", llm=vicuna(nested))).config.llama.rope_theta == 500000.0


def interleaved(weight, head_dim):
    """The inverse of half_split."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape(weight.shape)


def save_meta(folder, config, tensors, shards):
    """A language model as Meta releases it, from transformers' names and row order."""
    folder.mkdir()
    heads, width = config["num_attention_heads"], config["hidden_size"]
    parts = [{"rope.freqs": torch.ones(width // heads // 2)} for _ in range(shards)]
    for pattern, (hf_pattern, dim) in META.items():
        for i in range(config["num_hidden_layers"] if "{i}" in pattern else 1):
            weight = tensors[hf_pattern.replace("{i}", str(i)) + ".weight"]
            if pattern.endswith((".wq", ".wk")):
                weight = interleaved(weight, width // heads)
            pieces = [weight] * shards if dim is None else weight.chunk(shards, dim)
            for part, piece in zip(parts, pieces, strict=True):
                part[pattern.replace("{i}", str(i)) + ".weight"] = piece.clone()
    for i, part in enumerate(parts):
        torch.save(part, folder / f"consolidated.{i:02d}.pth")
    (folder / "params.json").write_text(json.dumps({
        "dim": width, "n_heads": heads, "n_layers": config["num_hidden_layers"], "multiple_of": 8, "vocab_size": -1,
        "n_kv_heads": config.get("num_key_value_heads"), "norm_eps": config["rms_norm_eps"],
        "rope_theta": config.get("rope_theta", 10000.0)}))
    return folder


@pytest.mark.parametrize("shards", [1, 2])
def test_llama_as_meta_released_it_converts_to_the_same_bytes(convert, weights, tmp_path, shards):
    tensors = golden_tensors(RELEASED, "vicuna")
    meta = save_meta(tmp_path / "13B", RELEASED["llama_config"], tensors, shards)
    shutil.copy(GOLDEN / "tokenizer.model", tmp_path)         # Meta keeps it beside the sizes
    out = convert(tmp_path / "out", llm=meta)
    assert (out / "llama.safetensors").read_bytes() == (weights["artgpt4"] / "llama.safetensors").read_bytes()


def test_grouped_queries_of_meta_shards_reach_the_golden_data(convert, tmp_path, expected_hf):
    tensors = golden_tensors(HUB, "llama-gqa/model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    meta = save_meta(tmp_path / "gqa", HUB["llama_gqa_config"], tensors, 2)
    shutil.copy(GOLDEN / "tokenizer.model", meta)
    model = ArtGPT4.from_pretrained(convert(tmp_path / "out", llm=meta, adapter=None))
    with torch.no_grad():
        assert close(model.llama(model.llama.embed(expected_hf["gqa_ids"])), expected_hf["gqa_logits"])


def test_rows_of_q_and_k_rotate_as_meta_rotates_them():
    heads, dim, width, tokens = 2, 8, 16, 5
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator)
    q_weight, k_weight = torch.randn(2, heads * dim, width, generator=generator)
    angle = torch.arange(tokens)[:, None] * 10000.0 ** (-torch.arange(0, dim, 2) / dim)         # (T, d/2)

    def by_meta(weight):                                      # neighbouring rows are one complex number
        pairs = torch.view_as_complex((x @ weight.T).view(tokens, heads, dim // 2, 2))
        turned = pairs * torch.polar(torch.ones_like(angle), angle)[:, None]
        return torch.view_as_real(turned).flatten(2).transpose(0, 1)

    def by_us(weight):
        states = (x @ half_split(weight, dim).T).view(1, tokens, heads, dim).transpose(1, 2)
        return rotate(states, torch.cat((angle.cos(),) * 2, 1), torch.cat((-angle.sin(), angle.sin()), 1))[0]
    scores = by_us(q_weight) @ by_us(k_weight).mT             # (H, T, T)
    torch.testing.assert_close(scores, by_meta(q_weight) @ by_meta(k_weight).mT, rtol=1e-4, atol=1e-4)


def save_delta(folder, tokens):
    """LLaMA with 320 tokens and the delta that makes Vicuna with `tokens` of it: (llama, delta, sum in float16)."""
    generator = torch.Generator().manual_seed(0)
    base, delta, total = {}, {}, {}
    for name, tensor in golden_tensors(RELEASED, "vicuna").items():
        vicuna = tensor[:tokens].half() if len(tensor) == 321 else tensor.half()
        base[name] = (vicuna + 0.02 * torch.randn(vicuna.shape, generator=generator)).half()
        if len(tensor) == 321:
            base[name] = base[name][:320].clone()
        extended = torch.zeros_like(vicuna)
        extended[:len(base[name])] = base[name]
        delta[name] = vicuna - extended
        total[name] = extended + delta[name]
    save_llama(folder / "llama", RELEASED["llama_config"] | {"vocab_size": 320}, base, ["pytorch_model.bin"])
    save_llama(folder / "delta", RELEASED["llama_config"] | {"vocab_size": tokens}, delta)
    return folder / "llama", folder / "delta", total


@pytest.mark.parametrize("tokens", [321, 320])                # v0 has one more than LLaMA, v1.1 as many
def test_a_vicuna_delta_is_added_in_float16(convert, vicuna, tmp_path, tokens):
    llama, delta, total = save_delta(tmp_path, tokens)
    merged = convert(tmp_path / "merged", llm=llama, delta=delta)
    at_once = convert(tmp_path / "at_once", llm=vicuna({"vocab_size": tokens}, total))
    assert (merged / "llama.safetensors").read_bytes() == (at_once / "llama.safetensors").read_bytes()
    assert (merged / "config.json").read_bytes() == (at_once / "config.json").read_bytes()


def test_a_delta_given_as_the_model_and_the_reverse_are_refused(refused, vicuna, tmp_path):
    llama, delta, _ = save_delta(tmp_path, 321)
    assert "this is a Vicuna delta (for --delta, with LLaMA as --llm)" in refused(llm=delta)
    assert "expected a Vicuna delta" in refused(llm=llama, delta=vicuna())
    assert "not its delta" in refused(llm="llama-gqa", delta=delta)
    assert "is Vicuna v0 already" in refused(llm=vicuna(), delta=delta)


def test_int8_keeps_each_row_within_half_a_step(convert, weights, tmp_path):
    small, full = (load_file(folder / "llama.safetensors") for folder in
                   (convert(tmp_path / "int8", int8=True), weights["artgpt4"]))
    matrices = [name for name, tensor in small.items() if tensor.dtype == torch.int8]
    assert len(matrices) == 4 * 4 and not any("embed" in name or "head" in name for name in matrices)
    for name, tensor in full.items():
        if name in matrices:
            scale = small[name.replace(".weight", ".scale")]
            assert torch.equal(scale, tensor.abs().amax(dim=1) / 127)
            assert ((small[name] * scale[:, None] - tensor).abs() <= scale[:, None] * 0.5001).all()
        else:
            assert torch.equal(small[name], tensor)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_int8_model_answers_nearly_as_the_full_one_and_trains(convert, model, expected, tmp_path, dtype):
    small = ArtGPT4.from_pretrained(convert(tmp_path / "int8", int8=True), dtype=dtype)
    assert small.llama.blocks[0].attn.qkv.weight.dtype == torch.int8
    assert small.llama.blocks[0].attn.qkv.scale.dtype == torch.float32
    with torch.no_grad():
        embeds = model.embed_prompt(expected["chat_prompt"], expected["image_embeds"][:1])
        found, full = (each.llama(embeds.to(each.llama.embed.weight.dtype)) for each in (small, model))
    assert (found - full).norm() / full.norm() < 0.05
    optimizer = torch.optim.AdamW(small.freeze(), lr=1e-3)
    before = small.llama.blocks[0].adapter.down.weight.clone()
    small.loss(expected["pixels"], expected["captions"]).backward()
    optimizer.step()
    assert not torch.equal(before, small.llama.blocks[0].adapter.down.weight)


def test_shards_of_the_language_model_load_as_one_file_does(convert, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_weights, "SHARD", 300_000)
    out = convert(tmp_path / "shards")
    files = sorted(path.name for path in out.glob("llama-*"))
    assert len(files) == 9 and files[0] == "llama-00001-of-00009.safetensors"
    assert not (out / "llama.safetensors").exists()
    assert all((out / file).stat().st_size < 310_000 for file in files)
    whole, sharded = (ArtGPT4.from_pretrained(folder).state_dict() for folder in (weights["artgpt4"], out))
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in whole.items())


def test_one_tensor_of_the_source_is_in_memory_at_a_time(convert, tmp_path, monkeypatch):
    read, at_once = [], []

    def fromfile(*args, **kwargs):
        read.append(weakref.ref(array := original(*args, **kwargs)))
        at_once.append(sum(each() is not None for each in read))
        return array
    original = np.fromfile
    monkeypatch.setattr(np, "fromfile", fromfile)
    convert(tmp_path / "out")
    assert len(read) > 150 and max(at_once) == 1


# And back


def test_export_brings_the_released_file_back_to_the_bit(convert, checkpoints, weights, tmp_path):
    convert_weights.main(["--weights", str(weights["artgpt4"]), "--export", str(tmp_path / "mine.pth")])
    exported = torch.load(tmp_path / "mine.pth", weights_only=True)["model"]
    released = golden_tensors(RELEASED, "ArtGPT-4.pth")
    assert exported.keys() == released.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in released.items())
    assert (tmp_path / "mine.pth").stat().st_size < 1.5 * sum(tensor.nbytes for tensor in released.values())
    again = convert(tmp_path / "again", adapter=tmp_path / "mine.pth")
    for file in ("adapter.safetensors", "config.json"):
        assert (again / file).read_bytes() == (weights["artgpt4"] / file).read_bytes()


def test_export_does_not_overwrite(weights, tmp_path, capsys):
    (tmp_path / "mine.pth").write_text("mine")
    with pytest.raises(SystemExit):
        convert_weights.main(["--weights", str(weights["artgpt4"]), "--export", str(tmp_path / "mine.pth")])
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine.pth").read_text() == "mine"


# With no argument


@pytest.fixture
def found(checkpoints, tmp_path, monkeypatch):
    """found({name in checkpoints/: golden checkpoint}): an empty directory to work in, with these under other names."""
    monkeypatch.chdir(tmp_path)

    def place(names):
        for name, source in names.items():
            path = tmp_path / "checkpoints" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(checkpoints / source)
    return place


def test_checkpoints_are_recognised_by_content_and_converted(found, weights, tmp_path, capsys):
    found({"a.bin": "eva_vit_g.pth", "b": "blip2_pretrained_flant5xxl.pth", "deep/er/c": "vicuna",
           "d.pth": "ArtGPT-4.pth", "e.pth": "pretrained_minigpt4.pth"})
    (tmp_path / "checkpoints" / "f.pth").write_text("not a checkpoint")
    convert_weights.main(["--yes"])
    said = capsys.readouterr().out
    for line in ("a.bin: EVA-ViT-g, 0.01 GB", "b: BLIP-2's Q-Former", "deep/er/c: LLaMA or Vicuna, as transformers",
                 "d.pth: ArtGPT-4's trained part", "e.pth: MiniGPT-4's projection", "not usable: checkpoints/f.pth:",
                 "--vit checkpoints/a.bin", "--llm checkpoints/deep/er/c", "--adapter checkpoints/d.pth"):
        assert line in said
    for file in ("adapter.safetensors", "llama.safetensors", "vision.safetensors"):
        assert (tmp_path / "weights/artgpt4" / file).read_bytes() == (weights["artgpt4"] / file).read_bytes()


def test_what_is_missing_is_said_with_its_owner_and_size(found, capsys):
    convert_weights.main([])
    said = capsys.readouterr().out
    for line in ("eva_vit_g.pth, 2.03 GB", "blip2_pretrained_flant5xxl.pth, 0.43 GB", "consolidated.*.pth",
                 "lmsys/vicuna-13b-delta-v0, 26.0 GB", "ArtGPT-4.pth, 6.34 GB, Tyrannosaurus/ArtGPT-4", "Hugging Face"):
        assert line in said
    assert "http" not in said
    with pytest.raises(SystemExit):
        convert_weights.main(["--yes"])
    assert "not complete" in capsys.readouterr().err


def test_a_complete_folder_prints_the_command_and_does_nothing(found, tmp_path, capsys):
    found({"hf": "blip2-hf", "vicuna": "vicuna"})
    convert_weights.main([])
    said = capsys.readouterr().out
    assert ("next: python convert_weights.py --vit checkpoints/hf --qformer checkpoints/hf --llm checkpoints/vicuna "
            "--out weights/artgpt4") in said
    assert "without it the adapters start untrained" in said
    assert not (tmp_path / "weights").exists()


# What is refused: one line that names the file and what is wrong with it


def test_an_output_folder_that_exists_is_refused_and_kept(convert, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit):
        convert(tmp_path / "mine")
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_missing_tensor_is_named(refused, spoiled, vicuna):
    assert "blocks.0.norm2.bias is missing" in refused(vit=spoiled("eva_vit_g.pth", {"blocks.0.norm2.bias": None}))
    assert "model.norm.weight is missing" in refused(llm=vicuna(tensors={"model.norm.weight": None}))
    name = "Qformer.bert.encoder.layer.2.crossattention.self.key.weight"
    assert f"{name} is missing" in refused(qformer=spoiled("blip2_pretrained_flant5xxl.pth", {name: None}))
    name = "llama_model.model.layers.2.input_layernorm.weight"
    assert f"{name} is missing" in refused(adapter=spoiled("ArtGPT-4.pth", {name: None}))


def test_an_unknown_tensor_is_named(refused, spoiled, vicuna):
    extra = torch.zeros(2)
    assert "blocks.0.gamma_1 is no part" in refused(vit=spoiled("eva_vit_g.pth", {"blocks.0.gamma_1": extra}))
    assert "q_proj.bias is no part" in refused(llm=vicuna(tensors={"model.layers.0.self_attn.q_proj.bias": extra}))


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(refused, spoiled, vicuna):
    line = refused(vit=spoiled("eva_vit_g.pth", {"blocks.1.norm1.bias": torch.zeros(175)}))
    assert "blocks.1.norm1.bias: (175,); (176,) was expected" in line
    line = refused(llm=vicuna(tensors={"model.layers.3.self_attn.k_proj.weight": torch.zeros(95, 96)}))
    assert "model.layers.3.self_attn.q_proj.weight: (96, 96) + (95, 96) + (96, 96); (288, 96) was expected" in line


def test_a_tensor_with_nan_or_infinity_is_named(refused, spoiled, vicuna):
    for bad in (float("nan"), float("inf"), -float("inf")):
        weight = golden_tensors(RELEASED, "vicuna")["model.layers.2.mlp.up_proj.weight"]
        weight[150, 50] = bad
        line = refused(llm=vicuna(tensors={"model.layers.2.mlp.up_proj.weight": weight}))
        assert f"{VICUNA_SHARDS[1]}: model.layers.2.mlp.up_proj.weight: holds NaN or infinity" in line


@pytest.mark.parametrize("key, value", [
    ("rope_scaling", {"type": "linear", "factor": 2.0}), ("attention_bias", True), ("mlp_bias", True),
    ("hidden_act", "gelu"), ("model_type", "mistral"), ("head_dim", 32), ("quantization_config", {"bits": 4}),
    ("rope_parameters", {"rope_type": "yarn", "factor": 4.0}), ("sliding_window", 4096),
])
def test_a_setting_that_would_change_the_arithmetic_is_refused_by_name(refused, vicuna, key, value):
    line = refused(llm=vicuna(config={key: value}))
    assert ("rope_scaling" if key == "rope_parameters" else key) in line and "config.json" in line


def test_sizes_that_make_no_sense_are_named(refused, vicuna, spoiled):
    assert 'hidden_size is "96"' in refused(llm=vicuna({"hidden_size": "96"}))
    assert "num_hidden_layers is 0" in refused(llm=vicuna({"num_hidden_layers": 0}))
    assert "num_attention_heads is 5; expected a divisor" in refused(llm=vicuna({"num_attention_heads": 5}))
    assert "rms_norm_eps is null" in refused(llm=vicuna({"rms_norm_eps": None}))
    assert "expected a multiple of 14" in refused(image_size=50)
    assert "3 blocks, but --vit-layers is 4" in refused(vit_layers=4)
    assert "cls_token: (176,); (1, 1, 176)" in refused(vit=spoiled("eva_vit_g.pth", {"cls_token": torch.zeros(176)}))
    assert "expected 3 dimensions" in refused(vit=spoiled("eva_vit_g.pth", {"pos_embed": torch.zeros(17, 176)}))
    assert "expected a square and 1" in refused(vit=spoiled("eva_vit_g.pth", {"pos_embed": torch.zeros(1, 19, 176)}))


def test_a_language_model_that_is_no_whole_folder_is_refused(refused, checkpoints, vicuna):
    shard = checkpoints / "vicuna" / VICUNA_SHARDS[0]
    assert "give its folder, with config.json and tokenizer.model" in refused(llm=shard)
    for file, content, said in (("pytorch_model.bin.index.json", "{}", "no weight_map"),
                                ("config.json", "{", "not JSON"),
                                ("tokenizer.model", "text", "not a sentencepiece model")):
        folder = vicuna()
        (folder / file).write_text(content)
        assert f"{file}: {said}" in refused(llm=folder)


def test_files_in_each_others_place_are_recognised(refused):
    assert "this is BLIP-2's Q-Former; expected EVA-ViT-g" in refused(vit="blip2_pretrained_flant5xxl.pth")
    assert "this is EVA-ViT-g; expected BLIP-2's Q-Former" in refused(qformer="eva_vit_g.pth")


def test_misuse_is_exit_code_2(convert, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        convert(tmp_path / "out", vit=None)
    assert stopped.value.code == 2
    assert "--vit" in capsys.readouterr().err


def test_an_adapter_for_another_language_model_is_refused(refused, spoiled):
    line = refused(adapter=spoiled("pretrained_minigpt4.pth", {"llama_proj.weight": torch.zeros(64, 128)}))
    assert "made for a language model whose width is 64; that of --llm is 96" in line
    deeper = {f"llama_model.model.layers.4.self_attn.1.{name}": torch.zeros(shape) for name, shape in
              {"down.weight": (24, 96), "down.bias": (24,), "up.weight": (96, 24), "up.bias": (96,)}.items()}
    line = refused(adapter=spoiled("ArtGPT-4.pth", deeper))
    assert "made for a language model whose number of blocks is 5; that of --llm is 4" in line


def test_a_tokenizer_with_more_pieces_than_the_embedding_is_refused(refused, vicuna):
    short = {name: golden_tensors(RELEASED, "vicuna")[name][:300].clone()
             for name in ("model.embed_tokens.weight", "lm_head.weight")}
    line = refused(llm=vicuna({"vocab_size": 300}, short))
    assert "tokenizer.model: 320 pieces, but the language model has an embedding for 300" in line


def test_another_llama_than_vicuna_v0_converts_with_a_warning(convert, vicuna, tmp_path, capsys):
    short = {name: golden_tensors(RELEASED, "vicuna")[name][:320].clone()
             for name in ("model.embed_tokens.weight", "lm_head.weight")}
    convert(tmp_path / "v1.5", llm=vicuna({"vocab_size": 320, "max_position_embeddings": 4096}, short))
    line = next(line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert "has 320 tokens: Vicuna v1.5 or LLaMA 2" in line and "made for Vicuna v0, which has 321" in line
    convert(tmp_path / "v0")
    assert "warning" not in capsys.readouterr().err


def cut(source, out):
    """A copy of a file without its last tenth."""
    out.write_bytes(source.read_bytes()[:source.stat().st_size * 9 // 10])
    return out


def test_files_cut_short_are_refused(refused, checkpoints, vicuna, tmp_path):
    assert "vit.pth: damaged, cut short" in refused(vit=cut(checkpoints / "eva_vit_g.pth", tmp_path / "vit.pth"))
    folder = vicuna()
    cut(checkpoints / "vicuna" / VICUNA_SHARDS[1], folder / VICUNA_SHARDS[1])
    assert f"{VICUNA_SHARDS[1]}: damaged, cut short" in refused(llm=folder)
    shutil.copytree(checkpoints / "blip2-hf", tmp_path / "hf")
    cut(checkpoints / "blip2-hf" / "model.safetensors", tmp_path / "hf" / "model.safetensors")
    assert "model.safetensors: damaged, cut short" in refused(vit=tmp_path / "hf")
    torch.save(golden_tensors(RELEASED, "eva_vit_g.pth"), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert "old.pth: damaged, cut short" in refused(vit=cut(tmp_path / "old.pth", tmp_path / "old.pth"))


def test_the_format_of_torch_before_1_6_is_read(convert, weights, tmp_path):
    torch.save(golden_tensors(RELEASED, "eva_vit_g.pth"), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    out = convert(tmp_path / "out", vit=tmp_path / "old.pth")
    assert (out / "vision.safetensors").read_bytes() == (weights["artgpt4"] / "vision.safetensors").read_bytes()


def test_a_shard_that_an_index_names_but_is_missing_is_named(refused, vicuna):
    folder = vicuna()
    (folder / VICUNA_SHARDS[0]).unlink()
    assert f"names {VICUNA_SHARDS[0]}, which is not there" in refused(llm=folder)


def test_meta_shards_that_are_missing_are_noticed(refused, tmp_path):
    meta = save_meta(tmp_path / "13B", RELEASED["llama_config"], golden_tensors(RELEASED, "vicuna"), 2)
    (meta / "consolidated.01.pth").unlink()
    assert "1 consolidated.*.pth hold 48 of 96 rows of wq; shards are missing" in refused(llm=meta)


def test_a_git_lfs_pointer_is_named_as_such(refused, vicuna, tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2030000000\n"
    (tmp_path / "eva_vit_g.pth").write_text(pointer)
    assert "eva_vit_g.pth: a Git LFS pointer" in refused(vit=tmp_path / "eva_vit_g.pth")
    folder = vicuna()
    (folder / "tokenizer.model").write_text(pointer)
    assert "tokenizer.model: a Git LFS pointer" in refused(llm=folder)


class RunsCode:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(refused, tmp_path, as_zip):
    trap = {"model": golden_tensors(RELEASED, "pretrained_minigpt4.pth"), "config": RunsCode(tmp_path / "ran")}
    torch.save(trap, tmp_path / "trap.pth", _use_new_zipfile_serialization=as_zip)
    assert "trap.pth: would run code of its own" in refused(adapter=tmp_path / "trap.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(RunsCode(tmp_path / "ran")))
    assert "bare.pth: " in refused(adapter=tmp_path / "bare.pth")
    assert not (tmp_path / "ran").exists()


def test_rubbish_is_refused_in_one_line(refused, tmp_path):
    for name, content in {"empty": b"", "text": b"hello", "zip": b"PK\x03\x04" * 20, "pickle": pickle.dumps([1, 2]),
                          "header": b"\xff" * 7 + b"\x7f{", "page": b"<!doctype html><html>not found</html>"}.items():
        (tmp_path / name).write_bytes(content)
        assert str(tmp_path / name) in refused(vit=tmp_path / name)
    assert "no such file or folder" in refused(vit=tmp_path / "nowhere")
    assert "no model.safetensors and no pytorch_model.bin" in refused(llm=GOLDEN)


def test_a_disk_that_fills_up_midway_leaves_nothing(refused):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
    try:
        assert "File too large; nothing was kept" in refused()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_too_little_space_is_said_before_anything_is_written(refused, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    assert "0.01 GB are needed, 0.00 GB are free" in refused()


def test_ctrl_c_midway_leaves_nothing(convert, tmp_path, monkeypatch, capsys):
    calls = []

    def show(self, done, note=""):
        calls.append(done)
        assert list((tmp_path / "out").iterdir())             # something is being written
        if len(calls) == 50:
            signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(convert_weights.Progress, "show", show)
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit) as stopped:
        convert(tmp_path / "out" / "weights")
    assert stopped.value.code == 130 and len(calls) == 50
    assert list((tmp_path / "out").iterdir()) == []
