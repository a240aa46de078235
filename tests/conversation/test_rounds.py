"""conversation/rounds.py: prompts, the cache, settings, the context, beams, files."""
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import artgpt4
from artgpt4 import IMAGE_ID, IMAGE_SLOT, ArtGPT4, KVCache, Llama, chat_prompt
from conversation.rounds import (
    Conversation, Round, beam_search, find_html, plain, read_about, read_talk, to_json)
from tests.conversation.conftest import say


@pytest.fixture
def prefills(monkeypatch):
    """The number of tokens that Llama was given at once, call by call."""
    counts, hidden = [], Llama.hidden

    def counted(self, embeds, cache=None):
        counts.append(embeds.shape[1])
        return hidden(self, embeds, cache)
    monkeypatch.setattr(Llama, "hidden", counted)
    return counts


def answer_of(talker, talk, max_new_tokens=20, question="What?", **sampling):
    """The answer to the first question as ArtGPT4.generate gives it, without a conversation."""
    with torch.inference_mode():
        embeds = talker.embed_prompt(chat_prompt([f"{IMAGE_SLOT} {question}"]), talk.image_embeds)
        ids = [int(token) for token in talker.generate(embeds, max_new_tokens, **sampling)]
    return talker.decode(ids)[0].strip()


# The prompt

def test_the_prompt_of_a_dialogue_is_the_golden_one(talker, talk, expected):
    rounds = [Round(["picture.png"], "What is this?", "A painting."),
              Round([], "Who painted it?  I like it.")]
    ids = talk().prompt_ids(rounds)
    golden = [i for segment in expected["dialogue_segments_ids"] for i in segment]
    assert [i for i in ids if i >= 0] == golden
    assert [i for i in ids if i < 0] == [IMAGE_ID] * talker.config.queries


def test_a_dialogue_with_vicuna_v1_has_eos_after_each_answer_and_nowhere_else(
        talker, talk, monkeypatch):
    monkeypatch.setattr(talker, "config", replace(talker.config, prompt="vicuna_v1"))
    rounds = [Round(["a.png"], "What is </s> this?", "A boat.\x03</s>"), Round([], "Why?\x03")]
    encode, eos = talker.tokenizer.encode, 2
    assert talk().prompt_ids(rounds) == [
        1, *encode("A chat between a curious user and an artificial intelligence assistant. The "
                   "assistant gives helpful, detailed, and polite answers to the user's questions. "
                   "USER: <Img>"), *[IMAGE_ID] * 6,
        *encode("</Img> What is </s> this? ASSISTANT: A boat.</s>"), eos,
        *encode("USER: Why? ASSISTANT:")]
    assert encode("USER: Why? ASSISTANT:") == [               # capitals but A, I, T, W are bytes
        272, 88, 86, 72, 85, 303, 272, 309, 292, 291, 308,                      # USER: Why?
        272, 310, 86, 86, 301, 86, 304, 310, 81, 304, 303]                      # ASSISTANT:
    words = iter([*encode("A boat."), eos, 300])
    monkeypatch.setattr(artgpt4, "sample", lambda logits, **_: torch.tensor([next(words)]))
    conversation = talk()
    assert say(conversation, "What?") == "A boat." and next(words) == 300
    assert conversation.cached[-1] != eos                     # an answer's end is not in the cache


def test_typed_marks_are_plain_text():
    assert plain(" a###Human: b ") == "a# ##Human: b"
    assert plain("#\0##") == "# ##" and plain("## Title #1") == "## Title #1"
    assert "<ImageHere>" not in plain("<ImageHere><Image\x1bHere>")
    assert plain("\udce9\x03") == "?"


# The cache

def test_a_later_question_costs_its_own_tokens(talker, talk, prefills, monkeypatch):
    words, encode, conversation = [], talker.tokenizer.encode, talk()
    monkeypatch.setattr(artgpt4, "sample", lambda logits, **_: torch.tensor([words.pop(0)]))
    for turn in range(10):
        words[:] = encode("A boat.###")
        prefills.clear()
        assert say(conversation, "What is this?") == "A boat."
        if turn:
            assert prefills[0] <= len(encode("###Human: What is this?###Assistant:"))
        assert prefills[1:] == [1] * (len(prefills) - 1)
    words[:] = encode("No.###")
    prefills.clear()
    assert say(conversation) == "No."
    assert prefills[0] == 1 and len(conversation.rounds) == 10


def test_answers_with_the_cache_are_those_of_a_conversation_without_it(talk, prefills):
    conversation = talk()

    def check(question=None, stop=False):
        """Answer, or stop after two pieces, and compare with the conversation without a cache."""
        fresh = talk(**conversation.settings)
        for name in ("image_embeds", "context", "rounds", "waiting", "forgotten"):
            setattr(fresh, name, getattr(conversation, name))
        pieces = conversation.answer(question)
        said = next(pieces) + next(pieces) if stop else "".join(pieces)
        pieces.close()
        cost = sum(prefills)
        whole = say(fresh, question)
        assert whole.startswith(said) if stop else whole == said
        assert cost < sum(prefills) - cost or len(conversation.rounds) == 1
        assert conversation.rounds[-1].answer == said
        assert len(conversation.cached) == conversation.cache.length
        prefills.clear()

    check("What is this?")
    check("Which colours?")
    check("Are you sure?", stop=True)                         # Ctrl-C
    check("Why?")
    check()                                                   # /again
    conversation.set("repetition_penalty", 1.5)
    conversation.add_image(Image.new("RGB", (40, 30), "white"), "white.png")
    check("And this?")
    conversation.set("beams", 2)
    check("Which one is better?")
    check("Why is it better?")
    conversation.set("beams", 1)
    asked = [*conversation.rounds, Round([], "Long?")]
    conversation.context = len(conversation.prompt_ids(asked)) + 19
    check("Long?")
    assert conversation.forgotten == 1 and conversation.rounds[:-1] == asked[:-1]
    conversation.reset()
    assert conversation.waiting == ["white.png"] and len(conversation.image_embeds) == 1
    check("What is this?")


# Settings

def test_the_settings_reach_the_model(talker, talk):
    assert say(talk(repetition_penalty=3.0), "What?") == answer_of(
        talker, talk(), temperature=0, adjust=talk(repetition_penalty=3.0).adjust)
    generator = torch.Generator().manual_seed(5)
    conversation = talk(temperature=2.0, top_p=0.7, seed=5)
    assert say(conversation, "What?") == answer_of(
        talker, talk(), temperature=2.0, top_p=0.7, generator=generator)


def test_the_same_seed_gives_the_same_answers(talk):
    def two_answers(seed):
        conversation = talk(seed=seed, temperature=1.0)
        return [say(conversation, "What?"), say(conversation)]
    first, second = two_answers(7)
    assert first != second
    assert two_answers(7) == [first, second] != two_answers(8)


def test_an_answer_is_as_long_as_min_new_tokens_says(talker, talk, monkeypatch):
    end, letter = talker.tokenizer.eos_id(), talker.tokenizer.encode("a")[-1]
    monkeypatch.setattr(artgpt4, "sample", lambda logits, **_: torch.tensor(
        [end if logits[0, end] > -torch.inf else letter]))
    assert say(talk(), "What?") == ""
    assert say(talk(min_new_tokens=7), "What?") == " ".join("a" * 7)


# The context

def test_rounds_that_the_context_forgets_stay_in_the_transcript(talk):
    conversation = talk()
    say(conversation, "One?")
    say(conversation, "Two?")
    _, second = conversation.rounds
    kept = [replace(second, images=["picture.png"]), Round([], "Three?")]
    conversation.context = len(conversation.prompt_ids(kept)) + 20
    say(conversation, "Three?")
    assert conversation.forgotten == 1
    assert [(r.question, r.images) for r in conversation.rounds] == [
        ("One?", ["picture.png"]), ("Two?", []), ("Three?", [])]
    assert conversation.prompt_ids(conversation.rounds) == conversation.prompt_ids(
        [Round([], "x"), kept[0], Round([], "Three?")])


def test_the_longest_answer_reserves_at_most_half_of_the_context(talk):
    conversation = talk()
    for question in ("One?", "Two?"):
        say(conversation, question)
    conversation.set("max_new_tokens", 2000)
    conversation.context = 2 * len(conversation.prompt_ids([*conversation.rounds,
                                                            Round([], "Three?")]))
    next(conversation.answer("Three?"))
    assert conversation.forgotten == 0


def test_an_answer_never_passes_the_end_of_the_context(talk):
    prompt = len(talk().prompt_ids([Round(["picture.png"], "One?")]))
    for context, room in ((prompt + 21, 20), (prompt + 20, 20), (prompt + 3, 3)):
        conversation = talk()
        conversation.context = context
        say(conversation, "One?")
        assert conversation.new_tokens == room
    conversation.context, before = prompt, conversation.rounds
    with pytest.raises(ValueError, match=f"{prompt} tokens.*--each"):
        say(conversation, "One?")
    assert conversation.rounds == before != []


def test_the_context_is_2000_tokens_or_what_the_model_has(talker, monkeypatch):
    assert Conversation(talker).context == 2000
    monkeypatch.setattr(talker, "config", replace(talker.config, context=256))
    assert Conversation(talker).context == 256


# Beams

@pytest.mark.parametrize("name, prefix", [("artgpt4", ""), ("minigpt4", "minigpt4_")])
def test_beams_find_the_golden_answer_with_part_of_the_prompt_in_the_cache(
        weights, expected, name, prefix):
    model = ArtGPT4.from_pretrained(weights[name])
    with torch.inference_mode():
        embeds = model.embed_prompt(expected["chat_prompt"], expected[f"{prefix}image_embeds"][:1])
        for known in (0, 100):
            cache = KVCache(model.llama, 200)
            model.llama(embeds[:, :known], cache)
            found = beam_search(model, embeds[:, known:], 3, 16, cache)
            assert found == expected[f"{prefix}beam3_ids"].tolist()
            assert cache.length == embeds.shape[1]


def test_a_conversation_with_beams_gives_their_answer_at_any_temperature(talker, talk):
    settings = {"repetition_penalty": 1e6, "min_new_tokens": 12, "max_new_tokens": 12}
    conversation = talk(beams=3, temperature=0.7, **settings)
    with torch.inference_mode():
        prompt = chat_prompt([f"{IMAGE_SLOT} What is this?"])
        embeds = talker.embed_prompt(prompt, conversation.image_embeds)
        cache = KVCache(talker.llama, 300)
        ids = beam_search(talker, embeds, 3, 12, cache, talk(**settings).adjust)
    assert len(set(ids)) == 12
    assert say(conversation, "What is this?") == talker.decode(ids)[0].strip()


def search(odds, beams, length):
    """The answer of beams of a model whose next token depends on the answer so far. odds: {answer:
    {token: probability}}; what is not there is unlikely. Token 0 ends an answer."""
    def adjust(_, chosen):
        logits = torch.full((len(chosen), 10), -1e9)
        for row, ids in zip(logits, chosen.tolist(), strict=True):
            for token, probability in odds.get(tuple(ids), {7: 1e-9}).items():
                row[token] = math.log(probability)
        return logits

    def llama(embeds, cache):
        cache.length += embeds.shape[1]
        return torch.zeros(*embeds.shape[:2], 10)
    llama.embed = lambda ids: torch.zeros(*ids.shape, 4)
    llama.embed.weight = torch.zeros(10, 4)
    llama.config = SimpleNamespace(llama_layers=1, llama_kv_heads=1, llama_width=4, llama_heads=1)
    model = SimpleNamespace(llama=llama, decode=lambda ids: ("", bool({0, 1, 2} & {*ids})))
    return beam_search(model, torch.zeros(1, 1, 4), beams, length, KVCache(llama, 9), adjust)


def test_the_answer_with_the_best_mean_log_probability_wins():
    odds = {(): {5: 0.6, 0: 0.4}, (5,): {5: 0.5, 0: 0.5}, (5, 5): {5: 0.9, 0: 0.1}}
    assert search(odds, 2, 3) == [5, 5, 5]     # 0.4; (0.6 0.5) ** 1/2; (0.6 0.5 0.9) ** 1/3
    assert search(odds, 2, 1) == [5]
    ends = {0: 0.5, 1: 0.3, 2: 0.2}                           # all candidates end at once
    odds = {(): {5: 0.6, 6: 0.4}, (5,): ends, (6,): ends}
    assert search(odds, 2, 9) == [5, 0]
    odds = {(): {5: 0.6, 0: 0.2, 1: 0.1, 2: 0.1}, (5,): {6: 1.0}, (5, 6): {0: 1.0}}
    assert search(odds, 2, 9) == [5, 6, 0]                    # one beam goes on alone


# Files

@pytest.mark.parametrize("answer, page", [
    ("Here:\n```html\n<!doctype html>\n<p>A\n```\nI hope. <p>", "<!doctype html>\n<p>A"),
    ("Sure. <HTML><body>1 < 2</body></HTML> It is <p>.", "<HTML><body>1 < 2</body></HTML>"),
    ("<h1>A</h1>\n<p>cut of", "<h1>A</h1>\n<p>cut of"),
    ("1 < 2 and 2 > 1", None),
])
def test_the_html_of_an_answer(answer, page):
    assert find_html(answer) == (page and page + "\n")


def test_what_a_weights_folder_says(tmp_path):
    assert read_about(tmp_path)["pictures"] == 4
    for about in ('{"settings": {"temperature": "hot"}}', '{"settings": {"warmth": 1}}',
                  '{"settings": [1]}', '{"knows": 1}', '{"pictures": "two"}', "[]", "{"):
        (tmp_path / "about.json").write_text(about)
        with pytest.raises(ValueError, match="about.json"):
            read_about(tmp_path)
    (tmp_path / "about.json").write_text('\ufeff{"settings": {"temperature": 0.5}, "more": 1}',
                                         encoding="utf-8")
    assert read_about(tmp_path)["settings"] == {"temperature": 0.5}


ROUND = '{"images": [], "question": "a", "answer": "b"}'


@pytest.mark.parametrize("text", [
    "", "{", "{}", "[]", "null", "[" * 100_000,
    '{"rounds": [], "images": [], "model": "", "settings": {"beams": true}}',
    '{"rounds": [], "images": [], "model": "", "settings": [1]}',
    '{"rounds": [], "images": [1], "model": "", "settings": {}}',
    '{"rounds": [], "images": "a", "model": 1, "settings": {}}',
    '{"rounds": [1], "images": [], "model": "", "settings": {}}',
    '{"rounds": [' + ROUND.replace('"a"', "1") + '], "images": [], "model": "", "settings": {}}',
])
def test_a_file_that_is_not_a_saved_conversation_is_refused_by_name(tmp_path, text, talk):
    (tmp_path / "talk.json").write_text(text)
    with pytest.raises(ValueError, match="talk.json"):
        read_talk(tmp_path / "talk.json")
    (tmp_path / "talk.json").write_text("\ufeff" + to_json(talk(), "name"), encoding="utf-8")
    assert read_talk(tmp_path / "talk.json")["images"] == ["picture.png"]
