"""artgpt4.py against the golden data, and what must hold of any ArtGPT-4."""
from dataclasses import replace

import pytest
import torch
from PIL import Image

from artgpt4 import (
    IMAGE_ID,
    IMAGE_MARK,
    IMAGE_SLOT,
    INSTRUCTIONS,
    MODES,
    PIXEL_MEAN,
    PIXEL_STD,
    ArtGPT4,
    KVCache,
    chat_prompt,
    instruction_prompt,
    preprocess,
    sample,
)
from common.files import open_image
from conversion.formats import their_names

PHOTOS = ("photo_rgb_uint8", "photo2_rgb_uint8")


def close(found, expected, tolerance=2e-5):
    """Whether the largest absolute difference is within the tolerance."""
    assert found.shape == expected.shape
    return (found - expected).abs().max().item() <= tolerance


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
    pixels = torch.stack(
        [preprocess(Image.fromarray(expected[photo].numpy()), 56) for photo in PHOTOS]
    )
    assert close(pixels, expected["pixels"])


@torch.no_grad()
def test_every_part_of_the_vision_reaches_the_golden_data(model, minigpt4, expected):
    features = model.vit(expected["pixels"])
    assert close(features, expected["vit"])
    assert close(model.ln_vision(features), expected["vit_ln"])
    assert close(model.qformer(expected["vit_ln"]), expected["qformer"])
    assert close(model.encode_image(expected["pixels"]), expected["image_embeds"])
    assert close(minigpt4.encode_image(expected["pixels"]), expected["minigpt4_image_embeds"])


def test_position_embedding_for_another_image_size(convert, expected, tmp_path):
    resized = ArtGPT4.from_pretrained(convert(tmp_path / "84", image_size=84))
    assert resized.config.image_size == 84
    assert close(resized.vit.pos_embed, expected["pos_embed_for_image_size_84"])


def test_prompts_are_the_released_ones_letter_by_letter(expected):
    assert [instruction_prompt(instruction) for instruction in INSTRUCTIONS] == expected[
        "prompt_list"
    ]
    assert chat_prompt([f"{IMAGE_SLOT} Describe this image in detail."]) == expected["chat_prompt"]
    dialogue = [f"{IMAGE_SLOT} What is this?", "A painting.", "Who painted it?  I like it."]
    assert chat_prompt(dialogue) == expected["dialogue_prompt"]


@pytest.mark.parametrize("kind", ["chat", "dialogue"])
@torch.no_grad()
def test_prompts_are_tokenised_segment_by_segment(model, expected, kind):
    image = expected["image_embeds"][:1]
    first, last = (
        model.llama.embed(torch.tensor([ids])) for ids in expected[f"{kind}_segments_ids"]
    )
    assert torch.equal(
        model.embed_prompt(expected[f"{kind}_prompt"], image),
        torch.cat((first, image, last), dim=1),
    )


@torch.no_grad()
def test_chat_logits_reach_the_golden_data(model, minigpt4, chat, expected):
    assert close(chat, expected["chat_context_embeds"])
    assert close(model.llama(chat)[0, -8:], expected["chat_logits_last_8"])
    context = minigpt4.embed_prompt(expected["chat_prompt"], expected["minigpt4_image_embeds"][:1])
    assert close(minigpt4.llama(context)[0, -8:], expected["minigpt4_chat_logits_last_8"])


def test_greedy_answers_are_the_golden_ones(model, minigpt4, chat, expected):
    context = minigpt4.embed_prompt(expected["chat_prompt"], expected["minigpt4_image_embeds"][:1])
    for answerer, embeds, golden in (
        (model, chat, "greedy_ids"),
        (minigpt4, context, "minigpt4_greedy_ids"),
    ):
        ids = [
            token.item()
            for token in answerer.generate_ids(embeds, max_new_tokens=24, temperature=0)
        ]
        assert ids == expected[golden].tolist()


def test_losses_reach_the_golden_data(model, expected):
    losses = [
        model.loss(expected["pixels"], expected["captions"], prompt, end="###", max_text_tokens=24)
        for prompt in expected["prompt_list"]
    ]
    assert close(torch.stack(losses), expected["stage2_losses"])
    loss = model.loss(expected["pixels"], expected["captions"], max_text_tokens=9)
    assert close(loss[None], expected["stage1_loss"])


def test_gradients_reach_the_golden_data(weights, expected):
    model = ArtGPT4.from_pretrained(weights["artgpt4"])
    model.freeze()
    model.loss(
        expected["pixels"], expected["captions"], expected["prompt_list"][0], "###", 24
    ).backward()
    released = {
        name: their_names("artgpt4", name)[0]
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    assert set(released.values()) == set(expected["trainable"])
    for name, golden_name in released.items():
        golden = expected[f"stage2_grad.{golden_name}"]
        assert close(model.get_parameter(name).grad, golden, 1e-5 * golden.abs().max()), name


# What trains


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_one_step_moves_each_trainable_tensor_and_nothing_else(weights, expected, mode, dtype):
    model = ArtGPT4.from_pretrained(weights["artgpt4"], dtype=dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.freeze(mode), lr=1e-3, weight_decay=0)
    model.loss(
        expected["pixels"], expected["captions"], INSTRUCTIONS[0] + IMAGE_MARK, "###"
    ).backward()
    optimizer.step()
    moved = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert moved == set(model.trainable_names(mode))
    assert {model.get_parameter(name).dtype for name in moved} == {torch.float32}


def test_modes_train_what_the_paper_says(model):
    names = model.trainable_names
    assert names("minigpt4") == ["proj.weight", "proj.bias"]
    assert [name for name in names("norms") if "attn_norm" in name] == \
        ["llama.blocks.0.attn_norm.weight", "llama.blocks.2.attn_norm.weight"]
    assert sum("mlp_norm" in name for name in names("norms")) == 4
    assert sum("adapter" in name for name in names("adapters")) == 4 * 4
    assert set(names("artgpt4")) == set(names("norms")) | set(names("adapters"))


@torch.no_grad()
def test_an_untrained_artgpt4_is_minigpt4_to_the_bit(minigpt4, expected):
    without = ArtGPT4(replace(minigpt4.config, adapter_width=0), minigpt4.tokenizer).eval()
    without.load_state_dict(
        {n: t for n, t in minigpt4.state_dict().items() if ".adapter." not in n}
    )
    image_embeds = minigpt4.encode_image(expected["pixels"])
    context = minigpt4.embed_prompt(expected["chat_prompt"], image_embeds[:1])
    assert torch.equal(without.encode_image(expected["pixels"]), image_embeds)
    assert torch.equal(without.llama(context), minigpt4.llama(context))


# Answers


@torch.no_grad()
def test_a_cached_decode_equals_a_full_forward(model, chat):
    full, cache = model.llama(chat), KVCache()
    pieces = [model.llama(piece, cache) for piece in chat.split([100, 90, 1, 1, 1, 1], dim=1)]
    assert cache.length == chat.shape[1]
    assert close(torch.cat(pieces, dim=1), full, 1e-5)
    cache.length = 100                                        # what followed is forgotten
    assert close(model.llama(chat[:, 100:], cache), full[:, 100:], 1e-5)


def answer_in_pieces(model, monkeypatch, ids):
    """What generate yields when the language model answers `ids`."""
    def generate_ids(*_, **__):
        return (torch.tensor([token]) for token in ids)
    monkeypatch.setattr(model, "generate_ids", generate_ids)
    return list(model.generate(None, max_new_tokens=len(ids)))


@pytest.mark.parametrize(
    "text", ["a calm sea", "日本 à la carte, naïve — œuvre", "# one ## two", "🎨", "one ##"]
)
def test_generate_yields_whole_characters_that_join_to_the_answer(model, monkeypatch, text):
    pieces = answer_in_pieces(model, monkeypatch, model.tokenizer.encode(text))
    assert "".join(pieces) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_generate_ends_at_the_stop_mark_however_it_is_tokenised(model, monkeypatch):
    encode, hash_mark = model.tokenizer.encode, model.tokenizer.piece_to_id("#")
    for stop in (encode("###"), [hash_mark] * 3, encode("##") + [hash_mark]):
        pieces = answer_in_pieces(
            model, monkeypatch, encode("a boat") + stop + encode("Human: more")
        )
        assert "".join(pieces).strip() == "a boat"
    pieces = answer_in_pieces(
        model, monkeypatch, [*encode("a boat #"), model.tokenizer.eos_id(), *encode("more")]
    )
    assert "".join(pieces) == "a boat #"


def test_a_cache_that_lives_on_gives_the_logits_of_the_whole_prompt(model, expected):
    first = model.prompt_ids(chat_prompt([f"{IMAGE_SLOT} What is this?"]))
    longer = model.prompt_ids(
        chat_prompt([f"{IMAGE_SLOT} What is this?", "A boat.", "And the mood?"])
    )
    image, cache = expected["image_embeds"][:1], KVCache()
    with torch.inference_mode():
        model.llama(model.embed_ids(first, image), cache)
        list(
            model.generate_ids(
                model.embed_ids(longer[len(first) :], image), 3, temperature=0, cache=cache
            )
        )
        assert cache.length == len(longer) + 2
        cache.length = len(longer)
        once_more = model.llama(model.embed_ids([70, 71], image), cache)[:, -1]
        assert close(once_more, model.llama(model.embed_ids([*longer, 70, 71], image))[:, -1])
    assert longer[:len(first)] == first


def test_the_llama_2_chat_prompt_is_that_of_minigpt4(weights):
    model = ArtGPT4.from_pretrained(weights["artgpt4"])
    model.config.prompt = "llama2_chat"
    messages = [f"{IMAGE_SLOT} What is this?", "A boat.", "Where?"]
    prompt = chat_prompt(messages, "llama2_chat")
    assert prompt == (
        "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once "
        "I provide it to you. Please answer my questions.[INST] <Img><ImageHere></Img> What is "
        "this? [/INST] A boat.[INST] Where? [/INST] ")
    ids, bos = model.prompt_ids(prompt), model.tokenizer.bos_id()
    assert ids[0] == bos and ids.count(bos) == 3              # first, and before each [INST]
    assert ids.count(IMAGE_ID) == 6
    second = ids.index(bos, 1)
    assert ids[second + 1:ids.index(IMAGE_ID)] == model.tokenizer.encode("[INST] <Img>")
    third = ids.index(bos, second + 1)
    assert ids[third + 1:] == model.tokenizer.encode("[INST] Where? [/INST] ")


def test_sample_draws_from_the_nucleus_in_proportion():
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    generator = torch.Generator().manual_seed(0)

    def shares(temperature, top_p):
        ids = sample(logits.expand(20000, -1), temperature, top_p, generator)
        return (ids.bincount(minlength=4) / 20000).tolist()

    assert shares(1.0, 0.7) == pytest.approx(
        [0, 0.625, 0, 0.375], abs=0.02
    )  # 0.5 and 0.3 hold the first 0.7
    assert shares(1.0, 1.0) == pytest.approx([0.15, 0.5, 0.05, 0.3], abs=0.02)
    assert shares(0.5, 0.7) == pytest.approx([0, 0.25 / 0.34, 0, 0.09 / 0.34], abs=0.02)
    assert shares(1.0, 0.0) == [0, 1, 0, 0]
    assert shares(0, 1.0) == [0, 1, 0, 0]


def test_sampling_with_one_seed_is_repeatable(model, chat):
    def answer(seed):
        return "".join(model.generate(chat, 12, generator=torch.Generator().manual_seed(seed)))
    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_a_prompt_with_another_number_of_images_is_a_value_error(model, expected):
    for prompt in ("no image", f"{IMAGE_MARK} and {IMAGE_MARK}"):
        with pytest.raises(ValueError, match="but there are 1 images"):
            model.embed_prompt(prompt, expected["image_embeds"][:1])


@torch.no_grad()
def test_one_picture_without_a_batch_or_of_another_size_is_a_value_error(model):
    size, qformer = model.config.image_size, model.config.qformer
    batch = torch.zeros(2, 3, size, size)
    for wrong in (batch[0], batch[..., :-1], torch.zeros(2, 3, size + 1, size + 1), batch[0, 0]):
        with pytest.raises(ValueError, match=rf"expected \(B, 3, {size}, {size}\)"):
            model.encode_image(wrong)
    features = model.image_features(batch)
    assert features.shape == (2, qformer.queries, qformer.width)
    assert torch.equal(model.encode_image(features), model.encode_image(batch))


@torch.no_grad()
def test_special_tokens_typed_in_a_prompt_are_plain_text(model, expected):
    embeds = model.embed_prompt("<s> a </s> b", expected["image_embeds"][:0])[0]
    bos, eos = (
        model.llama.embed.weight[token]
        for token in (model.tokenizer.bos_id(), model.tokenizer.eos_id())
    )
    assert (embeds == bos).all(dim=1).tolist() == [True] + [False] * (len(embeds) - 1)
    assert not (embeds == eos).all(dim=1).any()


# Pixels


def rgb_of(image):
    """The colour of a one-coloured image after preprocessing, 0 to 255."""
    pixels = preprocess(image, 28)
    colour = (
        pixels * torch.tensor(PIXEL_STD)[:, None, None] + torch.tensor(PIXEL_MEAN)[:, None, None]
    ) * 255
    assert close(colour, colour[:, :1, :1].expand(-1, 28, 28), 1e-3)
    return [round(value) for value in colour[:, 0, 0].tolist()]


def test_any_mode_of_image_becomes_the_colours_one_sees():
    palette = Image.new("RGB", (9, 7), (10, 200, 30)).quantize(4)
    see_through = palette.copy()
    see_through.info["transparency"] = palette.getpixel((0, 0))
    assert rgb_of(Image.new("RGB", (9, 7), (10, 200, 30))) == [10, 200, 30]
    assert rgb_of(palette) == [10, 200, 30]
    assert rgb_of(see_through) == [255, 255, 255]
    assert rgb_of(Image.new("RGBA", (9, 7), (255, 0, 0, 0))) == [255, 255, 255]
    assert rgb_of(Image.new("RGBA", (9, 7), (255, 0, 0, 255))) == [255, 0, 0]
    assert rgb_of(Image.new("LA", (9, 7), (0, 0))) == [255, 255, 255]
    assert rgb_of(Image.new("I;16", (9, 7), 40000)) == [156, 156, 156]
    assert rgb_of(Image.new("CMYK", (9, 7), (0, 255, 255, 0))) == [255, 0, 0]
    assert rgb_of(Image.new("1", (9, 7), 1)) == [255, 255, 255]


def test_a_photo_is_turned_as_its_exif_says(tmp_path):
    image = Image.new("RGB", (40, 20), "white")
    image.paste("black", (0, 0, 20, 20))  # lies on its side: the black half belongs on top
    image.getexif()[0x0112] = 6
    image.save(tmp_path / "photo.png", exif=image.getexif())
    pixels = preprocess(open_image(tmp_path / "photo.png"), 28)
    assert pixels[:, :10].max() < 0 < pixels[:, -10:].min()


# Tokens


def test_a_token_that_is_no_piece_is_not_shown(model):
    hello = model.tokenizer.encode("a calm")
    assert model.tokenizer.get_piece_size() == 320
    assert model.decode([*hello, 320]) == "a calm" and not model.has_ended([*hello, 320])


@torch.no_grad()
@pytest.mark.parametrize("cached", [0, 5], ids=["a text", "a text after a cache"])
def test_hidden_from_a_token_on_are_those_of_all_tokens_and_leave_the_same_cache(model, cached):
    torch.manual_seed(0)
    embeds = torch.randn(2, cached + 9, model.config.llama.hidden_size)
    for first in (0, 4, 8, -1):
        caches = KVCache(), KVCache()
        for cache in caches:
            model.llama.hidden(embeds[:, :cached], cache)
        whole, part = (model.llama.hidden(embeds[:, cached:], cache, first=start)
                       for cache, start in zip(caches, (0, first), strict=True))
        torch.testing.assert_close(part, whole[:, first:], rtol=1e-4, atol=1e-4)
        assert part.shape == whole[:, first:].shape
        for layer, kept in caches[0].layers.items():
            torch.testing.assert_close(caches[1].layers[layer][:, :, :, :cached + 9],
                                       kept[:, :, :, :cached + 9])
