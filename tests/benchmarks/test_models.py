"""Models of random weights, and the clocks."""
from dataclasses import replace

import pytest
import torch

from benchmarks.models import LanguageModel, in_turns, matrix_weights, random_model, seconds
from tests.benchmarks.small_model import SMALL


def test_random_weights_have_a_place_of_their_own_and_the_shape_that_was_asked():
    model = random_model(SMALL)
    weight = model.llama.blocks[3].mlp.down.weight
    assert weight.shape == (256, 704)
    assert weight.std().item() == pytest.approx(704 ** -0.5, rel=0.05)
    assert weight.untyped_storage().nbytes() == weight.nbytes
    count, size = matrix_weights(model.llama)
    assert count == 6 * (4 * 256 ** 2 + 3 * 256 * 704 + 2 * 256 * 64) + 256 * 1500
    assert size == 4 * (count + 6 * (256 + 64))


def test_int8_weights_are_a_byte_each_and_as_large_as_float_ones():
    model = random_model(replace(SMALL, llama=replace(SMALL.llama, int8=True)))
    down = model.llama.blocks[3].mlp.down
    assert down.weight.dtype == torch.int8
    values = down.weight.float() * down.scale[:, None]
    assert values.std().item() == pytest.approx(704 ** -0.5, rel=0.05)


def test_every_runner_has_a_speed_of_prefill_and_decode():
    model = random_model(SMALL)
    first, second = LanguageModel(model.llama), LanguageModel(model.llama)
    speeds = in_turns([first, second], 8, 4, 2)
    assert list(speeds) == [first, second]
    assert all(value > 0 for pair in speeds.values() for value in pair)
    assert first.cache.length == 8 + 4


def test_a_run_is_timed_after_one_to_warm_up():
    runs = []

    def run():
        runs.append(len(runs))
        return torch.zeros(1)

    assert seconds(run, repeats=3) > 0
    assert runs == [0, 1, 2, 3]
