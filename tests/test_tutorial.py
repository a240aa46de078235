"""ArtGPT-4 in a dozen facts, on the included model, `tiny`. Read these tests first."""
from pathlib import Path

import pytest
import torch
from PIL import Image

from artgpt4 import (
    IMAGE_ID, IMAGE_SLOT, Adapter, ArtGPT4, KVCache, chat_prompt, example, pad_examples, preprocess,
)

ROOT = Path(__file__).parent.parent
PROMPT = chat_prompt([f"{IMAGE_SLOT} What is this?"])


@pytest.fixture(scope="module")
def pixels(tiny):
    image = Image.open(sorted((ROOT / "samples").glob("*.png"))[0])
    return preprocess(image, tiny.config.image_size)[None]


@pytest.fixture(scope="module")
def embeds(tiny, pixels):
    """The prompt as LLaMA reads it, (1, T, D)."""
    with torch.no_grad():
        return tiny.embed_prompt(PROMPT, tiny.encode_image(pixels))


@torch.no_grad()
def test_a_picture_becomes_patches_then_queries_then_vectors_as_wide_as_words(tiny, pixels):
    config = tiny.config
    patches = tiny.ln_vision(tiny.vit(pixels))
    queries = tiny.qformer(patches)
    image_embeds = tiny.proj(queries)
    grid = config.image_size // config.patch_size
    assert pixels.shape == (1, 3, config.image_size, config.image_size)
    assert patches.shape == (1, grid * grid + 1, config.vit_width)      # and the class token
    assert queries.shape == (1, config.queries, config.qformer_width)
    assert image_embeds.shape == (1, config.queries, config.llama_width)


def test_a_prompt_has_a_place_for_every_image_vector(tiny):
    ids = tiny.prompt_ids(PROMPT)
    assert ids.count(IMAGE_ID) == tiny.config.queries
    assert ids[0] == tiny.tokenizer.bos_id()


@torch.no_grad()
def test_the_image_vectors_stand_among_the_words(tiny, pixels, embeds):
    ids = torch.tensor(tiny.prompt_ids(PROMPT))
    words = tiny.llama.embed(ids[ids != IMAGE_ID])
    assert torch.equal(embeds[0, ids == IMAGE_ID], tiny.encode_image(pixels)[0])
    assert torch.equal(embeds[0, ids != IMAGE_ID], words)


@torch.no_grad()
def test_a_token_sees_only_those_before_it(tiny, embeds):
    changed = embeds.clone()
    changed[:, 10] += 1
    before, after = tiny.llama(embeds), tiny.llama(changed)
    assert torch.allclose(before[:, :10], after[:, :10], atol=1e-5)
    assert not torch.allclose(before[:, 10:], after[:, 10:], atol=1e-2)


@torch.no_grad()
def test_a_cached_decode_gives_the_logits_of_a_full_pass(tiny, embeds):
    cache, full = KVCache(tiny.llama), tiny.llama(embeds)
    tiny.llama(embeds[:, :-9], cache)                         # prefill
    tiny.llama(embeds[:, -9:-1], cache)                       # what a next question adds
    last = tiny.llama(embeds[:, -1:], cache)                  # decode
    assert torch.allclose(last, full[:, -1:], atol=1e-4)
    assert cache.length == embeds.shape[1]
    cache.length -= 9                                         # what followed is forgotten
    assert torch.allclose(tiny.llama(embeds[:, -9:], cache), full[:, -9:], atol=1e-4)


def test_an_untrained_adapter_is_the_identity():
    x = torch.randn(2, 5, 64)
    assert torch.equal(Adapter(64, 16)(x), x)


@torch.no_grad()
def test_an_untrained_artgpt4_is_minigpt4(tiny, embeds):
    untrained = ArtGPT4.from_pretrained(ROOT / "weights" / "tiny", torch.device("cpu"),
                                        torch.float32, adapter=False)
    with_adapters = untrained.llama(embeds)
    for block in untrained.llama.blocks:
        block.adapter = torch.nn.Identity()
    assert torch.equal(untrained.llama(embeds), with_adapters)


def test_training_changes_the_projection_the_adapters_and_some_norms():
    model = ArtGPT4.from_pretrained(ROOT / "weights" / "tiny")
    model.freeze()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    in_a_block = {name.removeprefix("llama.blocks.0.") for name in trained if ".blocks.0." in name}
    assert {"proj.weight", "proj.bias"} < trained
    assert in_a_block == {"attn_norm.weight", "mlp_norm.weight", "adapter.down.weight",
                          "adapter.down.bias", "adapter.up.weight", "adapter.up.bias"}
    assert "llama.blocks.1.attn_norm.weight" not in trained  # only that of every other block
    assert not any(name.startswith(("vit.", "qformer.", "ln_vision.")) for name in trained)


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_the_caption_alone(tiny, pixels):
    caption = "a calm sea"
    text = tiny.tokenizer.encode(caption + "\n")
    image_embeds = tiny.encode_image(pixels)
    embeds = tiny.embed_ids([*tiny.prompt_ids("<ImageHere>"), *text], image_embeds)
    logits = tiny.llama(embeds)[0, -len(text) - 1:-1]         # each predicts the token after it
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(text))
    assert torch.allclose(tiny.loss(pixels, [caption]), expected, atol=1e-5)


@torch.no_grad()
def test_padding_does_not_change_the_loss(tiny, pixels):
    long = "a calm sea with a boat and a lighthouse in the evening light"
    examples = [example(tiny.tokenizer, tiny.config.queries, "<ImageHere>", text, 32)
                for text in ("a calm sea", long)]
    both = tiny(pixels.expand(2, -1, -1, -1), *pad_examples(examples))
    each = [tiny(pixels, *pad_examples([row])) for row in examples]
    assert torch.allclose(both, sum(each), rtol=1e-4)


def test_an_answer_comes_token_by_token_and_ends_at_the_stop_mark(tiny, embeds):
    ids, ended = [], False
    for token in tiny.generate(embeds, max_new_tokens=80, temperature=0):
        ids.append(token.item())
        text, ended = tiny.decode(ids)
        if ended:
            break
    assert ended and len(ids) > 5
    assert "###" not in text and "###" in tiny.tokenizer.decode(ids)


def test_what_a_user_types_never_becomes_a_special_token(tiny):
    ids = tiny.prompt_ids("<s> hello </s>")
    assert ids.count(tiny.tokenizer.bos_id()) == 1            # the first, of the prompt itself
    assert tiny.tokenizer.eos_id() not in ids
