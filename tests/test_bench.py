"""bench.py: what it computes; what it times is not tested."""
import pytest
import torch

import bench
from artgpt4 import Config, LlamaConfig, QFormerConfig, ViTConfig
from benchmarks.training_cost import PROMPT, Trainer, training_memory
from training.recomputation import recompute_blocks

SMALL = Config(56, 1e-5, 64, ViTConfig(176, 1, 2, 256), QFormerConfig(128, 2, 2, 128, 6),
               LlamaConfig(256, 704, 6, 4, 4, vocab_size=1500))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_on_paper_are_those_that_the_backward_pass_keeps(checkpointing):
    trainer, kept = Trainer(bench.random_model(SMALL, torch.float32, "cpu"), 3, "a calm painting of a boat " * 10), {}
    if checkpointing:
        recompute_blocks(trainer.model.llama)
    own = {parameter.untyped_storage().data_ptr() for parameter in trainer.model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() * (storage.data_ptr() not in own)
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = trainer.model.loss(trainer.pixels, trainer.caption, PROMPT, "###", 160)
    text = trainer.text_tokens
    paper = training_memory(SMALL, 3, trainer.tokens, text, 4, checkpointing)["activations"]
    paper -= 2 * 4 * 3 * text * 1500                          # of the logits it keeps one copy in three
    block = (training_memory(SMALL, 3, trainer.tokens, text, 4)["activations"] - 3 * 4 * 3 * text * 1500) / 6
    paper -= block if checkpointing else 0                    # the block that is computed again
    assert loss.requires_grad and sum(kept.values()) == pytest.approx(paper, rel=0.15)


def test_memory_of_the_13b_model_follows_from_its_sizes():
    one, eight = (training_memory(Config(), 12, 230, 160, cards=cards) for cards in (1, 8))
    adapters = 40 * (2 * 5120 * 1280 + 5120 + 1280)
    trains = adapters + 5120 * 769 + 60 * 5120
    assert one["what trains"] == one["its gradients"] == one["AdamW's two moments"] / 2 == 4 * trains
    assert eight["what trains"] == one["what trains"] / 8 and eight["activations"] == one["activations"]
    assert 27e9 < one["frozen weights"] < 29e9


def test_random_weights_have_a_place_of_their_own_and_the_shape_that_was_asked(capsys):
    model = bench.random_model(SMALL, torch.float32, "cpu")
    weight = model.llama.blocks[3].mlp.down.weight
    assert weight.shape == (256, 704) and weight.std().item() == pytest.approx(704 ** -0.5, rel=0.05)
    assert weight.untyped_storage().nbytes() == weight.nbytes
    weights, size = bench.matrix_weights(model.llama)
    assert weights == 6 * (4 * 256 ** 2 + 3 * 256 * 704 + 2 * 256 * 64) + 256 * 1500
    assert size == 4 * (weights + 6 * (256 + 64))
    speeds = bench.in_turns([bench.Ours(model.llama)], 8, 4, 2)
    assert all(value > 0 for value in next(iter(speeds.values())))
