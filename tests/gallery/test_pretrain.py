"""gallery/pretrain.py, vision.py: batches and their targets, a few steps at the real sizes."""
import filecmp
import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from artgpt4 import ArtGPT4
from gallery import pretrain, vision
from gallery.attention import watched
from gallery.familiarity import read_measure
from gallery.painting import draw
from gallery.pretrain import TINY
from gallery.scenes import random_scenes
from gallery.score import describe
from tests.conftest import run

[SCENE] = random_scenes(1, "effects")


@pytest.mark.parametrize("effect", vision.EFFECTS[1:])
def test_an_effect_depends_on_the_seeds_alone_and_changes_the_picture(effect):
    x, results = torch.tensor(np.asarray(draw(SCENE, 56))).permute(2, 0, 1)[None] / 255, []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(effect(x, random.Random(0)))
    assert results[0].shape == x.shape and torch.equal(*results) and not torch.equal(results[0], x)


def test_a_batch_depends_on_seed_and_step_alone_and_every_query_has_a_task():
    scenes = vision.plain_scenes(6, 3, TINY.image_size)
    first, again = (list(vision.photographs(scenes, TINY, seed=3, steps=9, batch=4))
                    for _ in range(2))
    for (pixels, _), (same, _) in zip(first, again, strict=True):
        assert torch.equal(pixels, same)
    pixels, targets = first[5]
    assert not torch.equal(pixels, first[6][0]) and targets.keys() == vision.TASKS.keys()
    seen = torch.cat([targets["subject"] for _, targets in first[:3]])
    assert torch.equal(seen.sum(dim=0), 2 * scenes[1]["subject"].sum(dim=0))    # once in an epoch
    queries = set()
    for name, task in vision.TASKS.items():
        reads = range(64) if task.reads is None else range(TINY.queries)[task.reads]
        queries |= set() if task.reads is None else set(reads)
        assert targets[name].shape == (4, len(reads), task.outputs), name
        if task.loss is F.cross_entropy:
            torch.testing.assert_close(targets[name].sum(dim=-1), torch.ones(4, len(reads)))
    assert queries == set(range(TINY.queries))


def test_targets_say_where_the_subject_is_and_which_colours_there_are():
    subject = torch.zeros(1, 8, 8)
    subject[0, 4, 1:3] = 1                                    # fields 1 and 2 of row 4
    torch.testing.assert_close(vision.box_of(subject)[0, 0],
                               torch.tensor([2, 4.5, 0.5, 0]) / 8)
    cells = vision.cells_of(torch.arange(36.).view(1, 1, 6, 6))          # row by row
    assert cells[0, 1].tolist() == [2, 3, 8, 9] and cells[0, 3].tolist() == [12, 13, 18, 19]
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 112, 112)
    assert vision.histogram(red)[0, 0].nonzero().tolist() == [[3 * 16]]


def test_the_queries_are_watched_where_they_see_the_image_last_and_pointing_is_rewarded(tiny):
    patches, seen = torch.randn(2, 65, TINY.vit_width), []
    cross = tiny.qformer.layers[2].cross_attn                 # layers 0 and 2 of 4 see the image
    hook = cross.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        queries, attention = watched(tiny.qformer, patches)
        torch.testing.assert_close(queries, tiny.qformer(patches))
        q, k = (linear(x).unflatten(-1, (cross.heads, -1)).transpose(1, 2)
                for linear, x in ((cross.query, seen[0]), (cross.key, patches)))
    hook.remove()
    expected = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)
    torch.testing.assert_close(attention, expected)
    subject, attention = torch.zeros(2, 4), torch.zeros(2, 16, 5)
    subject[0, 1:3] = 1                                       # in the second picture it is hidden
    attention[:, 0, 2:4] = 0.5
    assert vision.pointing_loss(attention, subject) == 0
    attention[:, 0] = torch.tensor([0.5, 0, 0.5, 0, 0])
    torch.testing.assert_close(vision.pointing_loss(attention, subject),
                               torch.tensor(0.5).log() / -2)


def test_pre_training_moves_both_sides_alone_and_writes_a_folder_that_answers(here):
    flags = ["--batch-size", 3, "--pictures", 6, "--vision-steps"]
    run(pretrain.main, pretrain.command_line(), *flags, 1, "--language-steps", 1, "--out", "tiny")
    model = ArtGPT4.from_pretrained("tiny", dtype=torch.float32)
    assert model.config == TINY and model.tokenizer.get_piece_size() == TINY.vocab_size
    assert [model.tokenizer.encode(f"a cat{mark}", out_type=str)[-1] for mark in ":.,"] == [*":.,"]
    assert json.loads((here / "tiny" / "about.json").read_text()) == pretrain.ABOUT
    assert read_measure("tiny")["directions"].shape == (32, TINY.qformer_width)
    torch.manual_seed(42)
    before, trained = ArtGPT4(TINY, model.tokenizer), dict(model.named_parameters())
    moved = {name for name, parameter in before.named_parameters()       # by more than rounding
             if not torch.allclose(trained[name], parameter, atol=2e-4, rtol=2e-3)}
    assert {"vit.blocks.0.attn.query.weight", "qformer.queries", "llama.embed.weight",
            "ln_vision.bias", "qformer.layers.3.fc2.weight", "llama.head.weight"} <= moved
    assert not any(".adapter." in name or name.startswith("proj.") for name in moved)
    assert len(describe(model, np.stack([np.asarray(draw(SCENE))]), 1)) == 1
    further = ["--language-steps", 1, "--init", "tiny", "--out", "further"]
    run(pretrain.main, pretrain.command_line(), *flags, 0, *further)
    files = ["vision.safetensors", "tokenizer.model", "config.json", "llama.safetensors"]
    assert filecmp.cmpfiles("tiny", "further", files, shallow=False) == (files[:3], files[3:], [])
