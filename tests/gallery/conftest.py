"""The included model."""
import pytest
import torch

from artgpt4 import ArtGPT4
from common.models import TINY


@pytest.fixture(scope="session")
def tiny():
    """weights/tiny in float32, to be read only."""
    return ArtGPT4.from_pretrained(TINY, dtype=torch.float32)
