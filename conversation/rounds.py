"""A conversation about pictures, without a terminal: the rounds, the prompt, the cache, the file it is saved in.

    conversation = Conversation(model, temperature=0)
    conversation.add_image(image)
    for piece in conversation.answer("What is this?"):
        print(piece, end="")

What a question costs is its own tokens: the keys and values of all that was said stay in a cache. Yet each prompt is
made and tokenised as a whole, as the released code does it, and only what the cache holds of it is not computed again.
"""
import argparse
import contextlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch

from artgpt4 import IMAGE_MARK, IMAGE_SLOT, KVCache, chat_prompt, preprocess
from conversation.terminal import clean

MAX_CONTEXT = 2000                                            # tokens of prompt and answer, as in the released code
MARKS = re.compile(rf"#(?=##)|<(?={IMAGE_MARK[1:]})|\[(?=/?INST\])")    # where a message or an image would begin


def number(kind, low, high):
    """An argparse type: an int or float from low to high."""
    def parse(text):
        with contextlib.suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no {kind.__name__} from {low} to {high}")
    return parse


SETTINGS = {                                                  # of answers: type, default, help
    "temperature": (number(float, 0, 10), 1.0, "0: always the likeliest word"),
    "top_p": (number(float, 0.001, 1), 0.9, "draw from the likeliest words that hold this share of the probability"),
    "repetition_penalty": (number(float, 0.1, 10), 1.0, "above 1: what an answer has said is less likely again"),
    "min_new_tokens": (number(int, 0, MAX_CONTEXT), 0, "the shortest answer"),
    "max_new_tokens": (number(int, 1, MAX_CONTEXT), 300, "the longest answer"),
    "beams": (number(int, 1, 16), 1, "above 1: the likeliest answer that so wide a search finds; it comes at once"),
    "seed": (number(int, 0, 2 ** 63 - 1), None, "same seed, same answers"),
}


def plain(text):
    """Text as it may stand in a prompt: a space breaks what would begin a message or an image there. Control characters
    go, and what is not Unicode becomes "?"."""
    return MARKS.sub(r"\g<0> ", clean(text.encode(errors="replace").decode())).strip()


class Round(NamedTuple):
    images: list                                              # the files that the question brought
    question: str
    answer: str = ""


class Conversation:
    """Rounds of question and answer about pictures. settings: values by their names in SETTINGS."""

    def __init__(self, model, **settings):
        self.model, weight = model, model.llama.embed.weight
        self.context = min(MAX_CONTEXT, model.config.llama.max_position_embeddings)
        self.generator = torch.Generator(weight.device)
        self.generator.seed()
        self.settings = {name: default for name, (_, default, _) in SETTINGS.items()}
        for name, value in settings.items():
            self.set(name, value)
        self.rounds, self.waiting = [], []                    # oldest first; files that the next question brings
        self.image_embeds = weight.new_empty(0, model.config.qformer.queries, weight.shape[1])     # (N, Q, D)
        self.cache, self.cached = KVCache(), []               # cached: the ids that the cache holds
        self.dropped = self.new_tokens = 0                    # of the last answer: rounds forgotten for it, its length

    def set(self, name, value):
        """Change a setting, for the answers to come."""
        self.settings[name] = value
        if name == "seed" and value is not None:
            self.generator.manual_seed(value)

    @torch.inference_mode()
    def add_image(self, image, file=""):
        """Encode a PIL image; the next question comes with it. file: its name, for a conversation that is saved."""
        pixels = preprocess(image, self.model.config.image_size)[None]
        self.image_embeds = torch.cat((self.image_embeds, self.model.encode_image(pixels)))
        self.waiting = [*self.waiting, str(file)]

    def reset(self):
        """Forget the rounds, and the images but for the last."""
        self.waiting = [*(file for images, _, _ in self.rounds for file in images), *self.waiting][-1:]
        if len(self.image_embeds) > 1:                        # the last one gets the ids that the first had
            self.image_embeds, self.cached = self.image_embeds[-1:], []
        self.rounds = []

    def prompt_ids(self, rounds):
        """The ids of the prompt that ends with the question of the last round."""
        messages = [message for images, question, answer in rounds for message in
                    (" ".join([IMAGE_SLOT] * len(images) + [plain(question)]), plain(answer))]
        return self.model.prompt_ids(chat_prompt(messages[:-1], self.model.config.prompt))

    def answer(self, question=None):
        """An iterator of pieces of text. After them the round is kept; of an answer that is stopped, what was said.

        question None: another answer to the last one. The oldest rounds are forgotten until prompt and answer fit into
        the context; their images stay. Raises ValueError if the question alone is too long.
        """
        rounds = [*self.rounds, Round(self.waiting, question)]
        if question is None:
            if not self.rounds:
                raise ValueError("no question has an answer yet")
            rounds[-2:] = [Round(rounds[-2].images + self.waiting, rounds[-2].question)]
        count, ids = len(rounds), self.prompt_ids(rounds)
        while len(rounds) > 1 and len(ids) + self.settings["max_new_tokens"] > self.context:
            rounds[:2] = [rounds[1]._replace(images=rounds[0].images + rounds[1].images)]
            ids = self.prompt_ids(rounds)
        if len(ids) >= self.context:
            raise ValueError(f"the question makes a prompt of {len(ids)} tokens, but the context is {self.context}; "
                             "ask a shorter one")
        self.dropped = count - len(rounds)
        return self.pieces(rounds, ids)

    @torch.inference_mode()
    def pieces(self, rounds, ids):
        """Answer `ids`, the prompt of `rounds`. Its first tokens cost nothing as far as the cache holds the same."""
        pairs = enumerate(zip(self.cached, ids[:-1], strict=False))
        known = next((i for i, (a, b) in pairs if a != b), min(len(self.cached), len(ids) - 1))
        room = min(self.context - len(ids), self.settings["max_new_tokens"])
        self.cache.length, answer, said = known, [], ""
        try:
            for token in self.tokens(ids[known:], room):
                answer.append(token)
                text, ended = self.model.readable(answer, whole=len(answer) == room)
                text = clean(text).strip()
                if len(text) > len(said):
                    piece, said = text[len(said):], text
                    yield piece
                if ended:
                    break
        finally:
            self.cached, self.new_tokens = (ids + answer)[:self.cache.length], len(answer)
            if said:
                self.rounds, self.waiting = [*rounds[:-1], rounds[-1]._replace(answer=said)], []

    def tokens(self, ids, room):
        """Yield the ids of an answer of at most `room` tokens to what the cache holds and `ids`."""
        embeds = self.model.embed_ids(ids, self.image_embeds)
        settings = {name: self.settings[name] for name in ("repetition_penalty", "min_new_tokens")}
        if self.settings["beams"] > 1:
            yield from self.model.beam_search(embeds, self.settings["beams"], room, **settings, cache=self.cache)
            return
        for token in self.model.generate_ids(embeds, room, self.settings["temperature"], self.settings["top_p"],
                                             **settings, generator=self.generator, cache=self.cache):
            yield token.item()


# ---- Files


def to_json(conversation):
    """What read_json takes."""
    settings = {name: value for name, value in conversation.settings.items() if value is not None}
    rounds = [round._asdict() for round in conversation.rounds]
    return json.dumps({"settings": settings, "rounds": rounds, "images": conversation.waiting}, indent=1) + "\n"


def to_markdown(conversation, folder):
    """The pictures (their paths as seen from a folder), the questions as quotations, the answers."""
    parts = []
    for images, question, answer in [*conversation.rounds, Round(conversation.waiting, "")]:
        parts += [f"![{Path(image).name}](<{os.path.relpath(image, folder)}>)" for image in images]
        parts += ["> " + clean(question).replace("\n", "\n> "), answer] if question else []
    return clean("\n\n".join(parts)) + "\n"


def read_json(file):
    """A saved conversation -> rounds, files that wait, settings. Raises ValueError if the file is none."""
    try:
        saved = json.loads(Path(file).read_text(encoding="utf-8"))
        rounds = [Round(list(round["images"]), round["question"], round["answer"]) for round in saved["rounds"]]
        waiting = list(saved["images"])
        "".join(text for images, *words in [*rounds, [waiting]] for text in (*images, *words))    # all are strings
        return rounds, waiting, {name: SETTINGS[name][0](str(value)) for name, value in saved["settings"].items()}
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"{file}: no conversation that /save FILE.json wrote ({error!r})") from None
