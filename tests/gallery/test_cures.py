"""gallery/cures.py: the variants' starts and objectives, and the command on tiny numbers."""
import json

import pytest
import torch

from common.command_line import run_command
from gallery import cures
from gallery.pretrain import TINY
from gallery.vision import PlainScenes


def test_all_variants_have_the_same_start_or_that_with_small_outputs():
    plain, again, small = (cures.start_of(3, small).state_dict() for small in (0, 0, 1))
    assert all(torch.equal(again[name], tensor) for name, tensor in plain.items())
    changed = {name for name, tensor in plain.items() if not torch.equal(small[name], tensor)}
    assert "qformer.queries" in changed and "vit.blocks.0.attn.proj.weight" in changed
    assert all(name.endswith(("proj.weight", "fc2.weight", "out.weight", "queries"))
               for name in changed)


def test_a_batch_has_the_words_of_its_own_scenes_in_order():
    scenes = PlainScenes(5, TINY.image_size, 1, steps=2, batch=3)
    for step, batch in enumerate(cures.batches(scenes, workers=0)):
        shown = [scenes.scenes[number] for number in scenes.chosen(step)]
        assert torch.equal(batch.ids, cures.ids_of([cures.text_of(scene) for scene in shown]))
        subjects = batch.targets["subject"][:, 0].argmax(dim=1).tolist()
        assert subjects == [cures.READ["subject"].index(scene.subject) for scene in shown]
        effects = (batch.targets["effects"][:, 0] > 0).sum(dim=1)
        longer = (batch.ids_with_effects > 0).sum(dim=1) - (batch.ids > 0).sum(dim=1)
        assert torch.equal(longer, effects)


def test_the_term_against_equal_queries_is_their_mean_squared_cosine():
    equal = torch.ones(2, 3, 4)
    assert cures.mean_squared_cosine(equal).item() == pytest.approx(1)
    apart = torch.eye(4)[None, :3]
    assert cures.mean_squared_cosine(apart).item() == pytest.approx(0)
    assert cures.mean_squared_cosine(torch.tensor([[[2.0, 0], [-3, 0]]])).item() == 1


def test_heads_on_the_mean_cannot_tell_the_order_of_the_queries():
    objective = cures.OnTheMean(TINY)
    batch = next(cures.batches(PlainScenes(2, TINY.image_size, 1, steps=1, batch=2), workers=0))
    queries = torch.randn(2, TINY.qformer.queries, TINY.qformer.width)
    patches = torch.randn(2, 65, TINY.vit.width)
    losses = [objective(lambda patches, order=order: queries[:, order], patches, batch)
              for order in (torch.arange(16), torch.arange(15, -1, -1))]
    torch.testing.assert_close(*losses)


def test_the_command_measures_the_variants_and_prints_the_same_tables_again(
        tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ("--steps 1 --batch 2 --pictures 2 --paintings 4 --held-out 2 --scores "
             "cures.json --variants").split()
    names = ["mean-apart", "tasks-pointing", "blip2-effects"]
    run_command(cures.main, cures.command_line(), flags + names)
    printed = capsys.readouterr().out
    for name in names:
        label = cures.VARIANTS[name].label
        assert printed.count(f"| {label} |") == 2             # all queries, their mean
    numbers = json.loads((tmp_path / "cures.json").read_text())
    assert numbers["settings"]["steps"] == 1 and set(numbers["variants"]) == set(names)
    for found in numbers["variants"].values():
        assert set(found["cosine"]) == set(found["read"]["their mean"]) == set(cures.PAIRS)
    run_command(cures.main, cures.command_line(), ["--table", "--scores", "cures.json"])
    assert capsys.readouterr().out == printed
