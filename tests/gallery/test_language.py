"""gallery/language.py: the documents that a language model is pre-trained on, and their tokens."""
import itertools
import random
from pathlib import Path

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


def test_batches_of_documents_are_the_same_for_the_same_seed(model):
    runs = []
    for _ in range(2):
        batches = language.document_batches(model.tokenizer, 2, 7, random.Random(7), window=3)
        runs.append(list(itertools.islice(batches, 5)))
    assert runs[0] == runs[1] and all(len(batch) == 2 for batch in runs[0])
    begins = [texts[0][0] for batch in runs[0] for texts, _ in batch]
    assert set(begins) == {model.tokenizer.bos_id()}


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
    torch.manual_seed(0)
    embed = model.llama.embed
    facts = [model.tokenizer.encode(fact) for fact in ("cat", "far away", "birds", "land", "oil",
                                                       "rose")]
    with torch.inference_mode():
        fact_vectors = torch.stack([embed(torch.tensor(fact)).mean(dim=0) for fact in facts])
        nearest = []
        for seed in range(20):
            rng = random.Random(seed)
            owner = language.owners(len(facts), 16, random.Random(seed))
            vectors = language.mixed(embed, facts, 16, rng)
            cosines = torch.cosine_similarity(vectors[:, None], fact_vectors[None], dim=-1)
            nearest.append((cosines.argmax(dim=1) == owner).float().mean())
    assert vectors.shape == (16, 192)
    assert sum(nearest) / len(nearest) > 0.6                # by chance 0.17


def test_no_token_of_a_picture_is_predicted(model):
    parameters, loss_of_step = language.language_objective(model, batch=2, seed=1)
    assert not {id(p) for p in parameters} & {
        id(p) for block in model.llama.blocks for p in block.adapter.parameters()}
    loss, note = loss_of_step(0)
    assert loss.isfinite() and "yes or no right in" in note
