"""The included model, and a few held-out paintings."""
import pytest
import torch

from artgpt4 import ArtGPT4
from common.models import TINY
from gallery.painting import paint
from gallery.scenes import random_scenes


@pytest.fixture(scope="session")
def tiny():
    """weights/tiny in float32, to be read only."""
    return ArtGPT4.from_pretrained(TINY, dtype=torch.float32)


@pytest.fixture(scope="session")
def pictures():
    """Paintings of random_scenes(4, "held out") as PIL images."""
    return [paint(scene) for scene in random_scenes(4, "held out")]
