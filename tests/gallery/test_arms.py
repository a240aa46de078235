"""gallery/arms.py: each arm starts as MiniGPT-4, and trains as many parameters as ArtGPT-4."""
import pytest
import torch

from artgpt4 import IMAGE_ID, IMAGE_MARK
from common.loading import load_folder
from gallery.arms import ARMS, AtImages, attach, nearest_width
from tests.evaluation.runs import TINY

SAME_SIZE = [name for name in ARMS if name not in ("projection", "norms")]


@pytest.fixture
def tiny():
    """weights/tiny as training starts it."""
    torch.manual_seed(1)
    return load_folder(TINY, dtype=torch.float32, adapter=False)


def logits(model, pixels):
    embeds = model.embed_prompt(f"{IMAGE_MARK} a painting of", model.encode_image(pixels))
    return model.llama(embeds)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_starts_as_minigpt4_and_every_trained_parameter_moves(tiny, name):
    pixels = torch.randn(2, 3, tiny.config.image_size, tiny.config.image_size)
    with torch.no_grad():
        before = logits(tiny, pixels[:1])
    goal = sum(p.numel() for module in tiny.trainable_modules() for p in module.parameters())
    parameters = attach(tiny, ARMS[name])
    with torch.no_grad():
        assert torch.allclose(logits(tiny, pixels[:1]), before, atol=1e-5)
    size = sum(p.numel() for p in parameters)
    if name in SAME_SIZE:
        assert abs(size / goal - 1) < 0.02
    else:
        assert size < goal
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    start = [p.detach().clone() for p in parameters]
    for _ in range(2):                                        # behind a zero matrix: in the second
        optimizer.zero_grad()
        tiny.loss(pixels, ["a lighthouse", "two birds"]).backward()
        optimizer.step()
    assert not [p.shape for p, old in zip(parameters, start, strict=True) if torch.equal(p, old)]
    frozen = [p for p in tiny.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)


def test_adapters_at_images_leave_every_other_token_alone(tiny):
    attach(tiny, ARMS["at-images"])
    block = tiny.llama.blocks[0]
    assert isinstance(block.adapter, AtImages)
    torch.nn.init.ones_(block.adapter.adapter.up.bias)
    queries, width = tiny.config.qformer.queries, tiny.config.llama.hidden_size
    ids = [1, *[IMAGE_ID] * queries, 5, 6]
    embeds = tiny.embed_ids(ids, torch.zeros(1, queries, width))
    changed = (block.adapter(embeds) != embeds).any(dim=-1)[0]
    assert changed.tolist() == [False, *[True] * queries, False, False]
    both = embeds.expand(2, -1, -1)                           # several pictures, one prompt
    assert torch.equal((block.adapter(both) != both).any(dim=-1)[1], changed)
    assert torch.equal(block.adapter(embeds[:, :1]), embeds[:, :1])


def test_the_nearest_width_is_not_always_the_next_larger():
    assert nearest_width(20, lambda w: 10 * w) == 2
    assert nearest_width(24, lambda w: 10 * w) == 2
    assert nearest_width(26, lambda w: 10 * w) == 3
    assert nearest_width(1, lambda w: 10 * w) == 1
