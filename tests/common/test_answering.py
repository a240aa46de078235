"""common/answering.py: penalties, and several answers at once."""
import pytest
import torch

from artgpt4 import KVCache
from common.answering import answers, ending_ids, penalties


@pytest.fixture(scope="module")
def logits(model, expected):
    """The logits (1, V) of the first token of an answer to the golden chat prompt."""
    with torch.inference_mode():
        chat = model.embed_prompt(expected["chat_prompt"], expected["image_embeds"][:1])
        return model.llama(chat, KVCache())[:, -1]


def test_a_repetition_penalty_and_a_minimum_length_change_the_logits_as_they_say(model, logits):
    chosen = torch.tensor([[5, 300, 5]])
    penalised = penalties(model, repetition_penalty=2)(logits.clone(), chosen)
    for token in range(321):
        before, after = logits[0, token].item(), penalised[0, token].item()
        if token in (5, 300):
            assert after == pytest.approx(before / 2 if before > 0 else before * 2)
        else:
            assert after == before
    unending = penalties(model, min_new_tokens=4)(logits.clone(), chosen)
    ends = {i for i in range(320) if "#" in model.tokenizer.id_to_piece(i)}
    ends |= {model.tokenizer.eos_id(), model.tokenizer.piece_to_id("<0x23>")}
    assert set((unending == -torch.inf).nonzero()[:, 1].tolist()) == ends == set(ending_ids(model))
    assert torch.equal(penalties(model, min_new_tokens=3)(logits.clone(), chosen), logits)
    assert penalties(model) is None


def test_greedy_answers_obey_the_penalties(model, expected):
    chat = model.embed_prompt(expected["chat_prompt"], expected["image_embeds"][:1])
    adjust = penalties(model, repetition_penalty=1e6, min_new_tokens=12)
    ids = [token.item() for token in model.generate_ids(chat, 12, temperature=0, adjust=adjust)]
    assert len(set(ids)) == 12 and not set(ids) & set(ending_ids(model))


def test_answers_of_a_batch_are_those_of_one_at_a_time(model, expected):
    rows = []
    with torch.no_grad():
        for image in expected["image_embeds"]:
            rows.append(model.embed_prompt(expected["chat_prompt"], image[None]))
    single = []
    for row in rows:
        single += answers(model, row, max_new_tokens=16, temperature=0)
    assert single[0] != single[1]
    assert answers(model, torch.cat(rows), max_new_tokens=16, temperature=0) == single
    streamed = ["".join(model.generate(row, 16, temperature=0)).strip() for row in rows]
    assert streamed == single
