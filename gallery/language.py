"""How the language side of weights/tiny is pre-trained: on conversations about scenes.

Where the vectors of a picture stand later, a document has the facts of its scene, in words. In most
documents the vectors of these words are mixed, so that they look like a picture's.
"""
import io
import itertools
import random
import re

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from artgpt4 import (IGNORE, IMAGE_ID, IMAGE_MARK, INSTRUCTIONS, STOP, instruction_prompt,
                     pad_examples)
from gallery import words
from gallery.conversations import about_one, about_two, prompt_and_answer
from gallery.scenes import random_scenes

MIXED = 0.8                         # the share of pictures whose words are mixed
NOISE = 0.05                        # the deviation of what is added to the vectors of these


def facts(scene, rng):
    """What a picture shows, fact by fact, as words; its things are one fact or several. The mood is
    told half of the time: a model then learns to infer it from palette and style."""
    things = list(scene.things or ("alone",))
    things = things if rng.random() < 0.5 else [words.listed(things)]
    told = [scene.subject, scene.composition, *things, scene.setting, scene.style, scene.palette]
    return [*told, scene.mood] if rng.random() < 0.5 else told


def document(scene, other, rng):
    """(prompt, answer, scenes at its <ImageHere>), in plain talk: 8 % captions, 8 % descriptions,
    19 % conversations about two pictures, 65 % about one."""
    kind = rng.random()
    if kind < 0.08:
        return IMAGE_MARK, words.caption(scene, rng) + "\n", [scene]
    if kind < 0.16:
        prompt = instruction_prompt(rng.choice(INSTRUCTIONS))
        return prompt, words.description(scene, rng, art=False) + STOP, [scene]
    rounds = (about_two(scene, other, rng, art=False) if kind < 0.35
              else about_one(scene, rng, most=rng.choice((3, 6, 14)), art=False))
    prompt, answer = prompt_and_answer(rounds, rng)
    return prompt, answer + STOP, [shown for new, _, _ in rounds for shown in new]


# ---- Tokens


def gallery_tokenizer(seed, vocab_size):
    """The tokenizer of weights/tiny, trained on the texts of 8,000 documents: a sentencepiece BPE
    with byte fallback, as LLaMA's."""
    rng, model = random.Random(seed), io.BytesIO()
    documents = (document(*pair, rng)
                 for pair in itertools.pairwise(random_scenes(8001, f"tokenizer {seed}")))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(re.sub("[^\n-~]", "", prompt.replace(IMAGE_MARK, "") + answer)
                           for prompt, answer, _ in documents),
        model_writer=model, model_type="bpe", vocab_size=vocab_size, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=1.0, max_sentence_length=100_000, minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def tokenised(document, tokenizer, rng):
    """(prompt, answer, scenes) -> (ids of each text between the pictures, the answer with the last;
    for each picture the ids of each of its facts)."""
    prompt, answer, scenes = document
    texts = [tokenizer.encode(text) for text in prompt.split(IMAGE_MARK)]
    texts[0].insert(0, tokenizer.bos_id())
    texts[-1] += tokenizer.encode(answer)
    return texts, [[tokenizer.encode(fact) for fact in facts(scene, rng)] for scene in scenes]


def answers_of(line, tokenizer):
    """A line of ids, negative for what belongs to a picture -> its targets: what begins between
    "Assistant:" and the end of "Human:", or all of a caption; IGNORE elsewhere."""
    pieces = [tokenizer.id_to_piece(max(token, 0)) for token in line]
    marks = list(re.finditer("Human:|Assistant:", "".join(pieces)))
    targets, answers, start = [], not marks, 0
    for token, piece in zip(line, pieces, strict=True):
        while marks and marks[0].end() <= start:
            answers = marks.pop(0)[0] == "Assistant:"
        targets.append(token if answers and token >= 0 else IGNORE)
        start += len(piece)
    return targets[1:]


# ---- Pictures in words, and batches


def mixture(facts, count, rng, normal):
    """How `count` vectors like an image's are mixed from the words of facts, as lists of ids.

    Each is a random mixture of the vectors of all words, with most weight on those of one fact: two
    times in three of the facts in their order, as the queries of the Q-Former have theirs, and then
    of any. A real Vicuna reads such vectors because it is large; this small one has to learn it.
    Returns ids of the words (F,) and weights (count, F), whose rows add up to 1.
    """
    own = [*range(len(facts)), *rng.choices(range(len(facts)), k=count)][:count]
    if rng.random() < 0.33:
        rng.shuffle(own)
    fact_of = np.array([i for i, fact in enumerate(facts) for _ in fact])
    is_own = np.array(own)[:, None] == fact_of                            # (count, F)
    logits = (np.float32(1.5) * normal.standard_normal(is_own.shape, dtype=np.float32)
              + np.float32(3.5) * is_own)
    weights = torch.from_numpy(logits).softmax(dim=1)
    return torch.tensor([token for fact in facts for token in fact]), weights


def batches(model, seed, size):
    """Yield batches, see `batched`, of `size` documents without end. Of 16 batches at a time, each
    has documents of like length."""
    for window in itertools.count():
        rng = random.Random(f"documents {seed} {window}")
        normal = np.random.default_rng(rng.getrandbits(64))
        scenes = random_scenes(16 * size + 1, f"text {seed} {window}")
        rng.shuffle(scenes)
        rows = [tokenised(document(*pair, rng), model.tokenizer, rng)
                for pair in itertools.pairwise(scenes)]
        rows.sort(key=lambda row: sum(map(len, row[0])) + model.config.queries * len(row[1]))
        parts = [rows[start:start + size] for start in range(0, len(rows), size)]
        rng.shuffle(parts)
        for part in parts:
            yield batched(model, part, rng, normal)


def batched(model, rows, rng, normal):
    """B tokenised documents -> ids (B, T), IMAGE_ID for a mixed vector, and targets (B, T); of N
    pictures words (N, F), with weights (N, Q, F) that mix them, and noise (N, Q, D). Three pictures
    of ten, but never the first, are not mixed: their words stand there themselves, in any order."""
    examples, mixtures, count = [], [], model.config.queries
    for texts, pictures in rows:
        line, told = [], []
        for text, picture in itertools.zip_longest(texts, pictures, fillvalue=()):
            shown = [token for fact in rng.sample(picture, len(picture)) for token in fact]
            if picture and (not mixtures or rng.random() < MIXED):
                shown = [IMAGE_ID] * count
                mixtures.append(mixture(picture, count, rng, normal))
            line += text + shown
            told += text + [IGNORE] * len(shown)
        examples.append((line[:-1], answers_of(told, model.tokenizer)))
    found, shares = zip(*mixtures, strict=True)
    noise = normal.standard_normal((len(found), count, model.config.llama_width), dtype=np.float32)
    ids, targets = pad_examples(examples)
    more = 0, -ids.shape[1] % 64          # few widths T: malloc gets slow when there are many
    weights = pad_sequence([share.T for share in shares], batch_first=True).mT.contiguous()
    return (F.pad(ids, more), F.pad(targets, more, value=IGNORE),
            pad_sequence(found, batch_first=True), weights, NOISE * torch.from_numpy(noise))


def language_loss(model, batch):
    """The loss of a batch of `batches`, a scalar; without adapters. All targets weigh the same:
    when yes and no weighed more, they became the reply to whatever was not understood."""
    llama, device = model.llama, model.llama.embed.weight.device
    ids, targets, words, weights, noise = (tensor.to(device) for tensor in batch)
    keep = targets != IGNORE
    with torch.autocast(device.type, torch.bfloat16):
        vectors = weights @ llama.embed(words) + noise        # (N, Q, D)
        logits = llama.head(llama.hidden(model.embed_ids(ids, vectors))[keep])
    return F.cross_entropy(logits.float(), targets[keep])
