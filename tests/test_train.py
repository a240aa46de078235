"""train.py and checkpoint.py: recipes, the rate, the optimizer; runs that are short, stopped, killed and shared."""
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from training import checkpoints as checkpoint
import train
from artgpt4 import ArtGPT4, trainable_names
from gallery.album import painted
from training.data import Gallery, open_source
from gallery import score
from gallery.scenes import SEEN_PAIRS
from tests.robustness.kill_and_resume import kill_and_resume, losses, small_data, train_command

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


# ---- Short runs in this process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory in which the pictures are painted once."""
    folder, before = tmp_path_factory.mktemp("train"), Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def gallery(folder):
    return Gallery(24)


@pytest.fixture(scope="module")
def pairs(folder):
    """--data of small pictures, in which nothing depends on the gallery."""
    return small_data(folder / "pairs")


def short_run(out, source, stage=1, mode="artgpt4", resume=False, dtype=torch.float32, int8=False, checkpointing=False,
              loss=None, changes=(), **options):
    """Six steps of the shipped weights. loss: called with the per-token losses of each forward in training."""
    recipe = replace(train.RECIPES["tiny", stage], batch_size=8, steps_per_epoch=6, epochs=1, warmup_steps=2, mode=mode,
                     eval_every=3)
    recipe = replace(recipe, **dict(changes))
    torch.manual_seed(recipe.seed)
    model = ArtGPT4.from_pretrained(ROOT / "weights" / "tiny", dtype=dtype, adapter=False, int8=int8)
    model.llama.checkpointing = checkpointing
    if loss:
        model.register_forward_hook(lambda module, arguments, losses: loss(losses))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own = not isinstance(source, Gallery)
    pictures = train.sample_pictures(source, 2) if own else painted(score.held_out(SEEN_PAIRS, 2))
    from_checkpoint = checkpoint.load_checkpoint(out, {}) if resume else None
    train.train(model, source, recipe, stage, out, asdict(recipe), pictures, checkpoint=from_checkpoint, workers=0,
                **options)
    return model, start


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_every_step_takes_its_rate_and_a_clipped_gradient(tmp_path, gallery, monkeypatch):
    rates, norms, drawn = [], [], []

    class Spy(torch.optim.AdamW):
        def step(self):
            rates.append({group["lr"] for group in self.param_groups})
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
            super().step()
    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    monkeypatch.setattr(train, "draw_samples", lambda *arguments: drawn.append(len(rates)))
    short_run(tmp_path / "run", gallery, changes={"max_grad_norm": 0.01})
    assert rates == [{entry["lr"]} for entry in log_of(tmp_path / "run")]
    assert len(set.union(*rates)) == 6 and max(norms) < 0.0101 and drawn == [3, 6]


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_writes_its_adapter_log_and_samples_and_is_the_same_every_time(tmp_path, gallery, stage):
    for name in ("a", "b"):
        model, start = short_run(tmp_path / name, gallery, stage)
    log = log_of(tmp_path / "a")
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert stage == 2 or log[-1]["loss"] < log[0]["loss"]     # in stage 2 every batch has its own kind of question
    assert Image.open(tmp_path / "a" / "samples.png").width > 4 * 224
    for file in ("adapter.safetensors", "samples.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    saved, trains = load_file(tmp_path / "a" / "adapter.safetensors"), set(trainable_names(model.config))
    assert saved.keys() == trains and all(tensor.dtype == torch.float32 for tensor in saved.values())
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == trains


def test_minigpt4_mode_moves_the_projection_alone(tmp_path, gallery):
    model, start = short_run(tmp_path / "run", gallery, mode="minigpt4")
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == {"proj.weight", "proj.bias"}


def test_a_batch_in_parts_and_blocks_computed_again_give_the_same_losses(tmp_path, gallery):
    short_run(tmp_path / "whole", gallery)
    short_run(tmp_path / "parts", gallery, accumulate=4, checkpointing=True)
    for one, other in zip(log_of(tmp_path / "whole"), log_of(tmp_path / "parts"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_bfloat16_with_int8_weights_learns_as_float32_does(tmp_path, gallery):
    short_run(tmp_path / "whole", gallery)
    model, start = short_run(tmp_path / "small", gallery, dtype=torch.bfloat16, int8=True)
    assert model.llama.blocks[0].mlp.down.weight.dtype == torch.int8 and model.vit.cls_token.dtype == torch.bfloat16
    assert [entry["loss"] for entry in log_of(tmp_path / "small")] == pytest.approx(
        [entry["loss"] for entry in log_of(tmp_path / "whole")], rel=0.03)
    saved = load_file(tmp_path / "small" / "adapter.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())


def test_the_log_counts_tokens_memory_and_what_was_skipped(tmp_path, pairs):
    (copy := tmp_path / "pairs").mkdir()
    (copy / "image").mkdir()
    (copy / "filter_cap.json").write_bytes((pairs / "filter_cap.json").read_bytes())
    for file in pairs.glob("image/*.jpg"):
        (copy / "image" / file.name).write_bytes(file.read_bytes()[:100 if file.name == "3.jpg" else None])
    tokens = []
    short_run(tmp_path / "run", open_source(copy), loss=lambda losses: tokens.append(len(losses)))
    log = log_of(tmp_path / "run")
    named = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert log[-1]["skipped"] == len(named) >= 4 and {entry["sample"] for entry in named} == {"3.jpg"}
    for entry, count in zip(log, tokens, strict=True):
        assert entry["tokens_per_s"] / entry["samples_per_s"] == pytest.approx(count / 8)
        assert 50e6 < entry["memory"] < 100e9 and entry["grad_norm"] > 0 and entry["skipped_steps"] == 0


def test_the_end_of_the_data_is_for_validation_and_never_trained_on(tmp_path, pairs, monkeypatch):
    source = open_source(pairs)
    part, held_out, seen = train.Part(source, 0, 9), train.Part(source, 9, 12), set()
    words = part.words
    monkeypatch.setattr(part, "words", lambda i, *rest: seen.add(part.name(i)) or words(i, *rest))
    short_run(tmp_path / "run", part, val=held_out)
    assert seen == {f"{i}.jpg" for i in range(9)}
    assert [held_out.name(i) for i in range(3)] == ["9.jpg", "10.jpg", "11.jpg"]
    assert sorted(held_out.order(1, 2)) == [0, 1, 2] and list(part.order(1, 2)) != list(part.order(1, 3))
    log = log_of(tmp_path / "run")
    assert [entry["step"] for entry in log if "val_loss" in entry] == [3, 6]
    assert 0 < log[5]["val_loss"] < log[2]["val_loss"]
    report = (tmp_path / "run" / "report.html").read_text()
    assert report.count("<svg") == 4 and ">validation<" in report and 'src="data:image/jpeg' in report
    assert "<td>6</td>" in report and "http:" not in report and "https:" not in report and "<script" not in report


def test_a_first_loss_of_a_guess_is_warned_of(tmp_path, gallery, capsys):
    short_run(tmp_path / "run", gallery, loss=lambda losses: losses * 0 + math.log(1200))
    assert "the first loss, 7.090, is no better than a guess among 1200 tokens, 7.090" in capsys.readouterr().err


def test_a_step_whose_loss_is_not_finite_is_skipped_and_ten_in_a_row_end_the_run(tmp_path, gallery):
    forwards = []

    def loss(losses):
        forwards.append(losses)
        return losses * (math.inf if len(forwards) in (3, 5) or len(forwards) > 8 else 1)
    changes = {"steps_per_epoch": 30}
    with pytest.raises(ValueError, match="not finite in the 10 steps up to step 18.* the checkpoint of step 8 is kept"):
        short_run(tmp_path / "run", gallery, loss=loss, changes=changes, save_every=2)
    log = log_of(tmp_path / "run")
    assert [entry["skipped_steps"] for entry in log] == [0, 0, 1, 1, 2, 2, 2, 2, *range(3, 12)]
    assert [entry["step"] for entry in log if entry["loss"] is None] == [3, 5, *range(9, 18)]
    kept = checkpoint.load_checkpoint(tmp_path / "run", {})
    assert kept["step"] == 8 and kept["bad_steps"] == 2 and kept["optimizer"]["proj.weight"]["step"] == 6
    assert all(tensor.isfinite().all() for tensor in kept["weights"].values())


# ---- Interruptions


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_ends_and_leaves_what_goes_on_to_the_same_bits(tmp_path, gallery, capsys, number, code):
    short_run(tmp_path / "whole", gallery)
    handler, forwards = signal.getsignal(number), []
    with pytest.raises(SystemExit) as stopped:
        short_run(tmp_path / "run", gallery, loss=lambda losses: forwards.append(losses) or len(forwards) == 4
                  and signal.raise_signal(number) or None)
    assert stopped.value.code == code and signal.getsignal(number) is handler
    assert "stopped after step 4 of 6; the same command with --resume goes on" in capsys.readouterr().out
    with open(tmp_path / "run" / "log.jsonl", "a") as log:    # as if the step after it had been logged, and half of one
        log.write('{"step": 5, "loss": 9}\n{"step"')
    (tmp_path / "run" / ".checkpoint-0000005-of-0000006.pt.1.part").write_text("half")
    short_run(tmp_path / "run", gallery, resume=True)
    for file in ("adapter.safetensors", "samples.png"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert losses(tmp_path / "run") == losses(tmp_path / "whole") and not list((tmp_path / "run").glob(".*"))


def test_a_run_that_is_killed_at_a_random_moment_and_while_saving_ends_with_the_same_bits(folder, pairs):
    command = train_command(pairs, folder / "killed", 40)
    told = kill_and_resume(command, folder / "killed", 2, longest=2.5)
    assert "half written" in told[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *map(str, train_command(pairs, folder / "undisturbed", 40)[2:])])
        train.command_line()
    for file in ("adapter.safetensors", "samples.png"):
        assert (folder / "killed" / file).read_bytes() == (folder / "undisturbed" / file).read_bytes()
    assert losses(folder / "killed") == losses(folder / "undisturbed")


def saved(out, *steps):
    for step in steps:
        weights = {"proj.bias": torch.full((500,), float(step))}
        checkpoint.save_checkpoint(out, step, 9, run={"stage": 1}, weights=weights)
    return checkpoint.checkpoints(out)


@pytest.mark.parametrize("damage", ["cut", "empty", "a flipped bit", "another file"])
def test_a_damaged_checkpoint_is_left_for_the_one_before(tmp_path, capsys, damage):
    first, last = saved(tmp_path, 1, 2, 3)
    assert [first.name, last.name] == ["checkpoint-0000002-of-0000009.pt", "checkpoint-0000003-of-0000009.pt"]
    for file in (last, first):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        damaged = {"cut": content[:-100], "empty": b"", "a flipped bit": content, "another file": b"x" * 999}
        file.write_bytes(damaged[damage])
        if file == last:
            assert checkpoint.load_checkpoint(tmp_path, {"stage": 1})["weights"]["proj.bias"].tolist() == [2] * 500
            error = capsys.readouterr().err
            assert error.startswith(f"{last}: damaged (") and error.count("\n") == 1
    with pytest.raises(ValueError, match="none of its checkpoints is whole"):
        checkpoint.load_checkpoint(tmp_path, {"stage": 1})


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)
    torch.save({"step": 1, "run": Evil()}, tmp_path / "checkpoint-0000001-of-0000009.pt")
    with pytest.raises(ValueError, match="none of its checkpoints is whole"):
        checkpoint.load_checkpoint(tmp_path, {})
    assert not (tmp_path / "evil").exists()


def command(monkeypatch, *flags):
    """train.py with flags, in this process, no scores. Returns its exit code."""
    shares = {"seen pairs": dict.fromkeys((*score.ATTRIBUTES, "all"), 1)}
    monkeypatch.setattr(train, "score", lambda model, stage: shares)
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, flags)])
    try:
        train.command_line()
    except SystemExit as end:
        return end.code


def test_a_run_that_has_not_finished_is_neither_lost_nor_mixed_with_another(folder, pairs, monkeypatch, capsys):
    out = folder / "unfinished"
    flags = ["--stage", 1, "--data", pairs, "--out", out, "--batch-size", 4, "--steps-per-epoch", 2, "--epochs", 1,
             "--workers", 0]
    assert command(monkeypatch, *flags, "--resume") is None
    assert "no checkpoint to resume from; the run begins" in capsys.readouterr().out
    [finished] = checkpoint.checkpoints(out)
    unfinished = finished.rename(out / "checkpoint-0000001-of-0000002.pt")
    for changed, says in (([], "--resume goes on with it, --overwrite begins anew"),
                          (["--resume", "--seed", 7], "that run has --seed 42, this one 7"),
                          (["--resume", "--steps-per-epoch", 3], "that run has --steps-per-epoch 2, this one 3"),
                          (["--resume", "--val", 2], "that run has --val 0, this one 2"),
                          (["--resume", "--dtype", "bfloat16"], "that run has --dtype float32, this one bfloat16"),
                          (["--resume", "--data", folder / "pairs" / "image" / ".."], "that run has --data")):
        assert command(monkeypatch, *flags, *changed) == 1
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert checkpoint.checkpoints(out) == [unfinished]
    assert command(monkeypatch, *flags, "--overwrite") is None and checkpoint.checkpoints(out) == [finished]
    assert command(monkeypatch, *flags) is None               # a finished run is replaced
    assert len(log_of(out)) == 2


def test_stage_2_begins_with_the_adapter_of_stage_1_and_takes_its_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--steps-per-epoch", 1, "--epochs", 1, "--batch-size", 4, "--pictures", 8, "--workers", 0]
    assert command(monkeypatch, "--stage", 1, *flags) is None
    rates = ["--lr", 0, "--warmup-lr", 0, "--min-lr", 0]      # what goes in comes out
    assert command(monkeypatch, "--stage", 2, *flags, *rates) is None
    first, second = (load_file(f"runs/stage{stage}/adapter.safetensors") for stage in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads(Path("runs/stage2/score.json").read_text())["seen pairs"]["all"] == 1


# ---- Several processes


@contextlib.contextmanager
def torchrun(*flags):
    """train.py with flags in two processes; what is left of them is killed at the end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
               "--nproc-per-node=2", ROOT / "train.py", *flags]
    environment = {"OMP_NUM_THREADS": "1"}
    if Path("/sys/class/net/lo").exists():                    # no name of this machine need be looked up
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    run = subprocess.Popen([*map(str, command)], env=os.environ | environment, text=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    ranks = []
    try:
        yield run, ranks
    finally:
        ranks += children(run.pid)
        run.kill()
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def children(pid):
    """The processes that a process has started (Linux; elsewhere none are found)."""
    parents = {int(file.parent.name): file for file in Path("/proc").glob("[0-9]*/stat")}
    found = []
    for child, file in parents.items():
        with contextlib.suppress(OSError):
            found += [child] * (int(file.read_text().rpartition(")")[2].split()[1]) == pid)
    return sorted(found)


@pytest.mark.parametrize("fsdp", [[], ["--fsdp", "--checkpointing"]], ids=["DistributedDataParallel", "fully_shard"])
def test_two_processes_have_the_losses_of_one_and_one_goes_on_where_two_stopped(folder, pairs, monkeypatch, fsdp):
    flags = ["--stage", 2, "--data", pairs, "--init", ROOT / "weights/tiny/adapter.safetensors", "--batch-size", 4,
             "--steps-per-epoch", 4, "--epochs", 1, "--warmup-steps", 1, "--eval-every", 2, "--val", 4, "--workers", 0]
    one, two = folder / "one", folder / f"two{len(fsdp)}"
    if not one.exists():
        assert command(monkeypatch, *flags, "--out", one) is None
    with torchrun(*flags, *fsdp, "--out", two) as (run, _):
        error = run.communicate(timeout=200)[1]
    assert run.returncode == 0, error
    expected = log_of(one)
    for resumed in (False, True):
        for entry, other in zip(expected, log_of(two), strict=True):
            assert other["loss"] == pytest.approx(entry["loss"], abs=1e-5)
            assert other.get("val_loss", 0) == pytest.approx(entry.get("val_loss", 0), abs=1e-5)
        adapter = load_file(two / "adapter.safetensors")
        for name, tensor in load_file(one / "adapter.safetensors").items():
            torch.testing.assert_close(adapter[name], tensor, atol=1e-4, rtol=1e-3)
        if not resumed:
            checkpoint.checkpoints(two)[-1].unlink()
            assert command(monkeypatch, *flags, "--out", two, "--resume") is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_a_killed_process_ends_the_others_with_a_line_and_another_number_goes_on(folder, pairs, monkeypatch):
    flags = [*train_command(pairs, folder / "lost", 30)[2:]]
    with torchrun(*flags) as (run, _):
        started = time.monotonic()
        while not checkpoint.checkpoints(folder / "lost") and time.monotonic() - started < 90:
            time.sleep(0.05)
        os.kill(children(run.pid)[-1], signal.SIGKILL)
        error = run.communicate(timeout=200)[1]
    assert run.returncode == 1 and "rank 0 has lost another process of this run" in error
    assert checkpoint.unfinished(folder / "lost") and command(monkeypatch, *flags, "--resume") is None
    assert [step for step, _ in losses(folder / "lost")] == list(range(1, 31))
    assert losses(folder / "lost")[-1][1] < losses(folder / "lost")[0][1]


@pytest.mark.parametrize("flags, says", [
    (["--stage", "2"], "stage1/adapter.safetensors: no such file; stage 2 begins where stage 1 ended"),
    (["--stage", "1", "--data", "nowhere"], "nowhere: no such file"),
    (["--stage", "1", "--weights", "nowhere"], "nowhere: no weights folder"),
    (["--stage", "2", "--recipe", "minigpt4"], "the recipe minigpt4 has no stage 2"),
    (["--stage", "1", "--batch-size", "0"], "--batch-size is 0"),
    (["--stage", "1", "--batch-size", "4", "--accumulate", "3"], "1 processes with --accumulate 3 cannot share"),
    (["--stage", "1", "--pictures", "0"], "--pictures is 0"),
    (["--stage", "1", "--save-every", "-1"], "--save-every is -1"),
    (["--stage", "1", "--fsdp"], "start them with torchrun"),
    (["--stage", "1", "--pictures", "3", "--val", "3"], "--val is 3"),
    (["--stage", "1", "--init", "none.safetensors"], "none.safetensors: no such file"),
])
def test_what_cannot_be_trained_is_said_in_one_line(tmp_path, monkeypatch, capsys, flags, says):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *flags) == 1
    error = capsys.readouterr().err.splitlines()
    assert says in error[-1] and not list(tmp_path.glob("runs/stage*"))
