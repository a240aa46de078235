"""A run's folder: what may be resumed, what is refused, and what is left after an end."""
import fcntl
import math
import shutil
import signal

import pytest
import torch

import train
from common.models import answers
from gallery import score
from tests.training.kill_and_resume import losses, same_files
from tests.training.small_files import TINY, log_of, train_py
from training.run import Run, checkpoints


@pytest.fixture(scope="module", autouse=True)
def short_answers():
    """samples.png shows the first words alone of what the model says, so that a run is short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "answers", lambda model, embeds, longest, **sampling: answers(
            model, embeds, 6, **sampling))
        yield


@pytest.fixture(scope="module")
def flags(pairs):
    """Of a run of four steps, evaluated at its end alone."""
    return ["--stage", 2, "--data", pairs, "--init", TINY, "--recipe", "mine", "--batch-size", 4,
            "--steps", 4, "--val", 2, "--workers", 0, "--accumulate", 2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, flags):
    """A finished run with a checkpoint after every step; not to be changed."""
    out = tmp_path_factory.mktemp("run") / "finished"
    train.SAVE_EVERY = 1
    assert train_py(*flags, "--out", out) == 0
    train.SAVE_EVERY = 100
    return out


@pytest.fixture
def unfinished(tmp_path, finished):
    """The run as a kill would have left it in step 4."""
    out = shutil.copytree(finished, tmp_path / "unfinished")
    checkpoints(out)[-1].unlink()
    for name in ("adapter.safetensors", "best.safetensors", "samples.png"):
        (out / name).unlink()
    return out


def test_a_run_writes_its_results_and_the_last_two_checkpoints(finished):
    log = log_of(finished)
    assert [entry["step"] for entry in log] == [1, 2, 3, 4] and log[-1]["val_loss"] > 0
    assert {file.name for file in finished.iterdir()} == {
        "checkpoint-0000003-of-0000004.pt", "checkpoint-0000004-of-0000004.pt",
        "adapter.safetensors", "best.safetensors", "familiarity.safetensors", "samples.png",
        "log.jsonl"}


ODD_LOG = (b'{"step": 4, "loss": 9}\n\xff\xfe\n[1]\n' + b"[" * 10000 + b'\n{"step": "3"}\n'
           b'{"step": NaN}\n{"step": 1e999}\nnull\n{"step": -1}\n{}\n{"step"')


def test_an_interrupted_run_ends_with_the_same_bits_for_any_log(finished, unfinished, flags):
    log = unfinished / "log.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:3]) + ODD_LOG)
    (unfinished / ".checkpoint-0000004-of-0000004.pt.aa.part").write_bytes(b"half")
    assert train_py(*flags, "--out", unfinished, "--resume") == 0
    assert same_files(finished, unfinished) and losses(unfinished) == losses(finished)
    assert not list(unfinished.glob(".*"))


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


CHANGES = [["--seed", 7], ["--steps", 5], ["--val", 3], ["--dtype", "bfloat16"], ["--lr", 0.1],
           ["--mode", "minigpt4"], ["--moments", "bfloat16"], ["--int8"], ["--batch-size", 2]]


def test_other_flags_or_weights_are_named_and_not_resumed(tmp_path, unfinished, flags, capsys):
    other, config = (shutil.copytree(TINY, tmp_path / name) for name in ("values", "config"))
    flipped(other / "llama.safetensors")
    (config / "config.json").write_text(
        (config / "config.json").read_text().replace("10000.0", "5000.0"))
    before = log_of(unfinished)
    for change in (*CHANGES, ["--weights", other], ["--weights", config]):
        assert train_py(*flags, *change, "--out", unfinished, "--resume") == 2
        assert change[0].strip("-").replace("-", "_") in capsys.readouterr().err
    assert log_of(unfinished) == before and len(checkpoints(unfinished)) == 1


def rewritten(change):
    def damage(file):
        checkpoint = torch.load(file, weights_only=True)
        change(checkpoint["tensors"])
        torch.save(checkpoint, file)
    return damage


PROJ, SQUARE = "weights.proj.weight", "exp_avg_sq.proj.weight"
DAMAGES = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-2000]), "a flipped bit": flipped,
    "of other keys": lambda file: torch.save({"step": 4}, file),
    "a moment missing": rewritten(lambda held: held.pop(SQUARE)),
    "another shape": rewritten(lambda held: held.update({PROJ: held[PROJ].t()})),
    "another dtype": rewritten(lambda held: held.update({PROJ: held[PROJ].half()})),
    "NaN": rewritten(lambda held: held[PROJ].fill_(math.nan)),
    "too large": rewritten(lambda held: held.update({SQUARE: torch.zeros(1).expand(10 ** 9)})),
}


def test_without_a_damaged_checkpoint_the_one_before_is_used(tmp_path, finished, flags, capsys):
    out = shutil.copytree(finished, tmp_path / "run")
    last = checkpoints(out)[-1]
    whole = last.read_bytes()
    (out / "adapter.safetensors").unlink()                    # a kill came after the checkpoint
    assert train_py(*flags, "--out", out, "--resume") == 0 and same_files(finished, out)
    for damage in DAMAGES.values():
        last.write_bytes(whole)
        damage(last)
        assert train_py(*flags, "--out", out, "--resume") == 1
        assert f"{last}: " in capsys.readouterr().err
        assert same_files(finished, out) and losses(out) == losses(finished)
    last.unlink()
    assert train_py(*flags, "--out", out, "--resume") == 0
    assert same_files(finished, out) and losses(out) == losses(finished)


def test_a_folder_with_a_run_is_only_replaced_with_overwrite(tmp_path, finished, unfinished, flags,
                                                             capsys):
    for out in (finished, unfinished):
        before = {file.name: file.read_bytes() for file in out.iterdir()}
        assert train_py(*flags, "--out", out) == 1
        assert checkpoints(out)[-1].name in capsys.readouterr().err
        assert before == {file.name: file.read_bytes() for file in out.iterdir()}
    results, begun, model = tmp_path / "results", tmp_path / "begun", tmp_path / "model"
    for folder, name, *more in ((results, "adapter.safetensors"), (begun, "log.jsonl"),
                                (model, "config.json", "--overwrite")):
        folder.mkdir()
        (folder / name).write_text("x\n")
        assert train_py(*flags, "--out", folder, *more) == 1
    assert train_py(*flags, "--out", results, "--resume") == 1          # its checkpoints are gone
    assert train_py(*flags, "--out", begun, "--resume") == 0  # killed before the first checkpoint
    assert same_files(finished, begun)
    assert train_py(*flags, "--seed", 1, "--out", begun, "--overwrite") == 0
    assert not same_files(finished, begun) and len(checkpoints(begun)) == 1


def test_a_second_command_is_refused_and_removes_nothing(tmp_path, unfinished, flags, capsys):
    new = tmp_path / "new"
    new.mkdir()
    for out, more in ((new, []), (unfinished, ["--resume"]), (unfinished, ["--overwrite"])):
        with open(out / "log.jsonl", "ab") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            before = {file.name for file in out.iterdir()}
            assert train_py(*flags, *more, "--out", out) == 1
            assert str(out) in capsys.readouterr().err
            assert before == {file.name for file in out.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_a_run_and_the_resumed_one_has_the_same_bits(
        tmp_path, finished, flags, monkeypatch, capsys, number):
    out, handler, log = tmp_path / "run", signal.getsignal(number), Run.log

    def signalled(self, *arguments):
        log(self, *arguments)
        if self.step == 2:
            signal.raise_signal(number)

    monkeypatch.setattr(Run, "log", signalled)
    assert train_py(*flags, "--out", out) == 128 + number and signal.getsignal(number) is handler
    assert [file.name[11:18] for file in checkpoints(out)] == ["0000003"]
    assert "--resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert train_py(*flags, "--out", out, "--resume") == 0
    assert same_files(finished, out) and losses(out) == losses(finished)


def test_steps_without_a_finite_loss_change_nothing(tmp_path, flags, monkeypatch, capsys):
    def broken(at):
        loss = iter(range(100))
        return lambda model, _, summed: summed * math.nan if next(loss) in at else summed

    load_model = train.load_model
    for at, code, steps in (((2, 3), 0, 4), (range(100), 1, 3)):
        def load(*arguments, at=at):
            model = load_model(*arguments)
            model.register_forward_hook(broken(at))
            return model

        monkeypatch.setattr(train, "load_model", load)
        out = tmp_path / str(code)
        assert train_py(*flags, "--val", 0, "--out", out) == code
        assert len(log_of(out)) == steps
    assert [step for step, loss in losses(tmp_path / "0") if loss is None] == [2]
    assert "--lr" in capsys.readouterr().err and not checkpoints(tmp_path / "1")
