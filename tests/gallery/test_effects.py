"""gallery/effects.py: photographs are pixels, and labelled with what was done to them."""
import random

import numpy as np
import pytest
import torch

from gallery.effects import EFFECTS, photograph, roughness
from gallery.painting import draw
from gallery.scenes import random_scenes

PICTURES = np.stack([np.asarray(draw(scene, 56)) for scene in random_scenes(4, "effects")])


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_depends_on_the_seeds_alone_and_changes_all_but_plain(name):
    x = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 255
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(EFFECTS[name](x, random.Random(0)))
    assert results[0].shape == x.shape and torch.equal(*results)
    assert torch.equal(results[0], x) == (name == "plain")


def test_photographs_lie_in_0_to_1_and_have_effects_only_when_a_share_is_asked_for():
    for share in (0, 1):
        x, labels = photograph(PICTURES, random.Random(0), share)
        assert x.shape == (4, 3, 56, 56) and 0 <= x.min() and x.max() <= 1
        assert labels.shape == (4, 2) and labels.any() == bool(share)


def test_a_flat_picture_is_not_rough_and_noise_is():
    flat = roughness(torch.full((1, 3, 56, 56), 0.5), 8)
    assert flat[..., 2:-2, 2:-2].abs().max() < 1e-4           # the picture's edge reads as rough
    noise = roughness(torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0)), 8)
    assert noise.shape == (1, 8, 8, 8) and noise.mean(dim=(0, 2, 3)).min() > 0.5
