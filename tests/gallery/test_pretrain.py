"""gallery/pretrain.py and vision.py: batches, their targets, and a few steps at the real sizes."""
import json
import random

import numpy as np
import pytest
import torch

from artgpt4 import IMAGE_MARK, ArtGPT4
from common.models import answers
from gallery import pretrain, vision
from gallery.attention import watched
from gallery.familiarity import read_measure
from gallery.painting import draw
from gallery.pretrain import TINY
from gallery.scenes import random_scenes

PICTURES = np.stack([np.asarray(draw(scene, 56)) for scene in random_scenes(4, "effects")])


@pytest.mark.parametrize("effect", vision.EFFECTS[1:])
def test_an_effect_depends_on_the_seeds_alone_and_changes_the_picture(effect):
    x = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 255
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(effect(x, random.Random(0)))
    assert results[0].shape == x.shape and torch.equal(*results) and not torch.equal(results[0], x)


def test_photographs_lie_in_0_to_1_and_have_effects_only_when_a_share_is_asked_for():
    for share in (0, 1):
        x, labels = vision.photograph(PICTURES, random.Random(0), share)
        assert x.shape == (4, 3, 56, 56) and 0 <= x.min() and x.max() <= 1
        assert labels.shape == (4, 2) and labels.any() == bool(share)


def test_a_batch_depends_on_seed_and_step_alone_and_has_every_scene_once_in_an_epoch():
    photographs = vision.Photographs(TINY, 6, seed=3, steps=9, batch=4)
    pixels, targets, _ = photographs[5]
    torch.manual_seed(1)
    again, _, _ = photographs[5]
    assert torch.equal(pixels, again) and not torch.equal(pixels, photographs[6][0])
    seen = [number for step in range(3) for number in photographs.chosen(step)]
    assert sorted(seen) == sorted(2 * list(range(6)))
    assert targets.keys() == vision.TASKS.keys()
    for name, task in vision.TASKS.items():
        vectors = 64 if task.reads is None else len(range(TINY.queries)[task.reads])
        assert targets[name].shape == (4, vectors, task.outputs), name
        if task.loss is vision.shares_loss:
            torch.testing.assert_close(targets[name].sum(dim=-1), torch.ones(4, vectors), msg=name)


def test_every_query_has_a_task():
    tasks = [task.reads for task in vision.TASKS.values() if task.reads is not None]
    queries = {number for reads in tasks for number in range(TINY.queries)[reads]}
    assert queries == set(range(TINY.queries))


def test_targets_say_where_the_subject_is_and_which_colours_and_how_rough_a_picture_is():
    subject = torch.zeros(1, 8, 8)
    subject[0, 4, 1:3] = 1                                    # fields 1 and 2 of row 4
    torch.testing.assert_close(vision.box_of(subject)[0, 0],
                               torch.tensor([2, 4.5, 0.5, 0]) / 8)
    cells = vision.cells_of(torch.arange(36.).view(1, 1, 6, 6))          # row by row
    assert cells[0, 1].tolist() == [2, 3, 8, 9] and cells[0, 3].tolist() == [12, 13, 18, 19]
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 112, 112)
    assert vision.histogram(red)[0, 0].nonzero().tolist() == [[3 * 16]]
    flat = vision.roughness(torch.full((1, 3, 56, 56), 0.5), 8)
    noise = vision.roughness(torch.rand(1, 3, 56, 56), 8)
    assert flat[..., 2:-2, 2:-2].max() < 1e-4 and noise.mean(dim=(0, 2, 3)).min() > 0.5


def test_pointing_is_free_when_all_attention_is_on_the_subject_or_it_is_hidden():
    subject = torch.zeros(2, 4)
    subject[0, 1:3] = 1                                       # of the first picture alone
    attention = torch.zeros(2, 16, 5)
    attention[:, 0, 2:4] = 0.5                # patches 1 and 2; 0 is the class token
    assert vision.pointing_loss(attention, subject) == 0
    attention[:, 0] = torch.tensor([0.5, 0, 0.5, 0, 0])
    torch.testing.assert_close(vision.pointing_loss(attention, subject),
                               torch.tensor(0.5).log() / -2)


def test_the_queries_are_watched_where_they_see_the_image_last(tiny):
    patches = torch.randn(2, 65, TINY.vit_width)
    with torch.inference_mode():
        queries, attention = watched(tiny.qformer, patches)
        torch.testing.assert_close(queries, tiny.qformer(patches))
        cross = tiny.qformer.layers[2].cross_attn             # layers 0 and 2 of 4 see the image
        seen = []
        hook = cross.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        tiny.qformer(patches)
        hook.remove()
        q, k = (linear(x).unflatten(-1, (cross.heads, -1)).transpose(1, 2)
                for linear, x in ((cross.query, seen[0]), (cross.key, patches)))
        expected = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)
    torch.testing.assert_close(attention, expected)


def test_small_output_matrices_keep_the_untrained_queries_apart_and_all_parts_learn():
    torch.manual_seed(0)
    model = ArtGPT4(TINY, None)
    for part in (model.vit, model.qformer):
        pretrain.initialise(part)
    photographs = vision.Photographs(TINY, 6, seed=1, steps=2, batch=4)

    def cosine():
        with torch.no_grad():
            queries = model.qformer(model.ln_vision(model.vit(photographs[0][0])))
        queries = torch.nn.functional.normalize(queries, dim=-1)
        return ((queries @ queries.mT).mean() * TINY.queries - 1) / (TINY.queries - 1)
    before = cosine()
    vision.shrink_outputs(model)
    assert cosine() < 0.6 < before
    parameters, loss_of_step = vision.vision_objective(model, photographs)
    loss, note = loss_of_step(0)
    loss.backward()
    assert note.startswith(", subject ")
    assert all(parameter.grad is not None for parameter in parameters)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder that a pre-training of two steps writes."""
    folder = tmp_path_factory.mktemp("pretrain")
    flags = ("--vision-steps 2 --vision-batch 4 --pictures 6 --language-steps 2 "
             "--language-batch 2 --out").split()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pretrain.main(pretrain.command_line().parse_args([*flags, str(folder / "tiny")]))
    return folder / "tiny"


def test_pre_training_moves_both_sides_alone_and_writes_a_folder_that_answers(written):
    model = ArtGPT4.from_pretrained(written, dtype=torch.float32)
    assert model.config == TINY and model.tokenizer.get_piece_size() == TINY.vocab_size
    assert json.loads((written / "about.json").read_text()) == pretrain.ABOUT
    assert read_measure(written)["directions"].shape == (32, TINY.qformer_width + 1)
    torch.manual_seed(42)
    before, trained = ArtGPT4(TINY, model.tokenizer), dict(model.named_parameters())
    # Moved by more than the rounding to half precision:
    moved = {name for name, parameter in before.named_parameters()
             if not torch.allclose(trained[name], parameter, atol=2e-4, rtol=2e-3)}
    assert {"vit.blocks.0.attn.query.weight", "qformer.queries", "llama.embed.weight"} <= moved
    assert not any(".adapter." in name or name.startswith("proj.") for name in moved)
    with torch.inference_mode():
        image_embeds = model.encode_image(torch.zeros(1, 3, TINY.image_size, TINY.image_size))
        embeds = model.embed_prompt(IMAGE_MARK, image_embeds)
    assert isinstance(answers(model, embeds, 3, temperature=0)[0], str)


def test_a_saved_folder_is_the_same_to_the_byte(written, tmp_path):
    pretrain.save_pretrained(ArtGPT4.from_pretrained(written), tmp_path)
    saved = sorted(tmp_path.iterdir())
    assert [file.name for file in saved] == ["adapter.safetensors", "config.json",
                                             "llama.safetensors", "tokenizer.model",
                                             "vision.safetensors"]
    for file in saved:
        assert file.read_bytes() == (written / file.name).read_bytes(), file.name
