"""gallery/references.py: what the rules give to texts whose worth is known beforehand."""
from statistics import fmean

import pytest

from gallery import benchmark
from gallery.references import REFERENCES, SYNONYMS, reference_answers
from gallery.scenes import MOODS, PALETTES, STYLES, SUBJECTS, THINGS
from gallery.words import mentioned


@pytest.fixture(scope="module")
def means():
    """{name of a reference: {benchmark: mean score}} over 54 items and 10 pages."""
    truth, found = benchmark.scenes(54, 10), {}
    for name, answers in reference_answers(truth).items():
        scores = {}
        for (kind, number), texts in answers.items():
            score, _ = benchmark.RULES[kind](truth[kind, number], None, texts)
            scores.setdefault(kind, []).append(score)
        found[name] = {kind: fmean(row) for kind, row in scores.items()}
    return found


def test_the_gallerys_own_sentences_are_the_ceiling(means):
    ceiling, floor, everything, sentences, synonyms = (means[name] for name in REFERENCES)
    assert all(score >= 4 for score in ceiling.values())
    assert set(everything.values()) <= {0, 1} and everything["IDC"] == everything["ICRC"] == 0
    assert all(floor[kind] < 2 for kind in floor)
    assert all(ceiling[kind] >= sentences[kind] >= synonyms[kind] for kind in ceiling)
    assert sentences["IDC"] == 4 and sentences["ICRC"] == 4


def test_no_synonym_is_one_of_the_gallerys_names():
    names = (*SUBJECTS, *STYLES, *PALETTES, *MOODS, *THINGS)
    assert not any(mentioned(synonym, names) for synonym in SYNONYMS.values())
