"""artgpt4.py against the golden data on every device there is, and what holds of any ArtGPT-4."""
import ast
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import artgpt4
from artgpt4 import (
    IMAGE_MARK, IMAGE_SLOT, INSTRUCTIONS, ArtGPT4, chat_prompt, instruction_prompt, preprocess,
    sample,
)
from common.int8 import quantised
from conversion.formats import their_names
from tests.conftest import DEVICES, close


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """cuDNN's convolutions round float32 to 10 bits (TF32) unless they are told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return request.param


def test_pixels_are_those_of_the_released_code(expected):
    pixels = [preprocess(Image.fromarray(expected[photo].numpy()), 56)
              for photo in ("photo_rgb_uint8", "photo2_rgb_uint8")]
    assert close(torch.stack(pixels), expected["pixels"])


def test_prompts_are_the_released_ones_letter_by_letter(expected):
    assert [instruction_prompt(text) for text in INSTRUCTIONS] == expected["prompt_list"]
    assert chat_prompt([f"{IMAGE_SLOT} Describe this image in detail."]) == expected["chat_prompt"]
    dialogue = [f"{IMAGE_SLOT} What is this?", "A painting.", "Who painted it?  I like it."]
    assert chat_prompt(dialogue) == expected["dialogue_prompt"]


@pytest.mark.parametrize("name, prefix", [("artgpt4", ""), ("minigpt4", "minigpt4_")])
@torch.no_grad()
def test_logits_and_greedy_answers_reach_the_golden_data(weights, expected, device, name, prefix):
    model = ArtGPT4.from_pretrained(weights[name], device)
    features = model.vit(expected["pixels"].to(device))
    assert close(features, expected["vit"])
    assert close(model.ln_vision(features), expected["vit_ln"])
    assert close(model.qformer(expected["vit_ln"].to(device)), expected["qformer"])
    image_embeds = model.encode_image(expected["pixels"])
    embeds = model.embed_prompt(expected["chat_prompt"], image_embeds[:1])
    assert image_embeds.device.type == device
    assert close(image_embeds, expected[f"{prefix}image_embeds"])
    assert prefix or close(embeds, expected["chat_context_embeds"])
    assert close(model.llama(embeds)[0, -8:], expected[f"{prefix}chat_logits_last_8"])
    ids = [token.item() for token in model.generate(embeds, 24, temperature=0)]
    assert ids == expected[f"{prefix}greedy_ids"].tolist()


def test_losses_and_gradients_reach_the_golden_data(weights, expected, device):
    model = ArtGPT4.from_pretrained(weights["artgpt4"], device)
    model.freeze()
    losses = [model.loss(expected["pixels"], expected["captions"], prompt, "###", 24)
              for prompt in expected["prompt_list"]]
    assert close(torch.stack(losses), expected["stage2_losses"])
    loss = model.loss(expected["pixels"], expected["captions"], max_text_tokens=9)
    assert close(loss[None], expected["stage1_loss"])
    losses[0].backward()
    released = {name: their_names("artgpt4", name)[0] for name in model.trainable_names()}
    assert set(released.values()) == set(expected["trainable"])
    for name, golden_name in released.items():
        golden = expected[f"stage2_grad.{golden_name}"]
        tolerance = (1e-5 if device == "cpu" else 2e-5) * golden.abs().max()
        assert close(model.get_parameter(name).grad, golden, tolerance), name


@pytest.mark.parametrize("mode, precision", [
    ("artgpt4", {}), ("minigpt4", {}), ("artgpt4", {"dtype": torch.bfloat16}),
    ("artgpt4", {"dtype": torch.float16}), ("artgpt4", {"prepare": quantised(True, True)})])
def test_one_step_moves_each_trainable_tensor_in_float32_and_nothing_else(
        weights, expected, device, mode, precision):
    model = ArtGPT4.from_pretrained(weights["artgpt4"], device, **precision)
    optimizer = torch.optim.AdamW(model.freeze(mode), lr=1e-3, weight_decay=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss = model.loss(expected["pixels"], expected["captions"], expected["prompt_list"][0],
                      "###", 24)
    assert loss.item() == pytest.approx(expected["stage2_losses"][0].item(), rel=0.02)
    loss.backward()
    optimizer.step()
    moved = {name: tensor.dtype for name, tensor in model.state_dict().items()
             if not torch.equal(tensor, before[name])}
    assert moved == dict.fromkeys(model.trainable_names(mode), torch.float32)


@pytest.mark.parametrize("text", ["a calm sea", "日本 à la carte, naïve — œuvre", "# one ## two"])
def test_decode_shows_whole_characters_that_stay(model, text):
    ids, shown = model.tokenizer.encode(text), ""
    for count in range(1, len(ids) + 1):
        now, ended = model.decode(ids[:count])
        assert now.startswith(shown) and "\N{REPLACEMENT CHARACTER}" not in now and not ended
        shown = now
    assert model.decode([*ids, model.tokenizer.eos_id(), *ids]) == (text, True)
    no_piece = model.tokenizer.get_piece_size()
    assert model.decode([*ids, no_piece]) == (text, False)


def test_an_answer_ends_at_the_stop_mark_however_it_is_tokenised(weights):
    model = ArtGPT4.from_pretrained(weights["artgpt4"])
    encode, mark = model.tokenizer.encode, model.tokenizer.piece_to_id("#")
    stops = (encode("###"), [mark] * 3, encode("##") + [mark])
    for stop in stops:
        text, ended = model.decode(encode("a boat") + stop + encode("Human: more"))
        assert (text.strip(), ended) == ("a boat", True)
    model.config.prompt = "vicuna_v1"                         # which ends at EOS alone
    assert model.decode(encode("a ### b")) == ("a ### b", False)
    assert model.decode(encode("a #")) == ("a #", False)


def test_sample_draws_from_the_nucleus_in_proportion():
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    generator = torch.Generator().manual_seed(0)

    def shares(temperature, top_p):
        ids = sample(logits.expand(20000, -1), temperature, top_p, generator)
        return (ids.bincount(minlength=4) / 20000).tolist()

    # 0.5 and 0.3 hold the first 0.7
    assert shares(1.0, 0.7) == pytest.approx([0, 0.625, 0, 0.375], abs=0.02)
    assert shares(1.0, 1.0) == pytest.approx([0.15, 0.5, 0.05, 0.3], abs=0.02)
    assert shares(0.5, 0.7) == pytest.approx([0, 0.25 / 0.34, 0, 0.09 / 0.34], abs=0.02)
    assert shares(1.0, 0.0) == shares(0, 1.0) == [0, 1, 0, 0]
    assert len(sample(torch.zeros(99, 2), 1.0, 0.5, generator).unique()) == 1   # one holds half


def test_another_number_of_images_or_size_of_pixels_is_an_error(model, expected):
    for prompt in ("no image", f"{IMAGE_MARK} and {IMAGE_MARK}"):
        with pytest.raises(ValueError):
            model.embed_prompt(prompt, expected["image_embeds"][:1])
    for wrong in (expected["pixels"][0], expected["pixels"][..., :-1]):
        with pytest.raises(ValueError):
            model.encode_image(wrong)
    with pytest.raises(ValueError, match="3 are given"):
        model.loss(expected["pixels"][[0, 1, 1]], expected["captions"][:1])


def test_the_file_can_be_copied_into_another_project():
    tree = ast.parse(Path(artgpt4.__file__).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names | {
        "numpy", "PIL", "safetensors", "sentencepiece", "torch"}


def test_a_stray_file_is_not_read_and_a_shard_is_where_the_index_says(weights, tmp_path, model):
    folder = shutil.copytree(weights["artgpt4"], tmp_path / "w")
    state = load_file(folder / "llama.safetensors")
    save_file({name: t + 1 for name, t in state.items()}, folder / "llama-old.safetensors")
    loaded = ArtGPT4.from_pretrained(folder)
    assert torch.equal(loaded.llama.head.weight, model.llama.head.weight)
