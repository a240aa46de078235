"""train.py: recipes, the learning rate, the optimizer, short runs, the command and its flags."""
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train
from tests.training.short_runs import log_of, short_run, train_py
from training.checkpoints import checkpoints
from training.flags import chosen_recipe, train_parser
from training.validation import Evaluation

EXPECTED = json.loads((Path(__file__).parent / "golden" / "expected.json").read_text())


@pytest.mark.parametrize("stage", [1, 2])
def test_the_paper_s_rates_are_those_of_the_released_code(stage):
    recipe = train.RECIPES["paper", stage]
    for step, rate in EXPECTED["lr"][f"stage{stage}"].items():
        assert train.learning_rate(int(step), recipe) == pytest.approx(rate, rel=1e-9)


def test_warm_up_counts_steps_over_the_whole_run():
    recipe = replace(train.RECIPES["paper", 2], warmup_steps=300)
    rates = [train.learning_rate(step, recipe) for step in range(300)]
    assert rates == sorted(rates) and rates[200] < recipe.lr
    assert recipe.lr == train.learning_rate(10**9, replace(recipe, min_lr=3e-5))


def test_weight_decay_is_on_matrices_alone():
    parameters = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
    decayed, free = train.optimizer_for(parameters, train.RECIPES["tiny", 1]).param_groups
    assert decayed["params"] == parameters[:1] and decayed["weight_decay"] == 0.05
    assert free["params"] == parameters[1:] and free["weight_decay"] == 0


def test_the_recipe_suits_the_weights_and_finetune_counts_epochs(talker_weights):
    def recipe(*flags):
        args = train_parser("", train.RECIPES).parse_args(list(map(str, flags)))
        return chosen_recipe(args, train.RECIPES)

    tiny, other = ["--stage", 2], ["--stage", 2, "--weights", talker_weights]
    assert recipe(*tiny) == train.RECIPES["tiny", 2]
    assert recipe(*other) == train.RECIPES["paper", 2]
    finetune = recipe(*other, "--init", talker_weights)
    assert finetune == train.RECIPES["finetune", 2]
    assert finetune.for_pairs(200).steps == 150 and finetune.for_pairs(200).eval_every == 50
    assert recipe(*tiny, "--epochs", 2).for_pairs(24).steps == 3


# ---- Short runs


def moved(model, start):
    """The names of the tensors that a run has changed."""
    return {name for name, tensor in model.state_dict().items()
            if not torch.equal(tensor, start[name])}


def test_every_step_takes_its_rate_and_a_clipped_gradient(tmp_path, gallery, monkeypatch):
    rates, norms, drawn = [], [], []

    class Spy(torch.optim.AdamW):
        def step(self):
            rates.append({group["lr"] for group in self.param_groups})
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
            super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    monkeypatch.setattr(Evaluation, "draw", lambda *arguments: drawn.append(len(rates)))
    short_run(tmp_path / "run", gallery, changes={"max_grad_norm": 0.01})
    assert rates == [{entry["lr"]} for entry in log_of(tmp_path / "run")]
    assert len(set.union(*rates)) == 6 and max(norms) < 0.0101 and drawn == [3, 6]


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_writes_its_adapter_log_and_samples_and_is_the_same_every_time(
        tmp_path, gallery, stage):
    for name in ("a", "b"):
        model, start = short_run(tmp_path / name, gallery, stage)
    log = log_of(tmp_path / "a")
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    if stage == 1:                      # in stage 2 every batch has its own kind of question
        assert log[-1]["loss"] < log[0]["loss"]
    assert Image.open(tmp_path / "a" / "samples.png").width > 4 * 224
    for file in ("adapter.safetensors", "samples.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    saved = load_file(tmp_path / "a" / "adapter.safetensors")
    assert saved.keys() == set(model.trainable_names())
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    assert moved(model, start) == saved.keys()


def test_minigpt4_mode_changes_the_projection_alone(tmp_path, gallery):
    model, start = short_run(tmp_path / "run", gallery, mode="minigpt4")
    assert moved(model, start) == {"proj.weight", "proj.bias"}


def test_a_batch_in_parts_and_blocks_computed_twice_give_the_same_losses(tmp_path, gallery):
    short_run(tmp_path / "whole", gallery)
    short_run(tmp_path / "parts", gallery, accumulate=4, checkpointing=True)
    for one, other in zip(log_of(tmp_path / "whole"), log_of(tmp_path / "parts"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_bfloat16_with_int8_weights_learns_as_float32_does(tmp_path, gallery):
    short_run(tmp_path / "whole", gallery)
    model, _ = short_run(tmp_path / "small", gallery, dtype=torch.bfloat16, int8=True)
    assert model.llama.blocks[0].mlp.down.weight.dtype == torch.int8
    assert model.vit.cls_token.dtype == torch.bfloat16
    assert [entry["loss"] for entry in log_of(tmp_path / "small")] == pytest.approx(
        [entry["loss"] for entry in log_of(tmp_path / "whole")], rel=0.03)
    saved = load_file(tmp_path / "small" / "adapter.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())


# ---- The command


def other_captions(pairs):
    """A copy of a folder of pairs, with other captions of the same length."""
    copy = pairs.parent / "other-captions"
    shutil.copytree(pairs, copy)
    file = copy / "filter_cap.json"
    file.write_text(file.read_text().replace("red", "tan"))
    return copy


def test_an_unfinished_run_is_neither_lost_nor_mixed_with_another(
        training_folder, pairs, monkeypatch, capsys):
    out = training_folder / "unfinished"
    flags = ["--stage", 1, "--data", pairs, "--out", out, "--batch-size", 4,
             "--steps", 2, "--workers", 0]
    assert train_py(monkeypatch, *flags, "--resume") is None
    assert "no checkpoint to resume from; the run starts at step 1" in capsys.readouterr().out
    [finished] = checkpoints(out)
    unfinished = finished.rename(out / "checkpoint-0000001-of-0000002.pt")
    other_dtype, other_data = ["--dtype", "bfloat16"], ["--data", other_captions(pairs)]
    for changed, says in (
            ([], "continue it with --resume, or start a new one with --overwrite"),
            (["--resume", "--seed", 7], "that run has --seed 42, this one 7"),
            (["--resume", "--steps", 3], "that run has --steps 2, this one 3"),
            (["--resume", "--val", 2], "that run has --val 0, this one 2"),
            (["--resume", *other_dtype], "that run has --dtype float32, this one bfloat16"),
            (["--resume", *other_data], "that run has --data 12 pairs, checksum")):
        assert train_py(monkeypatch, *flags, *changed) == 1
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert checkpoints(out) == [unfinished]
    assert train_py(monkeypatch, *flags, "--overwrite") is None
    assert checkpoints(out) == [finished]
    before = finished.read_bytes()
    assert train_py(monkeypatch, *flags) == 1        # a finished run is not replaced silently
    assert "holds a finished run (checkpoint-0000002" in capsys.readouterr().err
    same_data_elsewhere = ["--data", f"{pairs / 'image' / '..'}/"]
    assert train_py(monkeypatch, *flags, *same_data_elsewhere, "--resume") is None
    assert finished.read_bytes() == before and len(log_of(out)) == 2


def test_stage_2_starts_with_the_adapter_of_stage_1_and_takes_its_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--steps", 1, "--batch-size", 4, "--pictures", 8,
             "--workers", 0]
    assert train_py(monkeypatch, "--stage", 1, *flags) is None
    no_change = ["--lr", 0, "--warmup-lr", 0, "--min-lr", 0]
    assert train_py(monkeypatch, "--stage", 2, *flags, *no_change) is None
    first, second = (load_file(f"runs/stage{stage}/adapter.safetensors") for stage in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads(Path("runs/stage2/score.json").read_text())["seen pairs"]["all"] == 1


@pytest.mark.parametrize("flags, says", [
    (["--stage", "2", "--recipe", "minigpt4"], "the recipe minigpt4 has no stage 2"),
    (["--stage", "1", "--batch-size", "0"], "--batch-size is 0"),
    (["--stage", "1", "--batch-size", "4", "--accumulate", "3"],
     "1 processes with --accumulate 3 cannot share"),
    (["--stage", "1", "--pictures", "0"], "--pictures is 0"),
    (["--stage", "1", "--save-every", "-1"], "--save-every is -1"),
    (["--stage", "1", "--fsdp"], "start them with torchrun"),
    (["--stage", "1", "--warmup-steps", "-5"], "--warmup-steps is -5; it must be a number, 0"),
    (["--stage", "1", "--max-grad-norm", "0"], "--max-grad-norm is 0.0; it must be a number, ab"),
    (["--stage", "1", "--lr", "nan"], "--lr is nan; it must be a number, 0 or more"),
    (["--stage", "1", "--steps", "5", "--epochs", "2"], "--steps and --epochs both say how long"),
    (["--stage", "1", "--patience", "2"], "--patience waits for a lower validation loss"),
])
def test_a_misused_flag_is_an_error_of_one_line(tmp_path, monkeypatch, capsys, flags, says):
    ends_with_one_line(2, says, flags, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("flags, says", [
    (["--stage", "2"], "stage1/adapter.safetensors: no such file; stage 2 starts where stage 1"),
    (["--stage", "1", "--data", "nowhere"], "nowhere: no such file"),
    (["--stage", "1", "--weights", "nowhere"], "nowhere: no weights folder"),
    (["--stage", "1", "--pictures", "3", "--val", "3"], "--val is 3"),
    (["--stage", "1", "--init", "none.safetensors"], "none.safetensors: no such file"),
])
def test_files_that_do_not_fit_are_an_error_of_one_line(tmp_path, monkeypatch, capsys, flags, says):
    ends_with_one_line(1, says, flags, tmp_path, monkeypatch, capsys)


def ends_with_one_line(code, says, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train_py(monkeypatch, *flags) == code
    error = capsys.readouterr().err.splitlines()
    assert says in error[-1] and not list(tmp_path.glob("runs/stage*"))
