"""conversation/rounds.py: prompts, the cache, settings, the context, beams, files."""
import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

import artgpt4
from artgpt4 import IMAGE_ID, IMAGE_SLOT, ArtGPT4, KVCache, Llama, chat_prompt
from conversation.rounds import Conversation, Round, beam_search, plain, read_about, read_talk


def say(conversation, question=None):
    """The whole answer to a question, or another one to the last question."""
    return "".join(conversation.answer(question))


def test_the_prompt_of_a_dialogue_is_the_golden_one(model, expected):
    ids = Conversation(model).prompt_ids([Round(["picture.png"], "What is this?", "A painting."),
                                          Round([], "Who painted it?  I like it.")])
    golden = [i for segment in expected["dialogue_segments_ids"] for i in segment]
    assert [i for i in ids if i >= 0] == golden
    assert [i for i in ids if i < 0] == [IMAGE_ID] * model.config.queries


def test_a_dialogue_with_vicuna_v1_has_eos_after_each_answer_and_nowhere_else(model, monkeypatch):
    monkeypatch.setattr(model, "config", replace(model.config, prompt="vicuna_v1"))
    talk, encode, eos = Conversation(model, temperature=0), model.tokenizer.encode, 2
    rounds = [Round(["a.png"], "What is </s> this?", "A boat.\x03</s>"), Round([], "Why?\x03")]
    assert talk.prompt_ids(rounds) == [
        1, *encode("A chat between a curious user and an artificial intelligence assistant. The "
                   "assistant gives helpful, detailed, and polite answers to the user's questions. "
                   "USER: <Img>"), *[IMAGE_ID] * model.config.queries,
        *encode("</Img> What is </s> this? ASSISTANT: A boat.</s>"), eos,
        272, 88, 86, 72, 85, 303, 272, 309, 292, 291, 308,    # USER: Why?, where U S E R are bytes
        272, 310, 86, 86, 301, 86, 304, 310, 81, 304, 303]    # ASSISTANT:
    words = iter([*encode("A boat."), eos, 300])
    monkeypatch.setattr(artgpt4, "sample", lambda logits, **_: torch.tensor([next(words)]))
    assert say(talk, "What?") == "A boat." and next(words) == 300


def test_typed_marks_are_plain_text():
    assert plain(" a###Human: b ") == "a# ##Human: b"
    assert plain("#\0##") == "# ##" and plain("## Title #1") == "## Title #1"
    assert "<ImageHere>" not in plain("<ImageHere><Image\x1bHere>")
    assert plain("\udce9\x03") == "?"


def test_a_question_costs_its_own_tokens_and_is_answered_as_without_a_cache(talk, monkeypatch):
    conversation, prefills, hidden = talk(max_new_tokens=8), [], Llama.hidden
    monkeypatch.setattr(Llama, "hidden", lambda self, embeds, cache=None: (
        prefills.append(embeds.shape[1]) or hidden(self, embeds, cache)))

    def check(question=None, stop=False, most=33):
        """Answer, or stop after two pieces, and compare with the conversation without a cache.
        most: so many tokens of the prompt may be computed."""
        fresh = talk(**conversation.settings)
        for name in ("image_embeds", "context", "rounds", "waiting", "forgotten"):
            setattr(fresh, name, getattr(conversation, name))
        prefills.clear()
        pieces = conversation.answer(question)
        said = next(pieces) + next(pieces) if stop else "".join(pieces)
        pieces.close()
        assert prefills[0] <= most and prefills[1:] == [1] * (len(prefills) - 1)
        whole = say(fresh, question)
        assert whole.startswith(said) if stop else whole == said
        assert conversation.rounds[-1].answer == said
        assert len(conversation.cached) == conversation.cache.length

    check("What is this?", most=200)
    check("Which colours?")
    check("Are you sure?", stop=True)                         # Ctrl-C
    check("Why?")
    check(most=1)                                             # /again
    conversation.set("repetition_penalty", 1.5)
    conversation.add_image(Image.new("RGB", (40, 30), "white"), "white.png")
    check("And this?")
    conversation.set("beams", 2)
    check("Which one is better?")
    check("Why is it better?")
    conversation.set("beams", 1)
    asked = [*conversation.rounds, Round([], "Long?")]
    conversation.context = len(conversation.prompt_ids(asked)) + 7
    check("Long?", most=200)
    assert conversation.forgotten == 1 and conversation.rounds[:-1] == asked[:-1]
    conversation.reset()
    assert conversation.waiting == ["white.png"] and len(conversation.image_embeds) == 1
    check("What is this?", most=200)


def test_the_settings_reach_the_model(tiny, talk):
    question = "Describe this image in detail."
    for settings in ({"temperature": 2.0, "top_p": 0.7, "seed": 5}, {"repetition_penalty": 3.0}):
        conversation = talk(**settings)
        flags = conversation.sampling() | {"generator": torch.Generator().manual_seed(5)}
        with torch.inference_mode():
            prompt = chat_prompt([f"{IMAGE_SLOT} {question}"])
            embeds = tiny.embed_prompt(prompt, conversation.image_embeds)
            ids = [int(token) for token in tiny.generate(embeds, 20, **flags)]
        assert say(conversation, question) == tiny.decode(ids)[0].strip()
    assert len(ids) == 20


def test_rounds_that_the_context_forgets_stay_in_the_transcript(talk):
    conversation = talk()
    say(conversation, "One?")
    say(conversation, "Two?")
    _, second = conversation.rounds
    kept = [second._replace(images=["picture.png"]), Round([], "Three?")]
    conversation.context = len(conversation.prompt_ids(kept)) + 20
    say(conversation, "Three?")
    assert conversation.forgotten == 1
    assert [(r.question, r.images) for r in conversation.rounds] == [
        ("One?", ["picture.png"]), ("Two?", []), ("Three?", [])]
    ids = conversation.prompt_ids(conversation.rounds)
    assert ids == talk().prompt_ids([kept[0], Round([], "Three?")])
    conversation.set("max_new_tokens", 2000)                  # reserves half of the context
    conversation.context = 2 * (len(ids) + 30)
    next(conversation.answer("Four?"))
    with pytest.raises(ValueError, match="tokens"):           # refused: nothing is forgotten
        next(conversation.answer("word " * 2000))
    assert conversation.forgotten == 1


def test_an_answer_never_passes_the_end_of_the_context(talk):
    prompt = len(talk().prompt_ids([Round(["picture.png"], "Describe it.")]))
    for context, room in ((prompt + 21, 20), (prompt + 20, 20), (prompt + 3, 3)):
        conversation = talk()
        conversation.context = context
        assert len(list(conversation.answer("Describe it."))) == room
    conversation.context, before = prompt, conversation.rounds
    with pytest.raises(ValueError, match=f"{prompt} tokens.*--each"):
        say(conversation, "Describe it.")
    assert conversation.rounds == before != []


@pytest.mark.parametrize("name, prefix", [("artgpt4", ""), ("minigpt4", "minigpt4_")])
def test_beams_find_the_golden_answer_after_a_cached_prompt(weights, expected, name, prefix):
    model = ArtGPT4.from_pretrained(weights[name])
    with torch.inference_mode():
        embeds = model.embed_prompt(expected["chat_prompt"], expected[f"{prefix}image_embeds"][:1])
        for known in (0, 100):
            cache = KVCache(model.llama, 200)
            model.llama(embeds[:, :known], cache)
            found = beam_search(model, embeds[:, known:], 3, 16, cache)
            assert found == expected[f"{prefix}beam3_ids"].tolist()
            assert cache.length == embeds.shape[1]


def search(model, odds, beams, length):
    """The answer of beams of a model whose next token depends on the answer so far. odds: {answer:
    {token: probability}}; what is not there is unlikely."""
    def adjust(logits, chosen):
        logits = torch.full_like(logits, -1e9)
        for row, ids in zip(logits, chosen.tolist(), strict=True):
            for token, probability in odds.get(tuple(ids), {7: 1e-9}).items():
                row[token] = math.log(probability)
        return logits
    embeds = torch.zeros(1, 1, model.config.llama_width)
    return beam_search(model, embeds, beams, length, KVCache(model.llama, 9), adjust)


def test_the_answer_with_the_best_mean_log_probability_wins(tiny, monkeypatch):
    monkeypatch.setattr(ArtGPT4, "decode", lambda self, ids: ("", bool({0, 1, 2} & {*ids})))
    odds = {(): {5: 0.6, 0: 0.4}, (5,): {5: 0.5, 0: 0.5}, (5, 5): {5: 0.9, 0: 0.1}}
    assert search(tiny, odds, 2, 3) == [5, 5, 5]   # 0.4; (0.6 0.5) ** 1/2; (0.6 0.5 0.9) ** 1/3
    ends = {0: 0.5, 1: 0.3, 2: 0.2}                           # all candidates end at once
    assert search(tiny, {(): {5: 0.6, 6: 0.4}, (5,): ends, (6,): ends}, 2, 9) == [5, 0]
    odds = {(): {5: 0.6, 0: 0.2, 1: 0.1, 2: 0.1}, (5,): {6: 1.0}, (5, 6): {0: 1.0}}
    assert search(tiny, odds, 2, 9) == [5, 6, 0]              # one beam goes on alone


def test_wrong_json_is_refused_by_the_name_of_its_file(tmp_path):
    about, saved = tmp_path / "about.json", tmp_path / "talk.json"
    settings = [{"settings": value} for value in ({"beams": True}, {"warmth": 1}, [1], None)]
    for value in [{"knows": 1}, {"pictures": "two"}, {"examples": "a"}, [], *settings]:
        about.write_text(json.dumps(value))
        with pytest.raises(ValueError, match="about.json"):
            read_about(tmp_path)
    good, said = {"model": "", "settings": {}, "images": [], "rounds": []}, {"question": "a"}
    wrong = [good | change for change in [
        {"images": [1]}, {"images": "a"}, {"model": 1}, {"rounds": [1]}, {"rounds": [said]},
        {"rounds": [said | {"images": [], "answer": 1}]}, *settings]]
    for text in ["", "{", "{}", "[]", "[" * 100_000, *map(json.dumps, wrong)]:
        saved.write_text(text)
        with pytest.raises(ValueError, match="talk.json"):
            read_talk(saved)
