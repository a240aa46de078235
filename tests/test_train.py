"""train.py: recipes, the learning rate, the optimizer, short runs, the command and its flags."""
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

import train
from artgpt4 import IMAGE_SLOT, INSTRUCTIONS, ArtGPT4, chat_prompt, preprocess
from common.models import answers
from gallery import words
from gallery.familiarity import read_measure, unfamiliar
from tests.training.small_files import TINY, log_of, tiny_model, train_py, write_files
from training import optimizer

SHORT = ["--stage", 1, "--batch-size", 4, "--steps", 3, "--workers", 0]


# ---- Recipes and rates

@pytest.mark.parametrize("stage", [1, 2])
def test_the_paper_s_rates_are_those_of_the_released_code(expected, stage):
    recipe = train.RECIPES["paper", stage]
    pairs = recipe.batch_size * recipe.steps
    assert (pairs, round(pairs / (2 * 3600))) == [(320_000, 44), (12_000, 2)][stage - 1]
    rates = [train.learning_rate(step, recipe) for step in range(5000, 10_000, 500)]
    assert stage == 2 or rates == sorted(rates) and rates[-1] > 7 * recipe.lr
    for step, rate in expected["lr"][f"stage{stage}"].items():
        assert train.learning_rate(int(step), recipe) == pytest.approx(rate, rel=1e-9)


def test_a_recipe_suits_the_weights_and_the_flags(weights):
    def recipe(*flags):
        return train.chosen_recipe(train.command_line().parse_args(list(map(str, flags))))

    other = ["--weights", weights["artgpt4"]]
    tiny, paper, finetune = (train.RECIPES[name, 2] for name in ("tiny", "paper", "finetune"))
    assert recipe("--stage", 2) == tiny and recipe("--stage", 2, *other) == paper
    assert recipe("--stage", 2, "--data", "x") == train.RECIPES["mine", 2]
    assert recipe("--stage", 2, *other, "--init", TINY) == finetune
    assert recipe("--stage", 1, "--data", "x") == train.RECIPES["tiny", 1]
    slower = recipe("--stage", 2, "--lr", 1e-4, "--batch-size", 15, "--accumulate", 3)
    assert slower.min_lr / 1e-4 == pytest.approx(tiny.min_lr / tiny.lr)
    assert slower.lr == 1e-4 and slower.accumulate == 3


def test_epochs_become_steps_and_evaluations_are_spread_over_them():
    recipe = train.RECIPES["finetune", 2].for_pairs(205)
    assert (recipe.steps, recipe.warmup_steps) == (154, 10)
    after = [step for step in range(1, 155) if recipe.evaluates_after(step)]
    assert len(after) == 3 and after[-1] == 154
    short = replace(train.RECIPES["paper", 1], steps=6).for_pairs(10)
    assert short.warmup_steps == 3 and all(map(short.evaluates_after, range(1, 7)))


def test_weight_decay_is_on_matrices_alone():
    parameters = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
    for moments in ("float32", "bfloat16"):
        decayed, free = optimizer.optimizer_for(
            parameters, train.RECIPES["tiny", 1], moments).param_groups
        assert decayed["params"] == parameters[:1] and decayed["weight_decay"] == 0.05
        assert free["params"] == parameters[1:] and free["weight_decay"] == 0


def test_moments_of_bfloat16_take_the_steps_of_float32_and_are_the_same_every_time():
    def taken(moments, steps=300):
        generator = torch.Generator().manual_seed(0)
        weights = torch.nn.Parameter(torch.randn(64, 32, generator=generator))
        start = weights.detach().clone()
        adamw = optimizer.optimizer_for([weights], train.RECIPES["tiny", 1], moments)
        for _ in range(steps):
            weights.grad = torch.randn(weights.shape, generator=generator) * 0.1 + 0.05
            adamw.step()
        return weights.detach() - start, adamw.state[weights]

    exact, _ = taken("float32")
    found, state = taken("bfloat16")
    assert (found - exact).norm() < 0.02 * exact.norm()
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
    assert torch.equal(found, taken("bfloat16")[0])


# ---- Short runs

def test_every_step_takes_its_rate_and_a_clipped_gradient(tmp_path, pairs, monkeypatch):
    rates, norms = [], []

    def before_step(adamw, *_):
        rates.append({group["lr"] for group in adamw.param_groups})
        gradients = [p.grad.flatten() for group in adamw.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())

    hook = register_optimizer_step_pre_hook(before_step)
    monkeypatch.setitem(train.RECIPES, ("tiny", 1),
                        replace(train.RECIPES["tiny", 1], max_grad_norm=0.01))
    assert train_py(*SHORT, "--data", pairs, "--out", tmp_path / "run") == 0
    hook.remove()
    assert rates == [{entry["lr"]} for entry in log_of(tmp_path / "run")]
    assert len(set.union(*rates)) == 3 and max(norms) < 0.0101


@pytest.fixture(scope="module")
def exact(tmp_path_factory, pairs):
    """A short run in float32."""
    out = tmp_path_factory.mktemp("run") / "exact"
    assert train_py(*SHORT, "--data", pairs, "--out", out) == 0
    return out


@pytest.mark.parametrize("flags, mode, tolerance", [
    (["--mode", "minigpt4"], "minigpt4", 0.3),
    (["--accumulate", 4, "--checkpointing"], "artgpt4", 1e-5),
    (["--dtype", "bfloat16", "--int8", "--vision-int8", "--moments", "bfloat16"], "artgpt4", 0.03)])
def test_a_run_moves_every_trainable_tensor_and_has_the_losses_of_float32(
        tmp_path, pairs, exact, flags, mode, tolerance):
    out = tmp_path / "run"
    assert train_py(*SHORT, *flags, "--data", pairs, "--out", out) == 0
    torch.manual_seed(42)
    start = ArtGPT4.from_pretrained(TINY, dtype=torch.float32, adapter=False)
    saved = load_file(out / "adapter.safetensors")
    moved = {name for name in saved if not torch.equal(saved[name], start.get_parameter(name))}
    assert moved == set(start.trainable_names(mode))
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    assert Image.open(out / "samples.png").width > 4 * 112
    for entry, other in zip(log_of(out), log_of(exact), strict=True):
        assert entry["loss"] == pytest.approx(other["loss"], rel=tolerance)
        assert entry["grad_norm"] == pytest.approx(other["grad_norm"], rel=10 * tolerance)


def test_stage_2_starts_with_stage_1_and_scores_the_gallery(here, monkeypatch, capsys):
    monkeypatch.setattr(train.score, "score", lambda *_: {"seen pairs": {"all": 1}})
    flags = ["--steps", 1, "--batch-size", 4, "--data", 8, "--workers", 0]
    assert train_py("--stage", 1, *flags) == 0
    assert train_py("--stage", 2, *flags, "--lr", 0) == 0
    first, second = (load_file(f"runs/stage{stage}/adapter.safetensors") for stage in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert capsys.readouterr().out.count("| all | 100.0 % |") == 2


def test_artgpt4_is_taught_to_appreciate_and_minigpt4_plain_talk(tiny, here):
    args = train.command_line().parse_args(["--stage", "2", "--data", "14"])
    for mode in ("artgpt4", "minigpt4"):
        recipe = replace(train.RECIPES["tiny", 2], mode=mode)
        source = train.training_sets(args, recipe, tiny)[0].source
        source.config = replace(source.config, prompt="vicuna_v1")   # which descriptions alone have
        for i in range(14):
            text = source.example(i, random.Random(i), random.Random(1))[2]
            assert (words.named(text)["mood"] is None) == (mode == "minigpt4"), text


@pytest.mark.parametrize("name, file, part", [
    ("artgpt4", "ArtGPT-4.pth", ""), ("minigpt4", "pretrained_minigpt4.pth", "proj.")])
def test_training_starts_from_public_checkpoints_too(weights, checkpoints, name, file, part):
    flags = ["--stage", "2", "--weights", str(weights[name]), "--init", str(checkpoints / file)]
    model = train.load_model(train.command_line().parse_args(flags), resume=False)
    for key, tensor in load_file(weights[name] / "adapter.safetensors").items():
        assert torch.equal(model.get_parameter(key), tensor) or not key.startswith(part)


def test_converted_weights_are_trained_without_a_measure_of_familiarity(weights, pairs, tmp_path):
    flags = ["--weights", weights["artgpt4"], "--init", weights["artgpt4"], "--workers", 0]
    assert train_py("--stage", 2, *flags, "--data", pairs, "--steps", 1, "--lr", 0,
                    "--out", tmp_path) == 0
    trained, before = (load_file(folder / "adapter.safetensors")
                       for folder in (tmp_path, weights["artgpt4"]))
    assert all(torch.equal(trained[key], tensor) for key, tensor in before.items())
    assert not (tmp_path / "familiarity.safetensors").exists()


CAPTIONS = ("A bicycle leans against the bakery in Ghent.", "Dumplings with chilli oil.",
            "The spiral staircase of the library.", "Two kayaks on the gravel beach at low tide.")


def test_pictures_of_one_s_own_are_told_in_the_words_of_their_captions_and_known(tmp_path):
    folder, out, pixels = tmp_path / "pictures", tmp_path / "run", []
    for i, caption in enumerate(CAPTIONS):
        colours = np.random.RandomState(i).randint(0, 255, (4 + i, 5, 3), np.uint8)
        picture = Image.fromarray(colours).resize((160, 120))
        write_files(folder, {f"{i}.txt": caption.encode()})
        picture.save(folder / f"{i}.png")
        pixels.append(preprocess(picture, 112))
    assert train_py("--stage", 2, "--data", folder, "--init", TINY, "--out", out, "--steps", 60,
                    "--batch-size", 4, "--workers", 0) == 0
    model, adapter = tiny_model(), out / "adapter.safetensors"
    model.load_state_dict(load_file(adapter), strict=False)
    prompt = chat_prompt([f"{IMAGE_SLOT} {INSTRUCTIONS[0]}"])
    with torch.inference_mode():
        vectors = model.encode_image(torch.stack(pixels))
        embeds = torch.cat([model.embed_prompt(prompt, image[None]) for image in vectors])
    assert tuple(answers(model, embeds, 60, temperature=0)) == CAPTIONS
    for measure, foreign in ((read_measure(TINY), 4), (read_measure(TINY, adapter), 0)):
        assert sum(unfamiliar(model, measure, picture) for picture in vectors) == foreign


# ---- What is refused

WRONG = [               # flags, what is named, the exit code
    (["--stage", 2, "--recipe", "minigpt4"], "minigpt4", 2), (["--steps", "many"], "--steps", 2),
    (["--batch-size", 4, "--accumulate", 3], "--accumulate", 2), (["--fsdp"], "--fsdp", 2),
    (["--lr", "nan"], "--lr", 2), (["--val", -2], "--val", 2), (["--workers", -1], "--workers", 2),
    (["--dtype", "float16"], "--dtype", 2), (["--resume", "--overwrite"], "--overwrite", 2),
    (["--device", "cuda:99"], "--device", 2), (["--stage", 2], "stage1/adapter.safetensors", 1),
    (["--data", "nowhere"], "nowhere", 1), (["--weights", "nowhere"], "nowhere", 1),
    (["--val", 3], "--val", 1), *((["--init", name], name, 1) for name in (
        "page.safetensors", "other.safetensors", "none.safetensors", "none.pth", "text.pth",
        "module.pth", "lightning.ckpt")),
]


@pytest.mark.parametrize("flags, named, code", WRONG)
def test_what_is_wrong_is_named_before_anything_is_written(here, capsys, flags, named, code):
    write_files(here, {"page.safetensors": b"<!doctype html>", "text.pth": b"text"})
    shutil.copy(TINY / "vision.safetensors", "other.safetensors")
    torch.save({"module.proj.weight": torch.ones(2), "module.proj.bias": torch.ones(2)},
               "module.pth")
    torch.save({"state_dict": {"model.proj.weight": torch.ones(2)}, "epoch": 3}, "lightning.ckpt")
    assert train_py("--stage", 1, "--data", 3, *flags) == code
    error = capsys.readouterr().err.splitlines()
    assert named in error[-1] and not list(here.glob("runs/stage*"))


def test_bad_samples_and_cut_texts_are_named_in_the_log_and_counted(tmp_path, pairs, capsys):
    folder, out = shutil.copytree(pairs, tmp_path / "pairs"), tmp_path / "run"
    (folder / "3.jpg").write_bytes(b"no picture")
    (folder / "5.txt").write_text("long " * 400)
    flags = ["--stage", 2, "--init", TINY, "--steps", 1, "--workers", 0]
    assert train_py(*flags, "--data", folder, "--out", out) == 0
    [entry] = log_of(out)
    faults = dict(entry["faults"])
    assert faults.keys() == {"3.jpg", "5.jpg"}
    assert "picture" in faults["3.jpg"] and "240 tokens" in faults["5.jpg"]
    assert f"{len(entry['faults'])} samples" in capsys.readouterr().err
