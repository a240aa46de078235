"""What the tables hold beside times: random weights, shares, the memory of training."""
import pytest
import torch
from torch import nn

from artgpt4 import Config
from benchmarks import costs, speed
from benchmarks.costs import activations, training_memory
from benchmarks.speed import (
    in_turns, language_model, matrix_weights, model_table, random_model, seconds,
)
from common.int8 import Int8Linear

SMALL = Config(
    image_size=56, vit_width=64, vit_layers=1, vit_heads=2, vit_mlp_width=128, queries=4,
    qformer_width=64, qformer_layers=2, qformer_heads=2, qformer_mlp_width=128, llama_width=256,
    llama_layers=6, llama_heads=4, llama_kv_heads=4, llama_mlp_width=704, vocab_size=1500,
    adapter_width=64)


def test_random_weights_have_a_place_of_their_own_and_the_dtype_that_was_asked():
    model = random_model(SMALL, torch.bfloat16)
    down, adapter = model.llama.blocks[3].mlp.down.weight, model.llama.blocks[3].adapter.up.weight
    assert (down.dtype, adapter.dtype) == (torch.bfloat16, torch.float32)
    assert down.float().std().item() == pytest.approx(0.02, rel=0.05)
    assert down.untyped_storage().nbytes() == down.nbytes
    count, size = matrix_weights(model.llama)
    adapters = 6 * 2 * 256 * 64
    assert count == 6 * (4 * 256 ** 2 + 3 * 256 * 704) + 256 * 1500 + adapters
    assert size == 2 * count + 2 * adapters


def test_int8_weights_are_a_byte_each_packed_or_not():
    model = random_model(SMALL, int8=True)
    down = model.llama.blocks[3].mlp.down
    assert isinstance(down, Int8Linear) and type(model.vit.blocks[0].fc1) is nn.Linear
    assert (down.weight.float() * down.scale[:, None]).std().item() == pytest.approx(0.02, rel=0.05)
    assert model.llama(torch.randn(1, 5, 256)).isfinite().all()
    before = matrix_weights(model.llama.blocks[3].mlp)
    down.pack()
    assert matrix_weights(model.llama.blocks[3].mlp) == before == (3 * 256 * 704, 3 * 256 * 704)


def test_each_turn_runs_every_runner_from_the_start(monkeypatch):
    monkeypatch.setattr(speed, "NEW", 2)
    monkeypatch.setattr(speed, "TURNS", 3)
    calls = []
    speeds = in_turns({name: lambda ids, fresh, name=name: calls.append((name, len(ids), fresh))
                       for name in ("a", "b")})
    turn = [(name, *read) for name in ("a", "b") for read in ((128, True), (1, False), (1, False))]
    assert calls == 4 * turn
    assert list(speeds) == ["a", "b"] and min(map(min, speeds.values())) > 0


def test_a_runner_reads_after_what_it_has_read():
    model = random_model(SMALL)
    lengths, run, hidden = [], language_model(model.llama), model.llama.hidden

    def recorded(embeds, cache):
        lengths.append((cache.length, embeds.shape[1]))
        return hidden(embeds, cache)

    model.llama.hidden = recorded
    run([1, 2, 3], True)
    run([4], False)
    run([1, 2], True)
    assert lengths == [(0, 3), (3, 1), (0, 2)]


def test_the_first_run_is_not_timed(monkeypatch):
    monkeypatch.setattr(speed.timeit, "repeat", lambda run, number, repeat: [1, 3, 2, 4][:repeat])
    assert seconds(lambda: torch.zeros(2), repeats=3) == 2


def test_shares_are_of_the_machines_limits(monkeypatch):
    monkeypatch.setattr(speed, "machine_limits", lambda device: {
        "float32 operations": 8e9, "int8 operations": 1.0, "bytes read": 4e9})
    monkeypatch.setattr(speed, "seconds", lambda run: 0.5)
    monkeypatch.setattr(speed, "in_turns", lambda runners: {"llama": (1000.0, 100.0)})
    model = random_model(SMALL)
    encode, prefill, decode = model_table(model).splitlines()[2:]
    weights, _ = matrix_weights(model.llama)
    assert "2.00 images/s" in encode and " of 8.0 G/s, float32 operations" in encode
    assert f"{2 * weights * 1000 / 8e9:.0%} of 8.0 G/s, float32 operations" in prefill
    assert f"{4 * weights * 100 / 4e9:.0%} of 4.0 G/s, bytes read" in decode


@pytest.mark.parametrize("layers", [1, 3])
def test_activations_are_those_that_the_backward_pass_keeps(layers, monkeypatch):
    """Counted without numbers and, here, in a real step."""
    monkeypatch.setattr(costs, "TOKENS", 24)
    monkeypatch.setattr(costs, "TEXT_TOKENS", 20)
    counted = activations(SMALL, layers, batch=3)
    model = random_model(SMALL, torch.bfloat16)
    model.llama.blocks = model.llama.blocks[:layers]
    parameters, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = torch.full((3, 24), 5)
    ids[:, 1:5] = -1                                          # the image vectors
    targets = torch.full_like(ids, -100)
    targets[:, -20:] = 7
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(torch.randn(3, 3, 56, 56), ids, targets)
    assert loss.requires_grad
    found = sum(kept[place].nbytes() for place in kept.keys() - parameters)
    assert counted == pytest.approx(found, rel=0.15)          # gathering hidden[keep] copies some


def test_memory_of_the_13b_model_follows_from_its_sizes():
    one = training_memory(Config(), 1, (True, True), checkpointing=True, moments=4)
    adapters = 40 * (2 * 5120 * 1280 + 5120 + 1280)
    trainable = 4 * (adapters + 5120 * 769 + 60 * 5120)
    assert one["trainable weights"] == one["gradients"] == one["moments"] == trainable
    assert sum(one.values()) < 22e9                           # it fits on a card of 24 GB
    eight = training_memory(Config(), 1, moments=8, cards=8)
    assert eight["moments"] == 2 * trainable / 8
    assert 28e9 / 8 < eight["frozen weights"] < 28e9 / 8 + 2e9
    assert eight["activations"] > 5 * one["activations"]


def test_peers_are_what_can_be_imported(monkeypatch):
    monkeypatch.setattr(speed, "TURNS", 1)
    monkeypatch.setattr(speed, "PEERS", {"json": lambda config: lambda ids, fresh: None,
                                         "no_such_package": None})
    model = random_model(SMALL)
    rows = speed.peers_table(model.llama).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["this project", "json"]
