"""gallery/familiarity.py: the measure of foreign pictures."""
from pathlib import Path

import torch

from artgpt4 import ArtGPT4
from gallery import familiarity

TINY = Path(__file__).parent.parent.parent / "weights" / "tiny"


def test_the_mean_query_is_what_the_projection_was_given():
    model = ArtGPT4.from_pretrained(TINY, dtype=torch.float32)
    queries = torch.randn(3, 16, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = familiarity.mean_query(model, model.proj(queries))
    assert torch.allclose(found, queries.mean(dim=1), atol=1e-3)


def test_what_lies_off_the_training_pictures_is_unfamiliar():
    model = ArtGPT4.from_pretrained(TINY, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    spread = torch.linspace(0.01, 2, 128)
    trained, held_out = (torch.randn(800, 128, generator=generator) * spread for _ in range(2))
    about = familiarity.fit(trained, held_out)
    far = familiarity.distance(about, held_out) > about["threshold"]
    assert 0.01 < far.float().mean() < 0.03
    image_vectors = model.proj(held_out[:1] + torch.zeros(16, 128))
    model.config.about = {}
    assert familiarity.unfamiliar(model, image_vectors) is None
    model.config.about = {"familiar": about}
    assert familiarity.unfamiliar(model, image_vectors) == bool(far[0])
    assert familiarity.unfamiliar(model, model.proj(torch.ones(16, 128))) is True


def test_foreign_pictures_are_the_same_each_time():
    first, again = (familiarity.foreign_pictures(2) for _ in range(2))
    assert len(first) == 5
    for kind, images in first.items():
        assert [image.tobytes() for image in images] == [image.tobytes() for image in again[kind]]
