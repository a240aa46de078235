"""What is recorded of a run equals what is computed without any hook."""
from pathlib import Path

import pytest
import torch

from artgpt4 import IMAGE_SLOT, ArtGPT4, chat_prompt, preprocess
from common.files import open_image
from explanation import recording

ROOT = Path(__file__).parent.parent.parent
PROMPT = chat_prompt([f"{IMAGE_SLOT} What is this?"])
NEW = 12


@pytest.fixture(scope="module")
def tiny():
    return ArtGPT4.from_pretrained(ROOT / "weights" / "tiny", dtype=torch.float32)


@pytest.fixture(scope="module")
def image():
    return open_image(ROOT / "samples" / "couple.png")


@pytest.fixture(scope="module")
def seen(tiny, image):
    return recording.see(tiny, image)


@pytest.fixture(scope="module")
def answer(tiny, seen):
    return recording.answer(tiny, PROMPT, seen.image_embeds, NEW)


@pytest.fixture(scope="module")
@torch.no_grad()
def embeds(tiny, seen, answer):
    """The prompt and the answer but its last token, as one text: (1, T + N - 1, D)."""
    return tiny.embed_ids([*answer.prompt_ids, *answer.ids[:-1]], seen.image_embeds)


@torch.no_grad()
def test_the_picture_is_seen_as_the_model_sees_it(tiny, image, seen):
    pixels = preprocess(image, tiny.config.image_size)[None]
    assert torch.equal(seen.pixels, pixels)
    assert torch.allclose(seen.image_embeds, tiny.encode_image(pixels), atol=1e-5)
    patches = tiny.vit(pixels)
    assert list(seen.patches) == [1, 3, 6]
    assert torch.allclose(seen.patches[6], patches[0], atol=1e-4)
    queries = tiny.qformer(tiny.ln_vision(patches))[0]
    assert torch.allclose(seen.queries, queries, atol=1e-4)
    assert seen.looked_at.shape == (2, 16, 65)
    assert torch.allclose(seen.looked_at.sum(dim=-1), torch.ones(()), atol=1e-5)


@torch.no_grad()
def test_the_ten_likeliest_are_those_of_one_pass_over_the_whole_text(tiny, answer, embeds):
    logits = tiny.llama(embeds)[0, len(answer.prompt_ids) - 1:]
    probabilities = logits.softmax(dim=-1)
    for row, top, token in zip(probabilities, answer.top, answer.ids, strict=True):
        expected = row.sort(descending=True)
        assert [i for i, _ in top][:3] == expected.indices[:3].tolist()
        found = torch.tensor([p for _, p in top])
        assert torch.allclose(found, expected.values[:10], atol=1e-4)
        assert top[0][0] == token


@torch.no_grad()
def test_the_adapter_share_is_the_length_added_by_the_length_given(tiny, answer, embeds):
    before = []
    hooks = [(block.adapter, lambda module, inputs, output: before.append(inputs[0][0]))
             for block in tiny.llama.blocks]
    with recording.hooked(*hooks):
        tiny.llama.hidden(embeds)
    for block, x, found in zip(tiny.llama.blocks, before, answer.adapter, strict=True):
        added = block.adapter.up(torch.nn.functional.gelu(block.adapter.down(x)))
        assert torch.allclose(found, added.norm(dim=-1) / x.norm(dim=-1), atol=1e-3)


def test_the_last_block_says_what_the_model_says(tiny, answer):
    for hidden, top in zip(answer.hidden, answer.top, strict=True):
        ids, probabilities = recording.logit_lens(tiny, hidden)
        assert len(ids) == 4
        assert ids[-1] == top[0][0]
        assert probabilities[-1] == pytest.approx(top[0][1], abs=1e-4)


def test_attention_is_kept_for_the_image_vectors_and_adds_up(tiny, answer):
    assert answer.attention.shape == (len(answer.ids), 4, 16)
    whole = answer.attention.sum(dim=-1) + answer.others.sum(dim=-1)
    assert torch.allclose(whole, torch.ones(()), atol=1e-5)
    assert answer.others[0, :, 2].max() == 0                  # no answer yet


def test_the_answer_without_adapters_is_that_of_a_model_that_has_none(tiny, seen, answer):
    assert recording.plain_answer(tiny, PROMPT, seen.image_embeds, NEW) == answer.text
    found = recording.plain_answer(tiny, PROMPT, seen.image_embeds, NEW, adapters=False)
    bare = ArtGPT4.from_pretrained(ROOT / "weights" / "tiny", dtype=torch.float32)
    for block in bare.llama.blocks:
        block.adapter = torch.nn.Identity()
    assert found == recording.plain_answer(bare, PROMPT, seen.image_embeds, NEW)


def test_a_prompt_without_room_for_the_answer_is_refused(tiny, seen):
    with pytest.raises(ValueError, match="more than the model's 1024; give a shorter --prompt"):
        recording.answer(tiny, PROMPT, seen.image_embeds, 1000)


def test_the_lesson_is_the_loss_of_stage_1_and_its_gradient(seen):
    model = ArtGPT4.from_pretrained(ROOT / "weights" / "tiny", dtype=torch.float32)
    lesson = recording.teach(model, seen.pixels, "a calm sea")
    trained = model.freeze()
    loss = model.loss(seen.pixels, ["a calm sea"])
    loss.backward()
    assert sum(lesson.losses) / len(lesson.losses) == pytest.approx(loss.item(), abs=1e-5)
    assert len(lesson.losses) == len(lesson.ids)
    expected = {name: p.grad.norm().item() for name, p in model.named_parameters()
                if p.requires_grad}
    assert len(expected) == len(trained)
    assert lesson.gradients == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_a_lesson_leaves_no_gradient_and_no_hook(tiny, seen):
    recording.teach(tiny, seen.pixels, "a calm sea")
    assert all(p.grad is None and not p.requires_grad for p in tiny.parameters())
    assert not any(module._forward_hooks for module in tiny.modules())
