"""training/arithmetic.py: operations of a step, and a warning where bfloat16 is slow."""
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import random_model
from tests.benchmarks.small_model import SMALL
from training import arithmetic
from training.cached_vision import release_vision


def test_operations_are_those_that_torch_counts_in_a_step():
    model = random_model(SMALL)
    trained = model.freeze()
    per_pair, per_token, per_text_token = arithmetic.operations(model, "artgpt4")
    size, queries = model.config.image_size, model.config.qformer.queries
    with FlopCounterMode(display=False) as counter:
        features = model.image_features(torch.zeros(1, 3, size, size))
    attention = sum(count for name, count in counter.get_flop_counts()["Global"].items()
                    if "bmm" in str(name) or "attention" in str(name))
    seen = counter.get_total_flops() - attention

    embeds = torch.zeros(1, 20, model.config.llama.hidden_size)
    with FlopCounterMode(display=False) as counter:
        embeds[:, :queries] += model.encode_image(features)[:, :20]
        hidden = model.llama.hidden(embeds, first=15)
        model.llama.logits(hidden).sum().backward()
    assert all(p.grad is not None for p in trained)
    attention = sum(count for name, count in counter.get_flop_counts()["Global"].items()
                    if "bmm" in str(name) or "attention" in str(name))
    counted = seen + counter.get_total_flops() - attention
    assert per_pair + 20 * per_token + 5 * per_text_token == pytest.approx(counted, rel=0.01)
    release_vision(model)
    without, *rest = arithmetic.operations(model, "artgpt4")
    assert rest == [per_token, per_text_token]
    assert per_pair - without == pytest.approx(seen, rel=0.03)          # with two embeddings


@pytest.mark.parametrize("speed", [0.3, 2.3])
def test_a_cpu_that_is_slow_in_bfloat16_is_warned_of_in_one_line(monkeypatch, capsys, speed):
    speeds = {torch.float32: 1e11, torch.bfloat16: speed * 1e11}
    monkeypatch.setattr(arithmetic, "machine_operations", lambda device, dtype: speeds[dtype])
    model, cpu = random_model(SMALL), torch.device("cpu")
    share = arithmetic.share_of_machine(model, "artgpt4", cpu, torch.bfloat16)
    errors = capsys.readouterr().err.splitlines()
    if speed < 1:
        [line] = errors
        assert "in bfloat16 has 0.30 times the speed of float32; --dtype float32 is" in line
    else:
        assert errors == []
    done = sum(arithmetic.operations(model, "artgpt4"))
    assert share(2.0, 1, 1, 1) == pytest.approx(done / 2 / speeds[torch.bfloat16])
    arithmetic.share_of_machine(model, "artgpt4", cpu, torch.float32)
    assert capsys.readouterr().err == ""
