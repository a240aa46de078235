"""How the language side of weights/tiny is pre-trained: on conversations about scenes.

Where the vectors of a picture stand later, a document has the facts of its scene, in words. In most
documents the vectors of these words are mixed, so that they look like a picture's.
"""
import io
import itertools
import random
from typing import NamedTuple

import sentencepiece
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from artgpt4 import IMAGE_MARK, INSTRUCTIONS, STOP, instruction_prompt
from gallery import words
from gallery.conversations import about_one, about_two, prompt_and_answer, quiz
from gallery.scenes import random_scenes


class Document(NamedTuple):
    """Texts with pictures between them: texts[0], pictures[0], texts[1], ..., texts[-1].

    texts: lists of strings, each tokenised by itself, as in a prompt and its answer.
    pictures: the facts of each scene, as words.facts gives them.
    """
    texts: list
    pictures: list


def document(scene, other, rng, quizzes=0):
    """One Document about a scene, or about it and another one.

    A share `quizzes` is quizzes. Of the rest 15 % are stage 1's captions, 15 % stage 2's
    descriptions, 20 % conversations about two pictures, 50 % conversations of one to five rounds
    about one.
    """
    scenes, kind = [scene], rng.random()
    if quizzes and rng.random() < quizzes:
        rounds = quiz(scene, other, rng)
        scenes = [scene, other][:len(rounds[0][0])]
        prompt, answer = prompt_and_answer(rounds, rng)
        answer += STOP
    elif kind < 0.15:
        prompt, answer = IMAGE_MARK, words.caption(scene, rng) + "\n"
    elif kind < 0.3:
        prompt = instruction_prompt(rng.choice(INSTRUCTIONS))
        answer = words.description(scene, rng) + STOP
    else:
        if kind < 0.5:
            scenes = [scene, other]
            rounds = about_two(scene, other, rng)
        else:
            rounds = about_one(scene, rng)
        prompt, answer = prompt_and_answer(rounds, rng)
        answer += STOP
    texts = [[text] for text in prompt.split(IMAGE_MARK)]
    texts[-1].append(answer)
    return Document(texts, [words.facts(scene, rng) for scene in scenes])


# ---- Tokens


def train_tokenizer(texts, vocab_size):
    """A sentencepiece BPE with byte fallback, as LLaMA's, from an iterable of texts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=vocab_size,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_by_unicode_script=False, character_coverage=1.0, max_sentence_length=100_000,
        minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def gallery_tokenizer(seed, vocab_size):
    """The tokenizer of weights/tiny, trained on the texts of 8,000 documents."""
    rng = random.Random(seed)
    scenes = random_scenes(8001, f"tokenizer {seed}")
    documents = (document(*pair, rng) for pair in itertools.pairwise(scenes))
    texts = ("".join(text for parts in texts for text in parts) for texts, _ in documents)
    return train_tokenizer(texts, vocab_size)


def tokenised(document, tokenizer):
    """A Document -> (its texts as lists of ids, its pictures as lists of facts, those of ids)."""
    texts = [[token for text in parts for token in tokenizer.encode(text)]
             for parts in document.texts]
    texts[0].insert(0, tokenizer.bos_id())
    return texts, [[tokenizer.encode(fact) for fact in facts] for facts in document.pictures]


def document_batches(tokenizer, batch, seed, rng, quizzes=0, window=16):
    """Yield batches of tokenised documents, of similar length, out of `window` batches of them."""
    def length(row):
        texts, pictures = row
        return sum(map(len, texts)) + 16 * len(pictures)

    for step in itertools.count(0, window):
        scenes = random_scenes(window * batch + 1, f"text {seed} {step}")
        rng.shuffle(scenes)
        rows = [tokenised(document(*pair, rng, quizzes), tokenizer)
                for pair in itertools.pairwise(scenes)]
        rows.sort(key=length)
        waiting = [rows[i:i + batch] for i in range(0, len(rows), batch)]
        rng.shuffle(waiting)
        yield from reversed(waiting)


# ---- Pictures in words

# The facts by their numbers in words.facts that the 16 vectors of a picture tell. vision.py gives
# the queries of the Q-Former like tasks: the subject, where it stands, the things, the setting, the
# style, the palette, the texture; the others see parts of the picture.
TASKS = (0, 1, 2, 3, 4, 5, 6)


def owners(facts, count, rng):
    """Which of the facts each of `count` vectors of a picture tells above all: (count,) numbers.

    Two times in three as the queries of the Q-Former have their TASKS, else in any order.
    """
    owners = [task if task < facts else 4 for task in TASKS[:count]]
    owners += rng.choices(range(facts), k=count - len(owners))
    if rng.random() < 0.33:
        rng.shuffle(owners)
    return torch.tensor(owners)


def mixed(embed, facts, count, rng):
    """`count` vectors like an image's, (count, D), from facts as lists of ids.

    Each is a random mixture of the vectors of all words, with most weight on those of one fact. A
    real Vicuna reads such vectors because it is large; this small one has to learn it. embed: ids
    (T,) -> (T, D).
    """
    fact_of = torch.tensor([i for i, fact in enumerate(facts) for _ in fact])
    own = owners(len(facts), count, rng)[:, None] == fact_of              # (count, T)
    weights = (2 * torch.randn(own.shape) + 3.5 * own).softmax(dim=-1)
    vectors = weights @ embed(torch.tensor([token for fact in facts for token in fact]))
    return vectors + 0.05 * torch.randn(vectors.shape)


# ---- The objective


def picture_in_words(embed, facts, count, rng):
    """Facts as lists of ids -> vectors (T, D): mixed, or three times in ten the words themselves.
    """
    if rng.random() < 0.7:
        return mixed(embed, facts, count, rng)
    shuffled = rng.sample(facts, len(facts))
    return embed(torch.tensor([token for fact in shuffled for token in fact]))


def language_objective(model, batch, seed, quizzes=0):
    """What train in pretrain.py needs: (the parameters, loss_of_step).

    The parameters are those of model.llama, without its adapters. Every token of a text is
    predicted, but none of a picture. quizzes: see document.
    """
    rng = random.Random(seed)
    batches = document_batches(model.tokenizer, batch, seed, rng, quizzes)
    embed, count = model.llama.embed, model.config.qformer.queries
    yes, no = (torch.tensor(model.tokenizer.encode(f"{word}, it")[0]) for word in ("Yes", "No"))
    right = 0.5                                                         # a running mean

    def loss_of_step(step):
        nonlocal right
        embeds, targets = [], []
        for texts, pictures in next(batches):
            parts, ids = [], []
            for text, facts in itertools.zip_longest(texts, pictures):
                parts.append(embed(torch.tensor(text, dtype=torch.long)))
                ids += text
                if facts:
                    parts.append(picture_in_words(embed, facts, count, rng))
                    ids += [-100] * len(parts[-1])                      # -100: not predicted
            embeds.append(torch.cat(parts)[:-1])
            targets.append(torch.tensor(ids[1:]))
        targets = pad_sequence(targets, batch_first=True, padding_value=-100)
        hidden = model.llama.hidden(pad_sequence(embeds, batch_first=True))
        keep = targets != -100
        logits, targets = model.llama.logits(hidden[keep]), targets[keep]
        asked = (targets == yes) | (targets == no)
        if asked.any():
            agrees = logits[asked].argmax(dim=-1) == targets[asked]
            right += 0.02 * (agrees.float().mean().item() - right)
        return F.cross_entropy(logits, targets), f", yes or no right in {right:.0%}"

    parameters = [p for name, p in model.llama.named_parameters() if ".adapter." not in name]
    return parameters, loss_of_step
