"""When the int8 matrices of a model are packed."""
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from artgpt4 import KVCache
from benchmarks.models import random_model
from common import packing
from common.int8 import Int8Linear, exact
from common.packing import packing_meanwhile, postpone_packing, unpacked
from conversation.session import Session
from tests.benchmarks.small_model import SMALL


@pytest.fixture
def model():
    torch.manual_seed(0)
    return random_model(replace(SMALL, llama=replace(SMALL.llama, int8=True)))


@torch.inference_mode()
def test_the_first_use_packs_nothing_and_each_later_one_a_few_matrices(model, monkeypatch):
    embeds = torch.randn(9, 1, 1, model.config.llama.hidden_size)
    layers = [module for module in model.modules() if isinstance(module, Int8Linear)]
    cache = KVCache()
    packed_at_once = [model.llama(token, cache) for token in embeds]
    assert all(layer.packed is not None for layer in layers) == exact()
    for layer in layers:
        layer.unpack()
    monkeypatch.setattr(packing, "AT_ONCE", sum(layer.weight.numel() for layer in layers) // 4)
    postpone_packing(model)
    counts, cache = [], KVCache()
    for token, expected in zip(embeds, packed_at_once, strict=True):
        found = model.llama(token, cache)
        assert (found - expected).norm() <= 1e-4 * expected.norm()
        counts.append(sum(layer.packed is not None for layer in layers))
    if exact():
        assert counts[0] == 0 < counts[1] < counts[2] < counts[3] <= counts[5] == len(layers)
    else:
        assert counts == [0] * 9
    assert unpacked(model) == []


class Typing:
    """A terminal at which someone types until all matrices are packed, and then ends."""
    typed = True

    def __init__(self, model):
        self.model = model

    def lines(self, complete, meanwhile):
        deadline = time.monotonic() + 20
        with meanwhile():
            while unpacked(self.model) and time.monotonic() < deadline:
                time.sleep(0.001)
        return iter(())


def test_a_session_packs_matrices_while_a_person_types(model):
    layers = unpacked(model)
    assert len(layers) == (4 * 6 + 1) * exact()
    threads = threading.active_count()
    assert Session(SimpleNamespace(model=model), Typing(model)).run()
    assert threading.active_count() == threads
    assert [layer.packed is not None for layer in layers] == [True] * len(layers)
    with packing_meanwhile(model):                            # nothing is left to do
        assert threading.active_count() == threads


@pytest.mark.parametrize("fails", [False, True], ids=["a line is typed", "no memory"])
def test_what_is_not_packed_when_the_line_is_typed_stays_as_it_is(model, monkeypatch, fails):
    began, has_ended, tried = threading.Event(), threading.Event(), []
    threads = threading.active_count()

    def pack(layer):
        tried.append(layer)
        began.set()
        if fails:
            raise RuntimeError("not enough memory")
        while not has_ended.wait(0.01):                       # until the block ends
            pass
        time.sleep(0.1)                                       # at its end it waits for the thread

    monkeypatch.setattr(Int8Linear, "can_pack", lambda layer: True)
    monkeypatch.setattr(Int8Linear, "pack", pack)
    with pytest.raises(KeyboardInterrupt), packing_meanwhile(model):
        assert began.wait(timeout=10)
        has_ended.set()
        raise KeyboardInterrupt                               # Ctrl-C, at the prompt
    assert tried == unpacked(model)[:1] and threading.active_count() == threads


def test_a_layer_that_two_threads_pack_at_once_computes_the_same(monkeypatch):
    torch.manual_seed(0)
    layer, x = Int8Linear(64, 32, bias=False), torch.randn(3, 64)
    layer.weight.data = torch.randint(-127, 128, (32, 64), dtype=torch.int8)
    expected = layer(x)
    layer.unpack()
    pack, can_pack, others = Int8Linear.pack, Int8Linear.can_pack, [Int8Linear.pack]

    def overtaken(layer):                                     # the other thread packs after this
        answer = can_pack(layer)                              # one has found that it can
        if others:
            others.pop()(layer)
        return answer

    monkeypatch.setattr(Int8Linear, "can_pack", overtaken)
    pack(layer)
    assert others == [] and torch.equal(layer(x), expected)
