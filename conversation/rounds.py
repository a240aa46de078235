"""A conversation about pictures, without a terminal: its rounds, its settings, the cache.

    conversation = Conversation(model, temperature=0)
    conversation.add_image(image)
    for piece in conversation.answer("What is this?"):
        print(piece, end="")

The keys and values of earlier rounds stay in a cache, so the cost of a question is that of its own
tokens. Each prompt is still built and tokenised as a whole, as the released code does it; the part
that the cache holds already is then skipped.
"""
import re
from typing import NamedTuple

import torch

from artgpt4 import IMAGE_MARK, IMAGE_SLOT, KVCache, chat_prompt, preprocess
from common.answering import penalties
from conversation.beams import beam_search
from conversation.settings import MAX_CONTEXT, SETTINGS, read_about
from conversation.terminal import clean

# Where a new message or an image would begin in a prompt
MARKS = re.compile(rf"#(?=##)|<(?={IMAGE_MARK[1:]})|\[(?=/?INST\])")


def plain(text):
    """Text as it may stand in a prompt.

    A space breaks every mark that would begin a message or an image there. Control characters are
    removed, and what is not Unicode becomes "?".
    """
    unicode = text.encode(errors="replace").decode()
    return MARKS.sub(r"\g<0> ", clean(unicode)).strip()


class Round(NamedTuple):
    images: list              # the files of the pictures that came with the question
    question: str
    answer: str = ""


class Conversation:
    """Rounds of question and answer about pictures.

    settings: values by their names in SETTINGS. Defaults: those of the weights folder, then those
    of SETTINGS. Raises ValueError if the weights folder's are wrong.
    rounds: what was said, oldest first. waiting: the files that the next question brings.
    After an answer, dropped is the number of rounds that had to be forgotten to make room for it,
    and new_tokens its length.
    """

    def __init__(self, model, **settings):
        self.model = model
        embed = model.llama.embed.weight
        self.context = min(MAX_CONTEXT, model.config.llama.max_position_embeddings)
        self.generator = torch.Generator(embed.device)
        self.generator.seed()
        self.about = read_about(model.config.about)
        self.settings = {name: setting.default for name, setting in SETTINGS.items()}
        for name, value in (self.about.settings | settings).items():
            self.set(name, value)
        self.rounds, self.waiting = [], []
        self.dropped, self.new_tokens = 0, 0
        self.image_embeds = embed.new_empty(0, model.config.qformer.queries, embed.shape[1])
        self.cache = KVCache()
        self.cached = []                                      # the ids that the cache holds

    def set(self, name, value):
        """Change a setting for the answers to come. A seed of None is a new random one."""
        self.settings[name] = value
        if name == "seed":
            self.generator.seed() if value is None else self.generator.manual_seed(value)

    @torch.inference_mode()
    def add_image(self, image, file=""):
        """Encode a PIL image, which the next question brings. file: its name in saved files."""
        pixels = preprocess(image, self.model.config.image_size)[None]
        self.image_embeds = torch.cat((self.image_embeds, self.model.encode_image(pixels)))
        self.waiting = [*self.waiting, str(file)]

    def reset(self):
        """Forget the rounds, and all images but the last."""
        files = [file for round in self.rounds for file in round.images] + self.waiting
        self.waiting = files[-1:]
        if len(self.image_embeds) > 1:                        # the last image becomes the first
            self.image_embeds = self.image_embeds[-1:]
            self.cached = []
        self.rounds = []

    def prompt_ids(self, rounds):
        """The ids of the prompt that ends with the question of the last round."""
        messages = []
        for images, question, answer in rounds:
            messages.append(" ".join([IMAGE_SLOT] * len(images) + [plain(question)]))
            messages.append(plain(answer))
        prompt = chat_prompt(messages[:-1], self.model.config.prompt)
        return self.model.prompt_ids(prompt)

    def answer(self, question=None):
        """Answer a question, or without one the last question again -> an iterator of text.

        When the iterator ends, the round is kept; when it is closed early, with the answer so far.
        The oldest rounds are forgotten until prompt and answer fit into the context, but their
        images stay. Raises ValueError if the question alone is too long.
        """
        if question is not None:
            rounds = [*self.rounds, Round(self.waiting, question)]
        elif self.rounds:
            *earlier, last = self.rounds
            rounds = [*earlier, Round(last.images + self.waiting, last.question)]
        else:
            raise ValueError("no question has an answer yet")

        count, ids = len(rounds), self.prompt_ids(rounds)
        while len(rounds) > 1 and len(ids) + self.settings["max_new_tokens"] > self.context:
            oldest, second, *rest = rounds
            rounds = [second._replace(images=oldest.images + second.images), *rest]
            ids = self.prompt_ids(rounds)
        room = self.room(ids)
        self.dropped = count - len(rounds)
        return self.pieces(rounds, ids, room)

    def room(self, ids):
        """How many tokens the answer to a prompt may have. Raises ValueError if that is none."""
        if len(ids) >= self.context:
            raise ValueError(f"the question makes a prompt of {len(ids)} tokens, "
                             f"but the context is {self.context}; ask a shorter one")
        return min(self.context - len(ids), self.settings["max_new_tokens"])

    @torch.inference_mode()
    def pieces(self, rounds, ids, room):
        """Yield the answer to `ids`, the prompt of `rounds`, at most `room` tokens; keep the rounds
        with it."""
        self.cache.length = self.known(ids)
        answer, text, said = [], "", ""
        try:
            for piece in self.stream(ids[self.cache.length:], room, answer):
                text += piece
                shown = clean(text).strip()
                if len(shown) > len(said):
                    piece, said = shown[len(said):], shown
                    yield piece
        finally:
            self.cached = (ids + answer)[:self.cache.length]
            self.new_tokens = len(answer)
            if said:
                self.rounds = [*rounds[:-1], rounds[-1]._replace(answer=said)]
                self.waiting = []

    def known(self, ids):
        """How many of a prompt's first ids the cache holds; never all, as the last one's logits are
        still needed."""
        most = min(len(self.cached), len(ids) - 1)
        for i in range(most):
            if self.cached[i] != ids[i]:
                return i
        return most

    def stream(self, ids, room, answer):
        """An iterator of the answer's text, at most `room` tokens, to the cached tokens and `ids`.

        answer: a list to which the answer's ids are added.
        """
        embeds = self.model.embed_ids(ids, self.image_embeds)
        settings = dict(self.settings, max_new_tokens=room)
        beams, _ = settings.pop("beams"), settings.pop("seed")
        if beams > 1:                                         # which draws nothing
            del settings["temperature"], settings["top_p"]
            answer += beam_search(self.model, embeds, beams, cache=self.cache, **settings)
            return [self.model.decode(answer, whole=True)]
        adjust = penalties(self.model, settings.pop("repetition_penalty"),
                           settings.pop("min_new_tokens"))
        return self.model.generate(embeds, answer_ids=answer, generator=self.generator,
                                   cache=self.cache, adjust=adjust, **settings)
