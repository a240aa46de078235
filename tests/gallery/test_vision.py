"""gallery/vision.py: the heads' targets, one by one, and how training starts."""
import torch

from artgpt4 import ArtGPT4
from gallery import vision
from gallery.pretrain import TINY, initialise


def a_batch():
    """(pixels, what they show, labels) of 6 plain scenes."""
    return vision.PlainScenes(6, 112, 3, steps=4, batch=6)[1]


def test_a_batch_depends_on_seed_and_step_alone():
    scenes = vision.PlainScenes(6, 112, 3, steps=9, batch=4)
    pixels, shown, _ = scenes[5]
    torch.manual_seed(1)
    again, shown_again, _ = scenes[5]
    assert torch.equal(pixels, again) and torch.equal(shown, shown_again)
    assert not torch.equal(pixels, scenes[6][0])
    seen = [number for step in range(3) for number in scenes.chosen(step)]
    assert sorted(seen) == sorted(2 * list(range(6)))         # every scene once in an epoch


def test_every_query_has_a_task():
    tasks = [task.reads for task in vision.TASKS.values() if task.reads is not None]
    queries = {number for reads in tasks for number in range(16)[reads]}
    assert queries == set(range(TINY.qformer.queries))


def test_every_head_gets_a_target_of_its_size():
    x, shown, labels = a_batch()
    targets, subject_shares = vision.targets_of(x, shown, labels, patches_across=8)
    assert targets.keys() == vision.TASKS.keys()
    for name, task in vision.TASKS.items():
        vectors = 64 if task.reads is None else len(range(16)[task.reads])
        assert targets[name].shape == (6, vectors, task.outputs), name
    assert subject_shares.shape == (6, 64)
    assert 0 <= subject_shares.min() <= subject_shares.max() <= 1


def test_targets_that_are_shares_sum_to_one():
    targets, _ = vision.targets_of(*a_batch(), patches_across=8)
    for name, task in vision.TASKS.items():
        if task.loss is vision.shares_loss:
            torch.testing.assert_close(targets[name].sum(dim=-1),
                                       torch.ones(targets[name].shape[:-1]), msg=name)


def test_the_box_is_the_centre_and_deviation_of_the_subject():
    subject = torch.zeros(1, 8, 8)
    subject[0, 4, 1:3] = 1                          # fields 1 and 2 of row 4
    centre_x, centre_y, deviation_x, deviation_y = vision.box_of(subject)[0, 0].tolist()
    assert (centre_x, centre_y) == (2 / 8, 4.5 / 8)
    assert (deviation_x, deviation_y) == (0.5 / 8, 0)


def test_the_cells_of_the_grid_are_read_row_by_row():
    fields = torch.arange(36.).view(1, 1, 6, 6)
    cells = vision.cells_of(fields)
    assert cells.shape == (1, 9, 4)
    assert cells[0, 1].tolist() == [2, 3, 8, 9] and cells[0, 3].tolist() == [12, 13, 18, 19]


def test_a_red_picture_is_one_bin_of_the_histogram():
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 112, 112)
    shares = vision.histogram(red)[0, 0]
    assert shares.nonzero().tolist() == [[3 * 16]] and shares.sum() == 1


def test_pointing_is_free_when_all_attention_is_on_the_subject_or_it_is_hidden():
    subject = torch.zeros(2, 4)
    subject[0, 1:3] = 1                             # of the first picture alone
    attention = torch.zeros(2, 16, 5)
    attention[:, 0, 2:4] = 0.5                      # patches 1 and 2; the first is the class token
    assert vision.pointing_loss(attention, subject) == 0
    attention[:, 0] = torch.tensor([0.5, 0, 0.5, 0, 0])
    torch.testing.assert_close(vision.pointing_loss(attention, subject),
                               torch.tensor(0.5).log() / -2)


def test_small_output_matrices_keep_the_untrained_queries_apart():
    torch.manual_seed(0)
    model = ArtGPT4(TINY, None)
    for part in (model.vit, model.qformer):
        initialise(part)
    x, _, _ = a_batch()

    def cosine():
        with torch.no_grad():
            queries = model.qformer(model.ln_vision(model.vit(x)))
        queries = torch.nn.functional.normalize(queries, dim=-1)
        count = queries.shape[1]
        return ((queries @ queries.mT).mean() * count - 1) / (count - 1)
    before = cosine()
    vision.shrink_outputs(model)
    assert cosine() < 0.6 < before


def test_the_loss_names_the_share_of_subjects_and_reaches_all_that_is_trained():
    torch.manual_seed(0)
    model = ArtGPT4(TINY, None)
    for part in (model.vit, model.qformer):
        initialise(part)
    parameters, loss_of_step = vision.vision_objective(model, 2, 4, 6, seed=1)
    loss, note = loss_of_step(0)
    loss.backward()
    assert note.startswith(", subject ")
    assert all(parameter.grad is not None for parameter in parameters)
