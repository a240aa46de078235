"""artgpt4.py against the golden data, and what must hold of any ArtGPT-4."""
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
    IMAGE_MARK, IMAGE_SLOT, INSTRUCTIONS, ArtGPT4, KVCache, chat_prompt, instruction_prompt,
    preprocess, sample,
)
from gallery.pretrain import save_pretrained
from tests.conftest import close

PHOTOS = ("photo_rgb_uint8", "photo2_rgb_uint8")


@pytest.fixture(scope="module")
def minigpt4(weights):
    return ArtGPT4.from_pretrained(weights["minigpt4"])


@pytest.fixture(scope="module")
def chat(model, expected):
    """The golden chat prompt with the first photo in it, (1, 194, D)."""
    with torch.no_grad():
        return model.embed_prompt(expected["chat_prompt"], expected["image_embeds"][:1])


# Golden data


def test_pixels_are_those_of_the_released_code(expected):
    pixels = [preprocess(Image.fromarray(expected[photo].numpy()), 56) for photo in PHOTOS]
    assert close(torch.stack(pixels), expected["pixels"])


@torch.no_grad()
def test_every_part_of_the_vision_reaches_the_golden_data(model, minigpt4, expected):
    features = model.vit(expected["pixels"])
    assert close(features, expected["vit"])
    assert close(model.ln_vision(features), expected["vit_ln"])
    assert close(model.qformer(expected["vit_ln"]), expected["qformer"])
    assert close(model.encode_image(expected["pixels"]), expected["image_embeds"])
    assert close(minigpt4.encode_image(expected["pixels"]), expected["minigpt4_image_embeds"])


def test_prompts_are_the_released_ones_letter_by_letter(expected):
    assert [instruction_prompt(text) for text in INSTRUCTIONS] == expected["prompt_list"]
    assert chat_prompt([f"{IMAGE_SLOT} Describe this image in detail."]) == expected["chat_prompt"]
    dialogue = [f"{IMAGE_SLOT} What is this?", "A painting.", "Who painted it?  I like it."]
    assert chat_prompt(dialogue) == expected["dialogue_prompt"]


@pytest.mark.parametrize("kind", ["chat", "dialogue"])
@torch.no_grad()
def test_prompts_are_tokenised_segment_by_segment(model, expected, kind):
    image = expected["image_embeds"][:1]
    first, last = (model.llama.embed(torch.tensor([ids]))
                   for ids in expected[f"{kind}_segments_ids"])
    found = model.embed_prompt(expected[f"{kind}_prompt"], image)
    assert torch.equal(found, torch.cat((first, image, last), dim=1))


@torch.no_grad()
def test_chat_logits_reach_the_golden_data(model, minigpt4, chat, expected):
    assert close(chat, expected["chat_context_embeds"])
    assert close(model.llama(chat)[0, -8:], expected["chat_logits_last_8"])
    context = minigpt4.embed_prompt(expected["chat_prompt"], expected["minigpt4_image_embeds"][:1])
    assert close(minigpt4.llama(context)[0, -8:], expected["minigpt4_chat_logits_last_8"])


def test_greedy_answers_are_the_golden_ones(model, minigpt4, chat, expected):
    context = minigpt4.embed_prompt(expected["chat_prompt"], expected["minigpt4_image_embeds"][:1])
    for answerer, embeds, golden in ((model, chat, "greedy_ids"),
                                     (minigpt4, context, "minigpt4_greedy_ids")):
        ids = [token.item() for token in answerer.generate(embeds, 24, temperature=0)]
        assert ids == expected[golden].tolist()


def test_losses_reach_the_golden_data(model, expected):
    losses = [model.loss(expected["pixels"], expected["captions"], prompt, "###", 24)
              for prompt in expected["prompt_list"]]
    assert close(torch.stack(losses), expected["stage2_losses"])
    loss = model.loss(expected["pixels"], expected["captions"], max_text_tokens=9)
    assert close(loss[None], expected["stage1_loss"])


# What trains


@pytest.mark.parametrize("mode", ["artgpt4", "minigpt4"])
def test_one_step_moves_each_trainable_tensor_and_nothing_else(weights, expected, mode):
    model = ArtGPT4.from_pretrained(weights["artgpt4"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.freeze(mode), lr=1e-3, weight_decay=0)
    model.loss(expected["pixels"], expected["captions"], IMAGE_MARK + INSTRUCTIONS[0],
               "###").backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items()
             if not torch.equal(tensor, before[name])}
    assert moved == set(model.trainable_names(mode))


# Answers


@torch.no_grad()
def test_a_cached_decode_equals_a_full_forward(model, chat):
    full, cache = model.llama(chat), KVCache(model.llama)
    pieces = [model.llama(piece, cache) for piece in chat.split([100, 90, 1, 1, 1, 1], dim=1)]
    assert cache.length == chat.shape[1]
    assert close(torch.cat(pieces, dim=1), full, 1e-5)
    cache.length = 100                                        # what followed is forgotten
    assert close(model.llama(chat[:, 100:], cache), full[:, 100:], 1e-5)


def test_generate_leaves_a_cache_that_can_be_gone_on_with(model, chat):
    cache = KVCache(model.llama)
    ids = [token.item() for token in model.generate(chat, 5, cache, temperature=0)]
    assert cache.length == chat.shape[1] + 4
    cache.length = chat.shape[1] - 1
    again = [token.item() for token in model.generate(chat[:, -1:], 5, cache, temperature=0)]
    assert again == ids


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


# Mistakes


def test_another_number_of_images_or_size_of_pixels_is_an_error(model, expected):
    for prompt in ("no image", f"{IMAGE_MARK} and {IMAGE_MARK}"):
        with pytest.raises(ValueError):
            model.embed_prompt(prompt, expected["image_embeds"][:1])
    for wrong in (expected["pixels"][0], expected["pixels"][..., :-1]):
        with pytest.raises(ValueError):
            model.encode_image(wrong)
    with pytest.raises(ValueError, match="3 are given"):
        model.loss(expected["pixels"][[0, 1, 1]], expected["captions"][:1])


# Loading


def test_the_file_can_be_copied_into_another_project():
    tree = ast.parse(Path(artgpt4.__file__).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names | {
        "numpy", "PIL", "safetensors", "sentencepiece", "torch"}


def test_saving_and_loading_change_nothing(model, weights, tmp_path):
    save_pretrained(model, tmp_path / "once")
    again = ArtGPT4.from_pretrained(tmp_path / "once")
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())
    other = ArtGPT4.from_pretrained(weights["start"])
    other.load_adapter(tmp_path / "once" / "adapter.safetensors")
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


def test_a_stray_file_is_not_read_and_a_shard_is_where_the_index_says(weights, tmp_path, model):
    folder = shutil.copytree(weights["artgpt4"], tmp_path / "w")
    state = load_file(folder / "llama.safetensors")
    save_file({name: t + 1 for name, t in state.items()}, folder / "llama-old.safetensors")
    loaded = ArtGPT4.from_pretrained(folder)
    assert torch.equal(loaded.llama.head.weight, model.llama.head.weight)
