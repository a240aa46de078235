"""conversation/beams.py against the golden data, and what must hold of any beam search."""
import math

import pytest
import torch

from artgpt4 import IMAGE_SLOT, ArtGPT4, KVCache, chat_prompt
from common.answering import ending_ids
from conversation import beams
from conversation.beams import beam_search, reorder, select
from conversation.rounds import Conversation
from conversation.terminal import clean
from tests.conftest import say


@pytest.fixture(scope="module")
def chat(model, expected):
    """The golden chat prompt with the first photo in it, (1, 194, D)."""
    with torch.no_grad():
        return model.embed_prompt(expected["chat_prompt"], expected["image_embeds"][:1])


def test_the_golden_answer_is_found(model, chat, expected):
    answer = beam_search(model, chat, beams=3, max_new_tokens=16)
    assert answer == expected["beam3_ids"].tolist()


def test_the_golden_answer_of_minigpt4_is_found(weights, expected):
    minigpt4 = ArtGPT4.from_pretrained(weights["minigpt4"])
    image = expected["minigpt4_image_embeds"][:1]
    with torch.no_grad():
        embeds = minigpt4.embed_prompt(expected["chat_prompt"], image)
    answer = beam_search(minigpt4, embeds, beams=3, max_new_tokens=16)
    assert answer == expected["minigpt4_beam3_ids"].tolist()


def follow(model, monkeypatch, odds):
    """Let a model's next tokens depend on the answer so far. odds: {answer: {token: probability}}.

    Answers that are not in odds are unlikely to be continued at all.
    """
    def adjust(_, chosen):
        logits = torch.full((len(chosen), 321), -1e9)
        for row, ids in zip(logits, chosen.tolist(), strict=True):
            for token, probability in odds.get(tuple(ids), {7: 1e-9}).items():
                row[token] = math.log(probability)
        return logits
    monkeypatch.setattr(beams, "penalties", lambda *_: adjust)
    monkeypatch.setattr(beams, "next_logits", lambda *_: torch.zeros(1, 321))
    monkeypatch.setattr(beams, "select", lambda cache, rows: cache)


def test_the_answer_with_the_best_mean_log_probability_wins(model, monkeypatch):
    stop, go = model.tokenizer.eos_id(), 100
    follow(model, monkeypatch, {
        (): {go: 0.6, stop: 0.4},
        (go,): {go: 0.5, stop: 0.5},
        (go, go): {go: 0.9, stop: 0.1},
    })
    embeds = torch.zeros(1, 1, 96)
    # the means: 0.4; (0.6 0.5) ** 1/2 = 0.55; (0.6 0.5 0.9) ** 1/3 = 0.65
    assert beam_search(model, embeds, beams=2, max_new_tokens=3) == [go, go, go]
    shortest = beam_search(model, embeds, beams=2, max_new_tokens=3, length_penalty=0.0)
    assert shortest == [stop]


def test_the_search_ends_when_every_candidate_has_ended(model, monkeypatch):
    stop, mark = model.tokenizer.eos_id(), model.tokenizer.piece_to_id("#")
    byte = model.tokenizer.piece_to_id("<0x23>")              # the same character as a byte
    ends = {stop: 0.5, mark: 0.3, byte: 0.2}                  # after "##" all of them end an answer
    follow(model, monkeypatch, {
        (): {mark: 0.6, byte: 0.4},
        (mark,): {mark: 1.0},
        (byte,): {mark: 1.0},
        (mark, mark): ends,
        (byte, mark): ends,
    })
    answer = beam_search(model, torch.zeros(1, 1, 96), beams=2, max_new_tokens=9)
    assert answer == [mark, mark, stop]


def test_beams_are_penalised_as_single_answers_are(model, chat):
    once = {"repetition_penalty": 1e6, "min_new_tokens": 12}
    ids = beam_search(model, chat, beams=3, max_new_tokens=12, **once)
    assert len(set(ids)) == 12 and not set(ids) & set(ending_ids(model))


def test_a_conversation_with_beams_gives_their_answer_at_any_temperature(model, expected):
    settings = {"repetition_penalty": 1e6, "min_new_tokens": 12, "max_new_tokens": 12, "beams": 3}
    conversation = Conversation(model, temperature=0.7, **settings)
    conversation.image_embeds = expected["image_embeds"][:1]
    conversation.waiting = ["photo.png"]
    with torch.no_grad():
        prompt = chat_prompt([f"{IMAGE_SLOT} What is this?"])
        embeds = model.embed_prompt(prompt, conversation.image_embeds)
    ids = beam_search(model, embeds, **settings)
    text = model.decode(ids, whole=True)
    assert say(conversation, "What is this?") == clean(text).strip()


def test_a_cache_of_chosen_rows_is_the_cache_of_their_texts(model):
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10]])
    cache, expected = KVCache(), KVCache()
    rows, embed = [1, 1, 0], model.llama.embed
    with torch.no_grad():
        model.llama(embed(tokens), cache)
        model.llama(embed(tokens[rows]), expected)
        following = embed(torch.tensor([[11], [12], [13]]))
        chosen = select(cache, rows)
        assert chosen.length == 3
        found = model.llama(following, chosen)
        assert torch.allclose(found, model.llama(following, expected), atol=2e-5)
    assert cache.length == 3


def test_rows_that_begin_alike_are_reordered_from_there_on(model):
    tokens = torch.tensor([[5, 6, 7], [5, 9, 10], [5, 11, 12]])
    cache, expected = KVCache(), KVCache()
    rows, embed = [2, 0, 2], model.llama.embed
    with torch.no_grad():
        model.llama(embed(tokens), cache)
        model.llama(embed(tokens[rows]), expected)
        reorder(cache, rows, 1)
        following = embed(torch.tensor([[11], [12], [13]]))
        found = model.llama(following, cache)
        assert torch.allclose(found, model.llama(following, expected), atol=2e-5)
