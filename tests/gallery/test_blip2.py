"""gallery/blip2.py: texts without what a plain scene hides, masks, and each objective's value."""
import math
from dataclasses import replace

import pytest
import torch

from artgpt4 import QFormer, QFormerConfig
from gallery import blip2
from gallery.pretrain import initialise
from gallery.scenes import MOODS, STYLES, random_scenes

CONFIG = QFormerConfig(width=8, layers=3, heads=2, mlp_width=16, queries=4)


@pytest.fixture
def parts():
    """(Q-Former, the words' side, patches (3, 5, 6), ids (3, T)), all random."""
    torch.manual_seed(0)
    qformer, words = QFormer(CONFIG, 6), blip2.Blip2(CONFIG)
    initialise(qformer)
    texts = [blip2.text_of(scene) for scene in random_scenes(3, "blip2")]
    return qformer, words, torch.randn(3, 5, 6), blip2.ids_of(texts)


def test_a_text_tells_neither_style_nor_mood():
    assert not {*STYLES, *MOODS} & set(blip2.WORDS)
    scene = random_scenes(1, "blip2")[0]
    texts = [blip2.text_of(replace(scene, style=style)) for style in STYLES]
    assert all(text == texts[0] for text in texts)


def test_words_are_told_apart_and_the_longest_text_fits():
    assert len(set(blip2.WORDS)) == len(blip2.WORDS)
    texts = [blip2.text_of(scene, ["fog", "rain"]) for scene in random_scenes(200, 1)]
    assert max(map(len, texts)) == blip2.LENGTH
    ids = blip2.ids_of(texts)
    told = [[blip2.WORDS[number] for number in row if number] for row in ids.tolist()]
    assert told == texts


def test_the_queries_beside_words_that_they_do_not_see_are_those_of_the_q_former(parts):
    qformer, words, patches, ids = parts
    for objective in ("contrastive", "captioning"):
        queries, _ = words.together(qformer, patches, ids, getattr(words, objective))
        torch.testing.assert_close(queries, qformer(patches))
    queries, _ = words.together(qformer, patches, ids, words.matching)
    assert (queries - qformer(patches)).abs().max() > 0.01


def test_a_text_apart_depends_on_no_picture_and_a_caption_on_no_later_word(parts):
    qformer, words, patches, ids = parts
    other, later = patches.flip(0), ids.clone()
    later[:, 4] = blip2.NUMBER_OF["cat"]

    def told(patches, ids, objective):
        return words.together(qformer, patches, ids, getattr(words, objective))[1]
    apart = told(patches, ids, "contrastive")
    torch.testing.assert_close(told(other, ids, "contrastive"), apart)
    caption, changed = told(patches, ids, "captioning"), told(patches, later, "captioning")
    torch.testing.assert_close(changed[:, :4], caption[:, :4])
    assert (changed[:, 4:] - caption[:, 4:]).abs().max() > 0.01
    assert (told(other, ids, "captioning") - caption).abs().max() > 0.001


def test_the_contrastive_loss_takes_the_most_similar_query_and_equal_texts_as_equally_right():
    image = torch.eye(4)[torch.tensor([[0, 3], [1, 3]])]      # two queries each
    text = torch.eye(4)[[0, 1]]
    loss, logits = blip2.contrastive_loss(image, text, torch.eye(2).bool(), 0.5)
    assert logits.tolist() == [[2, 0], [0, 2]]
    torch.testing.assert_close(loss.item(), math.log(1 + math.exp(-2)))
    equal, _ = blip2.contrastive_loss(image[[0, 0]], text[[0, 0]], torch.ones(2, 2).bool(), 0.5)
    torch.testing.assert_close(equal.item(), math.log(2))


def test_a_hard_negative_is_the_most_similar_of_the_other_texts():
    same = torch.eye(3).bool()
    same[0, 1] = same[1, 0] = True                            # texts 0 and 1 are equal
    logits = torch.tensor([[90.0, 90, 0], [90, 90, 0], [0, 60, 90]])
    assert blip2.hard_negatives(logits, same).tolist() == [2, 2, 1]


def test_untrained_objectives_are_near_chance_and_reach_all_that_is_trained(parts):
    qformer, words, patches, ids = parts
    losses = words(qformer, patches, ids)
    chance = {"matching": math.log(2), "captioning": math.log(len(blip2.WORDS))}
    for objective, value in chance.items():
        assert abs(losses[objective].item() - value) < 1, objective
    sum(losses.values()).backward()
    for module in (qformer, words):
        assert all(parameter.grad is not None for parameter in module.parameters())
