"""gallery/score.py: the held-out paintings and the share that texts name rightly."""
import random

from gallery import score, words
from gallery.scenes import SEEN_PAIRS, UNSEEN_PAIRS, random_scenes


def test_scores_count_what_texts_name_rightly():
    scenes = random_scenes(4, "score")
    texts = [words.caption(scene, random.Random(0)) for scene in scenes]
    columns = (*score.ATTRIBUTES, "all")
    assert score.named_rightly(scenes, texts) == dict.fromkeys(columns, 1.0)
    texts[0] = "nothing"
    assert score.named_rightly(scenes, texts) == dict.fromkeys(columns, 0.75)


def test_held_out_paintings_are_in_no_training_set():
    training = set(random_scenes(5000, "training"))
    assert not training & set(score.held_out(SEEN_PAIRS))
    assert len(score.held_out(UNSEEN_PAIRS)) == 200


def test_the_table_has_a_row_of_percentages_for_each_set():
    shares = dict(zip((*score.ATTRIBUTES, "all"), (1, 0.5, 0.25, 0.125, 0.46875), strict=True))
    assert score.table({"seen pairs": shares}).splitlines() == [
        "| named rightly | subject | style | palette | mood | all |",
        "|---|---|---|---|---|---|",
        "| seen pairs | 100.0 % | 50.0 % | 25.0 % | 12.5 % | 46.9 % |"]
