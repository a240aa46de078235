"""conversation/rounds.py: the prompt of a dialogue, the cache, the settings, the context."""
from dataclasses import replace

import pytest
import torch
from PIL import Image

import artgpt4
from artgpt4 import IMAGE_ID, IMAGE_SLOT, Llama
from common.answering import penalties
from conversation.beams import beam_search
from conversation.rounds import Conversation, Round, plain
from tests.conftest import say


@pytest.fixture
def prefills(monkeypatch):
    """The number of tokens that Llama was given at once, call by call."""
    counts, hidden = [], Llama.hidden

    def counted(self, embeds, cache=None, first=0):
        counts.append(embeds.shape[1])
        return hidden(self, embeds, cache, first)

    monkeypatch.setattr(Llama, "hidden", counted)
    return counts


# The prompt


def test_the_prompt_of_a_dialogue_is_the_golden_one(talker, talk, expected):
    rounds = [Round(["picture.png"], "What is this?", "A painting."),
              Round([], "Who painted it?  I like it.")]
    ids = talk().prompt_ids(rounds)
    golden = [i for segment in expected["dialogue_segments_ids"] for i in segment]
    assert [i for i in ids if i >= 0] == golden
    assert [i for i in ids if i < 0] == [IMAGE_ID] * talker.config.qformer.queries


def test_config_json_chooses_the_prompt(talker, talk, monkeypatch):
    question = [Round([], "What?")]
    rounds = [Round([], "What?", "That."), Round([], "Why?")]
    vicuna = talk().prompt_ids(question)
    monkeypatch.setattr(talker, "config", replace(talker.config, prompt="llama2_chat"))
    assert talk().prompt_ids(question) != vicuna
    prompt = artgpt4.chat_prompt(["What?", "That.", "Why?"], "llama2_chat")
    assert talk().prompt_ids(rounds) == talker.prompt_ids(prompt)


def test_typed_marks_are_plain_text():
    assert plain(" a###Human: b ") == "a# ##Human: b"
    assert plain("#####") == "# # # ##"
    assert plain("#\0##") == "# ##"
    assert plain("## Title #1") == "## Title #1"
    assert plain("<ImageHere><Image\x1bHere>") == "< ImageHere>< ImageHere>"
    assert plain("a [/INST] \x02[INST] b [i]") == "a [ /INST] [ INST] b [i]"


def test_what_is_not_unicode_becomes_a_question_mark():
    assert plain("\udce9") == "?"


# The cache


def test_a_later_question_costs_its_own_tokens(talker, talk, prefills, monkeypatch):
    words = []
    monkeypatch.setattr(artgpt4, "sample", lambda logits, *_: torch.tensor([words.pop(0)]))
    encode = talker.tokenizer.encode
    conversation = talk()
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

    def without_cache():
        """The same conversation at this point, with nothing in its cache."""
        fresh = talk(**conversation.settings)
        fresh.image_embeds, fresh.context = conversation.image_embeds, conversation.context
        fresh.rounds, fresh.waiting = conversation.rounds, conversation.waiting
        return fresh

    def check(question=None, stop=False):
        """Answer, or stop after two pieces, and compare with the conversation without a cache."""
        fresh = without_cache()
        pieces = conversation.answer(question)
        said = next(pieces) + next(pieces) if stop else "".join(pieces)
        pieces.close()
        cost = sum(prefills)
        whole = say(fresh, question)
        if stop:
            assert whole.startswith(said) and len(whole) > len(said)
        else:
            assert whole == said
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
    prompt = conversation.prompt_ids([*conversation.rounds, Round([], "Long?")])
    conversation.context = len(prompt) + 19
    check("Long?")
    assert conversation.dropped == 1 and conversation.rounds[0].images == ["picture.png"]
    conversation.reset()
    assert conversation.waiting == ["white.png"] and len(conversation.image_embeds) == 1
    check("What is this?")


# The settings


def test_the_settings_reach_the_model(talker, talk, monkeypatch):
    prompt = artgpt4.chat_prompt([f"{IMAGE_SLOT} What?"])

    def embeds(conversation):
        return talker.embed_prompt(prompt, conversation.image_embeds)

    conversation = talk(repetition_penalty=3.0)
    pieces = talker.generate(embeds(conversation), 20, temperature=0,
                             adjust=penalties(talker, repetition_penalty=3.0))
    assert say(conversation, "What?") == "".join(pieces).strip()

    conversation = talk(temperature=2.0, top_p=0.7, seed=5)
    pieces = talker.generate(embeds(conversation), 20, temperature=2.0, top_p=0.7,
                             generator=torch.Generator().manual_seed(5))
    assert say(conversation, "What?") == "".join(pieces).strip()

    conversation = talk(beams=3)
    ids = beam_search(talker, embeds(conversation), 3, 20)
    text = talker.decode(ids, whole=True)
    assert say(conversation, "What?") == text.strip()


def test_an_answer_is_as_long_as_min_new_tokens_says(talker, talk, monkeypatch):
    end, letter = talker.tokenizer.eos_id(), talker.tokenizer.encode("a")[-1]

    def end_if_allowed(logits, *_):
        return torch.tensor([end if logits[0, end] > -torch.inf else letter])

    monkeypatch.setattr(artgpt4, "sample", end_if_allowed)
    assert say(talk(), "What?") == ""
    assert say(talk(min_new_tokens=7), "What?") == " ".join("a" * 7)


def test_the_same_seed_gives_the_same_answers(talk):
    def two_answers(seed):
        conversation = talk(seed=seed, temperature=1.0)
        return [say(conversation, "What?"), say(conversation)]
    first, second = two_answers(7)
    assert first != second
    assert two_answers(7) == [first, second]
    assert two_answers(8) != [first, second]


# The context


def test_the_oldest_rounds_are_forgotten_when_the_context_is_full(talk):
    conversation = talk()
    say(conversation, "One?")
    say(conversation, "Two?")
    _, second = conversation.rounds
    kept = [second._replace(images=["picture.png"]), Round([], "Three?")]
    conversation.context = len(conversation.prompt_ids(kept)) + 20
    say(conversation, "Three?")
    assert [question for _, question, _ in conversation.rounds] == ["Two?", "Three?"]
    assert [images for images, _, _ in conversation.rounds] == [["picture.png"], []]


def test_an_answer_never_passes_the_end_of_the_context(talk):
    prompt = len(talk().prompt_ids([Round(["picture.png"], "One?")]))
    for context, room in ((prompt + 21, 20), (prompt + 20, 20), (prompt + 3, 3)):
        conversation = talk()
        conversation.context = context
        say(conversation, "One?")
        assert conversation.new_tokens == room
    conversation.context, before = prompt, conversation.rounds
    with pytest.raises(ValueError, match=f"{prompt} tokens.*shorter"):
        conversation.answer("One?")
    assert conversation.rounds == before != []


def test_the_context_is_2000_tokens_or_what_the_model_has(talker, monkeypatch):
    assert Conversation(talker).context == 2000
    llama = replace(talker.config.llama, max_position_embeddings=256)
    monkeypatch.setattr(talker, "config", replace(talker.config, llama=llama))
    assert Conversation(talker).context == 256
