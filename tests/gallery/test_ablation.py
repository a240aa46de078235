"""gallery/ablation.py: what the arms train, which runs there are, tables of raw scores."""
import json

import pytest
import torch

from artgpt4 import IMAGE_MARK, ArtGPT4
from common.command_line import run_command
from common.models import TINY
from gallery import ablation
from gallery.score import ATTRIBUTES


@pytest.mark.parametrize("arm", ablation.ARMS)
def test_an_arm_starts_as_minigpt4_and_every_trained_parameter_moves(arm):
    torch.manual_seed(1)
    model = ArtGPT4.from_pretrained(TINY, dtype=torch.float32, adapter=False)
    pixels = torch.randn(2, 3, model.config.image_size, model.config.image_size)
    goal = sum(model.get_parameter(name).numel() for name in model.trainable_names())

    def logits():
        with torch.no_grad():
            prompt = f"{IMAGE_MARK} a painting of"
            return model.llama(model.embed_prompt(prompt, model.encode_image(pixels[:1])))
    before = logits()
    parameters = ablation.attach(model, arm)
    torch.testing.assert_close(logits(), before, atol=1e-5, rtol=0)
    size = sum(p.numel() for p in parameters) / goal
    assert size < 0.3 if arm in ("projection", "norms") else abs(size - 1) < 0.02
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    start = [p.detach().clone() for p in parameters]
    for _ in range(2):                                        # behind a zero matrix: in the second
        optimizer.zero_grad()
        model.loss(pixels, ["a lighthouse", "two birds"]).backward()
        optimizer.step()
    assert not [p.shape for p, old in zip(parameters, start, strict=True) if torch.equal(p, old)]
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def run_ablation(tmp_path, *flags):
    arguments = ["--out", tmp_path / "runs", "--scores", tmp_path / "scores.json", *flags]
    run_command(ablation.main, ablation.command_line(), list(map(str, arguments)))


class InThisProcess:
    """A ProcessPoolExecutor that starts no process."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *args):
        value = function(*args)
        return type("Done", (), {"result": staticmethod(lambda: value)})


@pytest.fixture
def trained(monkeypatch):
    """The runs that are made; none trains. An arm is right where its best rate and seed say so."""
    made = []

    def one_run(run, args):
        made.append(run)
        arm, factor, seed, sweep = run
        right = "1" if (factor == 3) == (arm == "mlp") or (arm == "artgpt4" and not sweep) else "0"
        kinds = ["unseen pairs"] if sweep else ["unseen pairs", "seen pairs"]
        rightly = {kind: dict.fromkeys(ATTRIBUTES, f"{right}1{seed % 2}") for kind in kinds}
        return {"arm": arm, "factor": factor, "seed": seed, "sweep": sweep, "parameters": 100608,
                "rates": [factor * 3e-3] * 2, "rightly": rightly}

    monkeypatch.setattr(ablation, "one_run", one_run)
    monkeypatch.setattr(ablation, "FACTORS", (1, 3))
    monkeypatch.setattr(ablation, "ProcessPoolExecutor", InThisProcess)
    return made


def test_each_arm_is_swept_then_trained_at_its_best_rate_and_finished_runs_are_kept(
        tmp_path, trained, capsys):
    flags = ("--arms", "artgpt4", "mlp", "--seeds", 1, 2)
    run_ablation(tmp_path, *flags)
    assert trained == [
        *((arm, factor, ablation.SWEEP_SEED, True) for arm in ("artgpt4", "mlp")
          for factor in (1, 3)),
        *((arm, factor, seed, False) for seed in (1, 2)
          for arm, factor in (("artgpt4", 1), ("mlp", 3)))]
    printed = capsys.readouterr().out
    (tmp_path / "runs" / "mlp-3-2.json").unlink()
    run_ablation(tmp_path, *flags)
    assert trained[8:] == [("mlp", 3, 2, False)]
    run_ablation(tmp_path, "--table")
    assert capsys.readouterr().out == 2 * printed
    results, differences, sweep = printed.strip().split("\n\n")
    row = "| projection, norms and adapters (ArtGPT-4) | 100,608 | 3e-03 and 3e-03 | 83.3 % "
    assert results.splitlines()[2] == row + "(100.0, 66.7) | 83.3 % | 83.3 % | 83.3 % |"
    assert len(differences.splitlines()) == 3 and "0.0 % | 66.7 %" not in sweep
    run_ablation(tmp_path, "--table")
    for flags, code in ((("--seeds", ablation.SWEEP_SEED), 2), (("--pictures", 20), 1)):
        with pytest.raises(SystemExit) as ended:              # a run of other settings is kept
            run_ablation(tmp_path, *flags)
        assert ended.value.code == code


def test_a_run_of_two_steps_has_scores_and_its_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ablation.command_line().parse_args(
        "--pictures 2 --paintings 4 --steps 2".split())
    run = json.loads(json.dumps(ablation.one_run(("shuffled", 1, 1, False), args)))
    assert run["parameters"] == 100608 and run["seed"] == 1 and not run["sweep"]
    assert set(run["rightly"]) == {"seen pairs", "unseen pairs"}
    assert all(len(digits) == 2 for digits in run["rightly"]["seen pairs"].values())
