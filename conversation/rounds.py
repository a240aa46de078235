"""A conversation about pictures, without a terminal: rounds, settings, cache, beams, saved files.

    talk = Conversation(model, temperature=0)
    talk.add_image(image)
    print("".join(talk.answer("What is this?")))

The keys and values of earlier rounds stay in a cache, so a question costs its own tokens. Each
prompt is still built and tokenised as a whole, as the released code does it; the part that the
cache holds already is then skipped.
"""
import argparse
import json
import os
import random
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import torch

from artgpt4 import IMAGE_MARK, IMAGE_SLOT, KVCache, chat_prompt, errors_naming, preprocess
from common.command_line import Misuse, number, printable
from common.files import read_json
from common.models import answers

MAX_CONTEXT = 2000            # tokens of prompt and answer, as in the released code
SETTINGS = {                  # name: argparse type, default, help
    "temperature": (number(float, 0, 10), 1.0, "0: always the likeliest token"),
    "top_p": (number(float, 0.001, 1), 0.9, "draw from the likeliest that hold this probability"),
    "repetition_penalty": (number(float, 0.1, 10), 1.0, "above 1: what was said is less likely"),
    "max_new_tokens": (number(int, 1, MAX_CONTEXT), 300, "the greatest length of an answer"),
    "beams": (number(int, 1, 16), 1, "above 1: beam search; the answer then comes all at once"),
    "seed": (number(int, 0, 2 ** 63 - 1), None, "the same seed gives the same answers"),
}
NO_TALK = {"model": "", "settings": {}, "images": [], "rounds": []}        # as /save writes it
# Control characters except tab and newline, and those that change the direction of writing
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def setting(name, value):
    """A setting as it is typed or read -> its name and value. Raises Misuse for a wrong one."""
    name = name.strip().lower().replace("-", "_")
    if name not in SETTINGS:
        raise Misuse(f"no setting {name!r}; there are {', '.join(SETTINGS)}")
    try:
        return name, SETTINGS[name][0](str(value).strip())
    except argparse.ArgumentTypeError as error:
        raise Misuse(f"{name}: {error}") from None


def clean(text):
    """Text that is safe to print: nothing in it moves the cursor, sets colours or sends replies."""
    return CONTROL.sub("", text)


def plain(text):
    """Text that somebody typed as it may stand in a prompt, with nothing in it that has a meaning
    there: no mark, no control character, "?" for no Unicode."""
    text = clean(text.encode(errors="replace").decode())      # END is a control character
    return re.sub("#(?=##)", "# ", text.replace(IMAGE_MARK, "<Image Here>")).strip()


class Round(NamedTuple):
    images: list              # the files of the pictures that came with the question
    question: str
    answer: str = ""


class Conversation:
    """Rounds of question and answer about pictures. settings: values by their names in SETTINGS.

    rounds: all that was said, oldest first. forgotten: how many of them are in no prompt any more,
    for want of room; their pictures still are. waiting: the files that the next question brings.
    """

    def __init__(self, model, **settings):
        embed = model.llama.embed.weight
        self.model, self.context = model, min(MAX_CONTEXT, model.config.context)
        self.generator = torch.Generator(embed.device)
        self.generator.manual_seed(random.randrange(10 ** 9))
        self.settings = {name: default for name, (_, default, _) in SETTINGS.items()}
        for name, value in settings.items():
            self.set(name, value)
        self.rounds, self.waiting, self.forgotten = [], [], 0
        self.image_embeds = embed.new_empty(0, model.config.queries, model.config.llama_width)
        self.cache = KVCache(model.llama, self.context)
        self.cached = []                                      # the ids that the cache holds

    def set(self, name, value):
        """Change a setting for the answers to come. A seed of None leaves the numbers random."""
        self.settings[name] = value
        if name == "seed" and value is not None:
            self.generator.manual_seed(value)

    @torch.inference_mode()
    def add_image(self, image, file=""):
        """Encode a PIL image, which the next question brings. file: its name in saved files."""
        pixels = preprocess(image, self.model.config.image_size)[None]
        self.image_embeds = torch.cat((self.image_embeds, self.model.encode_image(pixels)))
        self.waiting = [*self.waiting, str(file)]

    def reset(self):
        """Forget the rounds, and all pictures but the last."""
        files = [file for round in self.rounds for file in round.images] + self.waiting
        self.waiting, self.rounds, self.forgotten = files[-1:], [], 0
        self.image_embeds, self.cached = self.image_embeds[-1:], []

    def prompt_ids(self, rounds):
        """The ids of the prompt that ends with the question of the last round. Forgotten ones are
        left out; their pictures come with the first that is not."""
        messages, slots = [], []
        for i, round in enumerate(rounds):
            slots += [IMAGE_SLOT] * len(round.images)
            if i >= self.forgotten:
                messages += [" ".join([*slots, plain(round.question)]), plain(round.answer)]
                slots = []
        return self.model.prompt_ids(chat_prompt(messages[:-1], self.model.config.prompt))

    def room(self, ids):
        """How many tokens the answer to a prompt may have. Raises ValueError if that is none."""
        if len(ids) >= self.context:
            raise ValueError(f"{len(ids)} tokens, but the context is {self.context}; ask a shorter "
                             "question, about fewer pictures, or with --each about each alone")
        return min(self.context - len(ids), self.settings["max_new_tokens"])

    @torch.inference_mode()
    def answer(self, question=None):
        """Yield the answer to a question, or without one to the last question again, in pieces: one
        for each token, which may be empty.

        At the end the round is kept; if the iterator is closed early, with the answer so far. The
        oldest rounds are forgotten until the prompt leaves room for the answer, or for half of the
        context if the answer may be longer. Raises ValueError if the question is too long.
        """
        rounds = self.rounds if question is None else [*self.rounds, Round([], question)]
        if not rounds:
            raise ValueError("no question has an answer yet")
        *earlier, last = rounds
        rounds = [*earlier, last._replace(images=last.images + self.waiting)]
        before, ids = self.forgotten, self.prompt_ids(rounds)
        most = self.context - min(self.settings["max_new_tokens"], self.context // 2)
        while self.forgotten < len(earlier) and len(ids) > most:
            self.forgotten += 1
            ids = self.prompt_ids(rounds)
        if len(ids) >= self.context:                          # refused, so nothing is forgotten
            self.forgotten = before
        room = self.room(ids)
        known = len(os.path.commonprefix([self.cached, ids[:-1]]))     # the last logits are needed
        self.cache.length = known
        embeds = self.model.embed_ids(ids, self.image_embeds)[:, known:]          # (1, T, D)
        answer, said = [], ""
        try:
            for token in self.tokens(embeds, room):
                answer.append(int(token))
                text, ended = self.model.decode(answer)
                piece = clean(text).strip()[len(said):]
                said += piece
                yield piece
                if ended:
                    break
        finally:
            self.cached = (ids + answer)[:self.cache.length]
            if said:
                self.rounds, self.waiting = [*earlier, rounds[-1]._replace(answer=said)], []

    def adjust(self, logits, chosen):
        """Logits (B, V) after the ids (B, n) of an answer so far -> with the repetition penalty:
        those of its ids are divided by it, or multiplied if they are negative."""
        penalty, scores = self.settings["repetition_penalty"], logits.gather(1, chosen)
        less = torch.where(scores < 0, scores * penalty, scores / penalty)
        return logits.scatter(1, chosen, less)

    def sampling(self):
        """The settings of answers as the flags of ArtGPT4.generate."""
        return {"temperature": self.settings["temperature"], "top_p": self.settings["top_p"],
                "generator": self.generator, "adjust": self.adjust}

    def tokens(self, embeds, room):
        """The ids of the answer to what the cache holds and embeds (1, T, D)."""
        beams = self.settings["beams"]
        if beams > 1:                                         # which draws nothing
            return beam_search(self.model, embeds, beams, room, self.cache, self.adjust)
        return self.model.generate(embeds, room, self.cache, **self.sampling())

    @torch.inference_mode()
    def answer_each(self, pixels, question):
        """One question about B times N pictures, pixels (B, N, 3, S, S) -> B texts, and
        image_embeds (B, N, Q, D). The prompts are equally long, so they are one batch, but for beam
        search. Rounds are neither read nor changed."""
        batch, images = pixels.shape[:2]
        ids, texts = self.prompt_ids([Round([""] * images, question)]), []
        room, image_embeds = self.room(ids), self.model.encode_image(pixels.flatten(0, 1))
        embeds = self.model.embed_ids([ids] * batch, image_embeds)                # (B, T, D)
        if self.settings["beams"] == 1:
            texts = answers(self.model, embeds, room, **self.sampling())
        for row in embeds if self.settings["beams"] > 1 else ():
            self.cache.length, self.cached = 0, []
            texts.append(self.model.decode(self.tokens(row[None], room))[0])
        return [clean(text).strip() for text in texts], image_embeds.unflatten(0, (batch, images))


@torch.inference_mode()
def beam_search(model, embeds, beams, max_new_tokens, cache, adjust=lambda logits, _: logits):
    """The ids of the likeliest whole answer that a search with `beams` beams finds: the search of
    transformers' generate with early stopping, which the released code uses.

    The score of an answer is the mean log-probability of its tokens. The search ends when `beams`
    finished answers score at least as well as the best unfinished one does so far.

    embeds: the prompt, (1, T, D), after the text in cache, a KVCache, which holds it too
    afterwards, but not the answer. adjust: see ArtGPT4.generate.
    """
    logits = model.llama(embeds, cache)[:, -1].expand(beams, -1)
    start = cache.length                                      # before it all beams are the same
    own = KVCache(model.llama, start + max_new_tokens, beams)
    own.length = start
    own.kv[..., :start, :] = cache.kv[..., :start, :]
    rows = torch.empty(beams, 0, dtype=torch.long, device=embeds.device)    # unfinished answers
    scores = logits.new_full((beams,), -torch.inf)            # their log-probabilities
    scores[0], finished = 0, []                               # (score, answer)
    for length in range(1, max_new_tokens + 1):
        totals = adjust(logits, rows).log_softmax(dim=-1) + scores[:, None]  # (beams, V)
        best, places = totals.flatten().topk(2 * beams)       # half of them may end here
        parents, tokens = places // totals.shape[1], places % totals.shape[1]
        rows = torch.cat((rows[parents], tokens[:, None]), dim=1)           # (2 * beams, length)
        ended = torch.tensor([model.decode(row)[1] for row in rows.tolist()], device=best.device)
        finished += [(best[i].item() / length, rows[i].tolist()) for i in range(beams) if ended[i]]
        scores, kept = best.masked_fill(ended, -torch.inf).topk(beams)
        rows, limit = rows[kept], scores[0].item() / length
        if sum(score >= limit for score, _ in finished) >= beams:
            break
        told = slice(start, own.length)                       # the rows of the answers alone
        own.kv[..., told, :] = own.kv[:, :, parents[kept], :, told]
        logits = model.llama(model.llama.embed(rows[:, -1:]), own)[:, -1]
    unfinished = zip(scores.tolist(), rows.tolist(), strict=True)
    _, answer = max(finished + [(score / length, row) for score, row in unfinished])
    return answer


# ---- Files: what a weights folder says, what /save writes

def checked(values, usual, file):
    """A JSON object with its "settings" parsed, if each value is of the kind that it has in
    `usual`. Raises ValueError, naming the file."""
    with errors_naming(file):
        for name, value in usual.items():
            if type(values.get(name)) is not type(value):
                raise ValueError(f"{name!r} should be there, and like {value!r}")
        return values | {"settings": dict(setting(*item) for item in values["settings"].items())}


def read_about(folder):
    """What about.json in a weights folder says: "knows", a sentence, "examples" of questions,
    default "settings", and the most "pictures" of a conversation in training. Raises ValueError."""
    file = Path(folder) / "about.json"
    usual = {"knows": "", "examples": [], "settings": {}, "pictures": 4}
    return checked(usual | (read_json(file) if file.exists() else {}), usual, file)


def to_json(talk, model):
    """The text of a file that read_talk reads. model: the name of the weights."""
    settings = {name: value for name, value in talk.settings.items() if value is not None}
    saved = {"model": model, "settings": settings, "images": talk.waiting,
             "rounds": [round._asdict() for round in talk.rounds]}
    return json.dumps(saved, indent=1) + "\n"


def read_talk(file):
    """What to_json wrote into a file, a dictionary; "rounds" are Rounds. Raises ValueError."""
    saved = checked(read_json(file), NO_TALK, file)
    with errors_naming(file):
        rounds = [Round(**entry) for entry in saved["rounds"]]
        for files, *texts in (*rounds, Round(saved["images"], "")):
            "".join(files + texts)                            # fails if one is no text
        return saved | {"rounds": rounds}


def to_markdown(talk, model, folder):
    """The pictures (as links from a folder), the questions as quotations, the answers, and the
    model that gave them."""
    parts = []
    for round in [*talk.rounds, Round(talk.waiting, "")]:
        links = [(image, os.fsencode(os.path.relpath(image, folder))) for image in round.images]
        parts += [f"![{printable(Path(image).name)}]({quote(link)})" for image, link in links]
        if round.question:
            parts += ["> " + clean(round.question).replace("\n", "\n> "), round.answer]
    return "\n\n".join([*parts, f"*{printable(model)}*"]) + "\n"
