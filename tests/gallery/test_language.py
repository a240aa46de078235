"""gallery/language.py: the documents that a language model is pre-trained on, and their tokens."""
import itertools
import random

import numpy as np
import torch

from artgpt4 import IGNORE, IMAGE_ID, IMAGE_MARK, IMAGE_SLOT, SYSTEM
from gallery import language
from gallery.scenes import random_scenes


def test_batches_are_the_same_for_the_same_seed(tiny):
    batches, others = (list(itertools.islice(language.batches(tiny, 7, 2), 18)) for _ in range(2))
    for batch, other in zip(batches, others, strict=True):
        assert all(map(torch.equal, batch, other))
        ids, targets, words, _, noise = batch
        assert ids[:, 0].tolist() == [tiny.tokenizer.bos_id()] * 2
        assert ids.shape == targets.shape and ids.shape[1] % 64 == 0
        assert int((ids == IMAGE_ID).sum()) == 16 * len(words) == 16 * len(noise)
        assert not (targets[:, :-1][ids[:, 1:] == IMAGE_ID] != IGNORE).any()
    assert not torch.equal(batches[0][1], batches[16][1])     # targets, the second of the next 16


def test_a_document_has_its_pictures_between_its_texts():
    rng = random.Random(0)
    for pair in itertools.pairwise(random_scenes(401, "documents")):
        prompt, answer, scenes = language.document(*pair, rng)
        slot = IMAGE_SLOT if prompt.startswith(SYSTEM) else IMAGE_MARK
        assert prompt.count(slot) == len(scenes) > 0 and set(scenes) <= set(pair)
        assert IMAGE_MARK not in answer and answer.endswith(("\n", "###"))


def test_each_vector_of_a_picture_in_words_tells_one_fact_above_all(tiny):
    facts = [tiny.tokenizer.encode(fact) for fact in ("cat", "far away", "birds", "land", "oil")]
    shares = []
    for seed in range(20):
        _, weights = language.mixture(facts, 16, random.Random(seed), np.random.default_rng(seed))
        shares += [max(part.sum() for part in row.split(list(map(len, facts)))) for row in weights]
    assert sum(shares) / len(shares) > 0.7                    # of equal weights 0.2 to 0.4
