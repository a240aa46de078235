"""train.py: recipes, the rate, the optimizer, a short run on the shipped weights."""
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from artgpt4 import ArtGPT4, read_tensors, trainable_names
from data import Gallery
from gallery import score

ROOT = Path(__file__).parent.parent
EXPECTED = json.loads((ROOT / "tests" / "golden" / "expected.json").read_text())


@pytest.mark.parametrize("stage", [1, 2])
def test_the_paper_s_rates_are_those_of_the_released_code(stage):
    recipe = train.RECIPES["paper", stage]
    for step, rate in EXPECTED["lr"][f"stage{stage}"].items():
        assert train.learning_rate(int(step), recipe) == pytest.approx(rate, rel=1e-9)


def test_warm_up_counts_steps_over_the_whole_run():
    recipe = replace(train.RECIPES["paper", 2], warmup_steps=300, steps_per_epoch=200)
    rates = [train.learning_rate(step, recipe) for step in range(300)]
    assert rates == sorted(rates) and rates[200] < recipe.lr == train.learning_rate(10**9, replace(recipe, min_lr=3e-5))


def test_weight_decay_is_on_matrices_alone():
    parameters = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
    decayed, free = train.optimizer_for(parameters, train.RECIPES["tiny", 1]).param_groups
    assert decayed["params"] == parameters[:1] and decayed["weight_decay"] == 0.05
    assert free["params"] == parameters[1:] and free["weight_decay"] == 0


def short_run(out, stage, mode="artgpt4", **changes):
    recipe = replace(train.RECIPES["tiny", stage], batch_size=8, steps_per_epoch=6, epochs=1, warmup_steps=2, mode=mode,
                     eval_every=3, **changes)
    torch.manual_seed(recipe.seed)
    model = ArtGPT4.from_pretrained(ROOT / "weights" / "tiny", dtype=torch.float32, adapter=False)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    out.mkdir()
    train.train(model, Gallery(48), recipe, stage, out)
    return model, start


def test_every_step_takes_its_rate_and_a_clipped_gradient(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rates, norms, drawn = [], [], []

    class Spy(torch.optim.AdamW):
        def step(self):
            rates.append({group["lr"] for group in self.param_groups})
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
            super().step()
    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    monkeypatch.setattr(train, "draw_samples", lambda *arguments: drawn.append(len(rates)))
    short_run(tmp_path / "run", 1, max_grad_norm=0.01)
    assert rates == [{entry["lr"]} for entry in map(json.loads, open(tmp_path / "run" / "log.jsonl"))]
    assert len(set.union(*rates)) == 6 and max(norms) < 0.0101 and drawn == [3, 6]


def test_stage_2_begins_with_the_adapter_of_stage_1_and_takes_its_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shares = dict.fromkeys((*score.ATTRIBUTES, "all"), 1)
    monkeypatch.setattr(train, "score", lambda model, stage: {"seen pairs": shares})
    flags = ["--steps-per-epoch", "1", "--epochs", "1", "--batch-size", "4", "--pictures", "8", "--workers", "0"]
    for stage in ("1", "2"):                                  # a rate of zero: what goes in comes out
        rates = [] if stage == "1" else ["--lr", "0", "--warmup-lr", "0", "--min-lr", "0"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["train.py", "--stage", stage, *flags, *rates])
            train.command_line()
    first, second = (dict(read_tensors(f"runs/stage{stage}/adapter.safetensors")) for stage in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads(Path("runs/stage2/score.json").read_text())["seen pairs"]["all"] == 1


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_writes_its_adapter_log_and_samples_and_is_the_same_every_time(tmp_path, monkeypatch, stage):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        model, start = short_run(tmp_path / name, stage)
    log = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert log[-1]["loss"] < log[0]["loss"]
    assert Image.open(tmp_path / "a" / "samples.png").width > 4 * 224
    first, second = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second
    saved, trains = dict(read_tensors(tmp_path / "a" / "adapter.safetensors")), set(trainable_names(model.config))
    assert saved.keys() == trains and all(tensor.dtype == torch.float32 for tensor in saved.values())
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == trains


def test_minigpt4_mode_moves_the_projection_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, start = short_run(tmp_path / "run", 1, "minigpt4")
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == {"proj.weight", "proj.bias"}


@pytest.mark.parametrize("flags, says", [
    (["--stage", "2"], "stage1/adapter.safetensors: no such file; stage 2 begins where stage 1 ended"),
    (["--stage", "1", "--data", "nowhere"], "nowhere: no filter_cap.json"),
    (["--stage", "1", "--weights", "nowhere"], "nowhere: no weights folder"),
    (["--stage", "2", "--recipe", "minigpt4"], "the recipe minigpt4 has no stage 2"),
    (["--stage", "1", "--batch-size", "0"], "--batch-size"),
    (["--stage", "1", "--pictures", "0"], "--pictures"),
    (["--stage", "1", "--init", "none.safetensors"], "none.safetensors: no such file"),
])
def test_what_cannot_be_trained_is_said_in_one_line(tmp_path, flags, says):
    run = subprocess.run([sys.executable, ROOT / "train.py", *flags], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1 and says in run.stderr and run.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
