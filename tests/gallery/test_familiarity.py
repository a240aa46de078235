"""gallery/familiarity.py: the measure of foreign pictures."""
import numpy as np
import pytest
import torch
from PIL import Image

from common.models import TINY
from gallery import familiarity


def test_what_lies_off_the_training_pictures_is_unfamiliar(tiny):
    generator = torch.Generator().manual_seed(1)
    spread = torch.linspace(0.01, 2, 128)
    trained, held_out = (torch.randn(800, 128, generator=generator) * spread for _ in range(2))
    measure = familiarity.fit(trained, held_out)
    far = familiarity.distance(measure, held_out) > measure["threshold"]
    assert 0.01 < far.float().mean() < 0.03
    with torch.inference_mode():
        queries = held_out[:1, None] + torch.randn(16, 128, generator=generator)
        queries += held_out[:1, None] - queries.mean(dim=1, keepdim=True)
        image_vectors = tiny.proj(queries)                    # their mean is held_out[0]
        assert familiarity.unfamiliar(tiny, measure, image_vectors[0]) is bool(far[0])
        assert familiarity.unfamiliar(tiny, measure, tiny.proj(torch.ones(16, 128))) is True
    assert familiarity.unfamiliar(tiny, None, image_vectors) is None


def test_the_included_measure_tells_noise_from_paintings(tiny, pictures):
    measure = familiarity.read_measure(TINY)
    noise = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    for images, expected in ((pictures, False), (map(Image.fromarray, noise), True)):
        for query in familiarity.mean_queries(tiny, images):
            assert (familiarity.distance(measure, query) > measure["threshold"]) == expected


def test_a_folder_may_lack_a_measure_but_not_have_a_damaged_one(tmp_path):
    assert familiarity.read_measure(tmp_path) is None
    (tmp_path / familiarity.FILE).write_bytes(b"cut")
    with pytest.raises(ValueError, match=familiarity.FILE):
        familiarity.read_measure(tmp_path)
