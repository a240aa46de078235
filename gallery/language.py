"""How the language side of weights/tiny is pre-trained: on conversations about scenes.

Where the vectors of a picture stand later, a document has the facts of its scene, in words. In most
documents the vectors of these words are mixed, so that they look like a picture's.

A window of documents is made from the seed and its number alone, in one process or in several. All
random numbers are drawn there, so they are the same on every device.
"""
import io
import itertools
import multiprocessing
import random
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F

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
        scenes = [shown for new, _, _ in rounds for shown in new]
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


def predicted(line, is_text, humans, assistants):
    """Which places of a document are predicted: its texts without the questions, as in stage 2.

    line: ids; is_text: whether each belongs to a text, and not to a picture; humans, assistants:
    the ids with which a question and an answer begin, see `turns`.
    """
    marks, in_question = [], False
    for token, text in zip(line, is_text, strict=True):
        marks.append(text and not in_question)
        if text and (token in humans or token in assistants):
            in_question = token in humans
    return marks


def turns(tokenizer):
    """The ids with which a question begins, and those with which an answer does: two sets."""
    pieces = [tokenizer.id_to_piece(i) for i in range(tokenizer.get_piece_size())]
    return [{i for i, piece in enumerate(pieces) if name in piece}
            for name in ("Human:", "Assistant:")]


# ---- Pictures in words

# The facts by their numbers in words.facts that the 16 vectors of a picture tell. vision.py gives
# the queries of the Q-Former like tasks: the subject, where it stands, the things, the setting, the
# style, the palette, the texture; the others see parts of the picture.
TASKS = (0, 1, 2, 3, 4, 5, 6)
MIXED = 0.7                         # the share of pictures whose words are mixed
NOISE = 0.05                        # the deviation of what is added to the vectors of these


def owners(facts, count, rng):
    """Which of the facts each of `count` vectors of a picture tells above all: (count,) numbers.

    Two times in three as the queries of the Q-Former have their TASKS, else in any order.
    """
    told = [task if task < facts else 4 for task in TASKS[:count]]
    told += rng.choices(range(facts), k=count - len(told))
    if rng.random() < 0.33:
        rng.shuffle(told)
    return np.array(told)


def mixture(facts, count, rng, normal):
    """How `count` vectors like an image's are mixed from the words of facts, as lists of ids.

    Each is a random mixture of the vectors of all words, with most weight on those of one fact. A
    real Vicuna reads such vectors because it is large; this small one has to learn it.

    Returns:
        (ids of the words (F,), weights (count, F) whose rows add up to 1)
    """
    fact_of = np.array([i for i, fact in enumerate(facts) for _ in fact])
    own = owners(len(facts), count, rng)[:, None] == fact_of              # (count, F)
    logits = 2 * normal.standard_normal(own.shape, dtype=np.float32) + np.float32(3.5) * own
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    ids = np.array([token for fact in facts for token in fact])
    return ids, weights / weights.sum(axis=1, keepdims=True)


# ---- Batches


class Batch(NamedTuple):
    """B documents of at most T tokens, K of them predicted; N pictures of Q vectors are mixed."""
    ids: np.ndarray             # (B, T); 0 after the end of a document, and for a mixed vector
    learned: np.ndarray         # (K,) places in B * T whose next token is predicted,
    targets: np.ndarray         # (K,) and that token
    places: np.ndarray          # (N, Q) places in B * T of the mixed vectors
    words: np.ndarray           # (N, F) what they are mixed from,
    weights: np.ndarray         # (N, Q, F) with these weights
    noise: np.ndarray           # (N, Q, D)

    def to(self, device):
        """The batch as tensors on a device: copies, since the last bits of a matrix product depend
        on how its memory is aligned."""
        return Batch(*(torch.from_numpy(array).to(device, copy=True) for array in self))


def batched(rows, count, width, turns, rng, normal):
    """Tokenised documents -> a Batch; its pictures are `count` vectors of `width` when mixed.

    Three pictures of ten are not mixed: their words stand there themselves, in any order.
    """
    lines, marks, places, mixtures = [], [], [], []
    for row, (texts, pictures) in enumerate(rows):
        line, is_text = [], []
        for text, facts in itertools.zip_longest(texts, pictures):
            line += text
            is_text += [True] * len(text)
            if facts is None:
                continue
            if rng.random() < MIXED:
                places.append((row, len(line)))
                mixtures.append(mixture(facts, count, rng, normal))
                shown = [0] * count
            else:
                shown = [token for fact in rng.sample(facts, len(facts)) for token in fact]
            line += shown
            is_text += [False] * len(shown)
        lines.append(line)
        marks.append(predicted(line, is_text, *turns))
    length = max(map(len, lines)) - 1
    ids = np.zeros((len(rows), length), dtype=np.int64)
    for row, line in enumerate(lines):
        ids[row, :len(line) - 1] = line[:-1]
    learned = [(row * length + i, token) for row, line in enumerate(lines)
               for i, token in enumerate(line[1:]) if marks[row][i + 1]]
    starts = np.array([row * length + start for row, start in places], dtype=np.int64)
    facts = max((len(found) for found, _ in mixtures), default=1)
    words = np.zeros((len(mixtures), facts), dtype=np.int64)
    weights = np.zeros((len(mixtures), count, facts), dtype=np.float32)
    for i, (found, shares) in enumerate(mixtures):
        words[i, :len(found)] = found
        weights[i, :, :len(found)] = shares
    noise = NOISE * normal.standard_normal((len(mixtures), count, width), dtype=np.float32)
    return Batch(ids, *np.array(learned, dtype=np.int64).T, starts[:, None] + np.arange(count),
                 words, weights, noise)


class Documents(NamedTuple):
    """What batches are made of; see `window`."""
    tokenizer: sentencepiece.SentencePieceProcessor
    batch: int                  # documents in a batch
    count: int                  # vectors of a picture, and their width
    width: int
    seed: int
    quizzes: float              # see `document`

    def window(self, number, size=16):
        """Window `number`: a list of `size` batches, each of documents of similar length."""
        def length(row):
            texts, pictures = row
            return sum(map(len, texts)) + self.count * len(pictures)

        rng = random.Random(f"documents {self.seed} {number}")
        normal = np.random.default_rng(rng.getrandbits(64))
        scenes = random_scenes(size * self.batch + 1, f"text {self.seed} {number}")
        rng.shuffle(scenes)
        rows = [tokenised(document(*pair, rng, self.quizzes), self.tokenizer)
                for pair in itertools.pairwise(scenes)]
        rows.sort(key=length)
        parts = [rows[i:i + self.batch] for i in range(0, len(rows), self.batch)]
        rng.shuffle(parts)
        marks = turns(self.tokenizer)
        return [batched(part, self.count, self.width, marks, rng, normal) for part in parts]

    def batches(self, workers=0):
        """Yield batch after batch, made here or by a number of other processes."""
        if workers == 0:
            for number in itertools.count():
                yield from self.window(number)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            numbers = itertools.count()
            waiting = deque(pool.submit(self.window, next(numbers)) for _ in range(2 * workers))
            while True:
                waiting.append(pool.submit(self.window, next(numbers)))
                yield from waiting.popleft().result()


# ---- The objective

# The words that decide whether an answer to a quiz is right: few among those that only tell it.
DECIDING = ("Yes, it", "No, it", "None", "Neither", "Both", "first", "second", "one", "two",
            "three", "four")


def embedded(embed, batch):
    """The vectors (B, T, D) of a Batch of tensors. embed: ids (..., T) -> (..., T, D)."""
    vectors = batch.weights @ embed(batch.words) + batch.noise            # (N, Q, D)
    x = embed(batch.ids)
    mixed = x.flatten(0, 1).index_copy(0, batch.places.flatten(), vectors.flatten(0, 1))
    return mixed.view_as(x)


def language_objective(model, batches, deciding_weight):
    """What train in pretrain.py needs: (the parameters, loss_of_step).

    The parameters are those of model.llama, without its adapters. batches: of Documents. The loss
    is the mean over the predicted tokens, in which DECIDING ones weigh more.
    """
    llama, device = model.llama, model.llama.embed.weight.device
    deciding = [model.tokenizer.encode(word)[0] for word in DECIDING]
    yes, no = deciding[:2]
    token_weights = torch.ones(model.config.llama.vocab_size, device=device)
    token_weights[deciding] = deciding_weight
    right = torch.tensor(0.5, device=device)                            # a running mean
    note = ""

    def loss_of_step(step):
        nonlocal right, note
        batch = next(batches)
        asked = np.isin(batch.targets, (yes, no)).nonzero()[0]
        asked = torch.from_numpy(asked).to(device)
        batch = batch.to(device)
        hidden = llama.hidden(embedded(llama.embed, batch))
        logits = llama.logits(hidden.flatten(0, 1).index_select(0, batch.learned))
        if len(asked) > 0:
            agrees = logits.detach()[asked].argmax(dim=-1) == batch.targets[asked]
            right = right + 0.02 * (agrees.float().mean() - right)
        if step % 20 == 0:                                    # a GPU need not wait every step
            note = f", yes or no right in {right.item():.0%}"
        return F.cross_entropy(logits, batch.targets, weight=token_weights), note

    parameters = [p for name, p in llama.named_parameters() if ".adapter." not in name]
    return parameters, loss_of_step
