"""gallery/language.py: the documents that a language model is pre-trained on, and their tokens."""
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from artgpt4 import IMAGE_MARK, IMAGE_SLOT, SYSTEM, ArtGPT4
from gallery import language
from gallery.scenes import random_scenes

TINY = Path(__file__).parent.parent.parent / "weights" / "tiny"


@pytest.fixture(scope="module")
def model():
    return ArtGPT4.from_pretrained(TINY, dtype=torch.float32)


@pytest.fixture(scope="module")
def documents():
    rng = random.Random(0)
    scenes = random_scenes(401, "documents")
    return [language.document(*pair, rng, quizzes=0.3) for pair in itertools.pairwise(scenes)]


@pytest.fixture(scope="module")
def made(model):
    return language.Documents(model.tokenizer, batch=2, count=16, width=192, seed=7, quizzes=0.3)


def test_batches_are_the_same_for_the_same_seed_in_any_number_of_processes(model, made):
    batches = list(itertools.islice(made.batches(), 18))
    others = itertools.islice(made.batches(workers=1), 18)
    for batch, other in zip(batches, others, strict=True):
        for array, same in zip(batch, other, strict=True):
            assert array.dtype == same.dtype and np.array_equal(array, same)
        assert len(batch.ids) == 2 and set(batch.ids[:, 0]) == {model.tokenizer.bos_id()}
    assert not np.array_equal(batches[0].targets, batches[16].targets)     # of the next window


def test_a_batch_predicts_the_answers_of_a_conversation_and_no_question(model):
    encode = model.tokenizer.encode
    texts = [encode("###Human: <Img>"), encode("</Img> Is it a cat?###Assistant: No.###Human: "
                                               "Why?###Assistant: ") + encode("It is not.###")]
    row = (texts, [[encode(fact) for fact in ("tree", "far away", "alone", "land", "oil")]])
    seen = set()
    for seed in range(8):
        batch = language.batched([row], 16, 4, language.turns(model.tokenizer),
                                 random.Random(seed), np.random.default_rng(seed))
        predicted = model.tokenizer.decode(batch.targets.tolist())
        assert predicted.replace(" ", "") == "No.###Human:Itisnot.###"
        line = batch.ids[0].tolist() + batch.targets[-1:].tolist()
        assert [line[place + 1] for place in batch.learned] == batch.targets.tolist()
        if len(batch.places):
            assert batch.places.tolist() == [list(range(len(texts[0]), len(texts[0]) + 16))]
            assert np.allclose(batch.weights.sum(axis=2), 1)
        seen.add(len(batch.places))
    assert seen == {0, 1}                                     # mixed, and in words


def test_documents_never_hold_the_image_marker(documents):
    assert not any(IMAGE_MARK in text
                   for document in documents for parts in document.texts for text in parts)


def test_the_pictures_of_a_document_stand_between_its_texts(documents):
    numbers = set()
    for document in documents:
        assert len(document.texts) == len(document.pictures) + 1
        assert len(document.texts[-1]) == 2                   # the end of the prompt, the answer
        numbers.add(len(document.pictures))
        if document.texts[0][0].startswith(SYSTEM):
            before, after = IMAGE_SLOT.split(IMAGE_MARK)
            assert document.texts[0][0].endswith(before)
            assert all(parts[0].startswith(after) for parts in document.texts[1:])
    assert numbers == {1, 2}


def test_a_second_picture_comes_with_the_first_or_with_a_later_question(documents):
    between = [document.texts[1][0] for document in documents if len(document.pictures) == 2]
    together = [text for text in between if text == "</Img> <Img>"]
    assert 0 < len(together) < len(between)
    assert all("###Assistant: " in text for text in between if text not in together)


def test_each_vector_of_a_picture_in_words_tells_one_fact_above_all(model):
    embed, normal = model.llama.embed, np.random.default_rng(0)
    facts = [model.tokenizer.encode(fact) for fact in ("cat", "far away", "birds", "land", "oil",
                                                       "rose")]
    with torch.inference_mode():
        fact_vectors = torch.stack([embed(torch.tensor(fact)).mean(dim=0) for fact in facts])
        nearest = []
        for seed in range(20):
            owner = language.owners(len(facts), 16, random.Random(seed))
            words, weights = language.mixture(facts, 16, random.Random(seed), normal)
            vectors = torch.from_numpy(weights) @ embed(torch.from_numpy(words))
            cosines = torch.cosine_similarity(vectors[:, None], fact_vectors[None], dim=-1)
            nearest.append((cosines.argmax(dim=1).numpy() == owner).mean())
    assert vectors.shape == (16, 192)
    assert sum(nearest) / len(nearest) > 0.6                # by chance 0.17


def test_mixed_vectors_stand_at_their_places_and_all_else_is_words(model, made):
    embed = model.llama.embed
    batch = next(batch for batch in made.window(0) if len(batch.places)).to("cpu")
    with torch.inference_mode():
        vectors = language.embedded(embed, batch)
        mixed = batch.weights @ embed(batch.words) + batch.noise
        words = embed(batch.ids)
    flat = vectors.flatten(0, 1)
    assert torch.equal(flat[batch.places], mixed)
    others = torch.ones(len(flat), dtype=torch.bool)
    others[batch.places.flatten()] = False
    assert torch.equal(flat[others], words.flatten(0, 1)[others])
    assert not set(batch.places.flatten().tolist()) & set((batch.learned + 1).tolist())


def test_words_that_decide_weigh_more_in_the_loss(model, made):
    losses = []
    for weight in (1, 50):
        parameters, loss_of_step = language.language_objective(model, made.batches(), weight)
        loss, note = loss_of_step(0)
        losses.append(loss.item())
        assert loss.isfinite() and "yes or no right in" in note
    assert losses[0] != losses[1]
    assert not {id(p) for p in parameters} & {
        id(p) for block in model.llama.blocks for p in block.adapter.parameters()}
