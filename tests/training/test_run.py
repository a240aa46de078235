"""training/run.py, validation.py, report.py: what a run logs, evaluates, warns of and refuses."""
import itertools
import json
import math
import re
import shutil
import sys
import types

import pytest
import torch
from safetensors.torch import load_file

from tests.training import short_runs
from tests.training.short_runs import log_of, short_run
from training.checkpoints import load_checkpoint
from training.data import held_out_batches, open_source
from training.run import begin_folder
from training.sources import Part
from training.validation import Evaluation


def test_the_log_counts_tokens_memory_and_what_was_skipped(tmp_path, pairs):
    copy, tokens = tmp_path / "pairs", []
    (copy / "image").mkdir(parents=True)
    (copy / "filter_cap.json").write_bytes((pairs / "filter_cap.json").read_bytes())
    for file in pairs.glob("image/*.jpg"):
        end = 100 if file.name == "3.jpg" else None
        (copy / "image" / file.name).write_bytes(file.read_bytes()[:end])
    short_run(tmp_path / "run", open_source(copy), loss=lambda losses: tokens.append(len(losses)))
    log = log_of(tmp_path / "run")
    lines = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    named = [json.loads(line) for line in lines]
    assert log[-1]["skipped"] == len(named) >= 4
    assert {entry["sample"] for entry in named} == {"3.jpg"}
    for entry, count in zip(log, tokens, strict=True):
        assert entry["tokens_per_s"] / entry["samples_per_s"] == pytest.approx(count / 8)
        assert 50e6 < entry["memory"] < 100e9
        assert 0 < entry["waiting_for_data"] < 1
        assert entry["grad_norm"] > 0 and entry["skipped_steps"] == 0


def test_the_end_of_the_data_is_for_validation_and_never_trained_on(tmp_path, pairs, monkeypatch):
    source, seen = open_source(pairs), set()
    part, held_out = Part(source, range(9)), Part(source, range(9, 12))
    words = part.words

    def seeing_words(i, *rest):
        seen.add(part.name(i))
        return words(i, *rest)

    monkeypatch.setattr(part, "words", seeing_words)
    short_run(tmp_path / "run", part, val=held_out)
    assert seen == {f"{i}.jpg" for i in range(9)}
    assert [held_out.name(i) for i in range(3)] == ["9.jpg", "10.jpg", "11.jpg"]
    assert sorted(held_out.order(1, 2)) == [0, 1, 2]
    assert list(part.order(1, 2)) != list(part.order(1, 3))
    log = log_of(tmp_path / "run")
    assert [entry["step"] for entry in log if "val_loss" in entry] == [3, 6]
    assert 0 < log[5]["val_loss"] < log[2]["val_loss"]
    report = (tmp_path / "run" / "report.html").read_text()
    assert report.count("<svg") == 4 and ">validation<" in report
    assert 'src="data:image/jpeg' in report and "<td>6</td>" in report
    assert "http:" not in report and "https:" not in report and "<script" not in report


def test_a_first_loss_that_is_a_guess_gives_a_warning(tmp_path, gallery, capsys):
    short_run(tmp_path / "run", gallery, loss=lambda losses: losses * 0 + math.log(1248))
    warning = "the first loss, 7.129, is no better than a guess among 1248 tokens, 7.129"
    assert warning in capsys.readouterr().err


def test_a_step_without_a_finite_loss_is_skipped_and_ten_in_a_row_end_the_run(tmp_path, gallery):
    forwards = []

    def loss(losses):
        forwards.append(losses)
        infinite = len(forwards) in (3, 5) or len(forwards) > 8
        return losses * (math.inf if infinite else 1)

    message = "not finite in the 10 steps up to step 18.* the checkpoint of step 8 is kept"
    with pytest.raises(ValueError, match=message):
        short_run(tmp_path / "run", gallery, loss=loss, changes={"steps": 30},
                  save_every=2)
    log = log_of(tmp_path / "run")
    assert [entry["skipped_steps"] for entry in log] == [0, 0, 1, 1, 2, 2, 2, 2, *range(3, 12)]
    assert [entry["step"] for entry in log if entry["loss"] is None] == [3, 5, *range(9, 18)]
    kept = load_checkpoint(tmp_path / "run", {})
    assert kept["step"] == 8 and kept["counts"]["skipped_steps"] == 2
    assert kept["optimizer"]["proj.weight"]["step"] == 6
    assert all(tensor.isfinite().all() for tensor in kept["weights"].values())


def test_a_last_step_without_a_finite_loss_still_leaves_the_files_that_are_announced(
        tmp_path, gallery, capsys):
    forwards = []

    def infinite_at_the_end(losses):
        forwards.append(losses)
        return losses * (math.inf if len(forwards) == 6 else 1)

    short_run(tmp_path / "run", gallery, loss=infinite_at_the_end)
    said = capsys.readouterr()
    assert "the loss of the last 1 steps was not finite; they changed no weights" in said.err
    assert load_checkpoint(tmp_path / "run", {})["step"] == 6
    for name in ("adapter.safetensors", "samples.png", "report.html"):
        assert (tmp_path / "run" / name).is_file() and name in said.out


def test_a_run_without_any_finite_loss_fails_and_leaves_nothing_of_an_older_run(tmp_path, gallery):
    out = tmp_path / "run"
    out.mkdir()
    older = ("adapter.safetensors", "best.safetensors", "samples.png", "report.html", "score.json")
    for name in older:
        (out / name).write_text("of an older run")
    with pytest.raises(ValueError, match="not finite in the 6 steps up to step 6"):
        short_run(out, gallery, loss=lambda losses: losses * math.inf)
    assert not [name for name in older if (out / name).exists()]


def test_weights_with_nan_are_named_at_once(tmp_path, gallery):
    def spoil(model):
        model.llama.blocks[1].mlp.down.weight.data[3, 5] = math.nan

    message = "weights hold NaN or infinity, in llama.blocks.1.mlp.down.weight"
    with pytest.raises(ValueError, match=message):
        short_run(tmp_path / "run", gallery, weights=spoil)
    assert len(log_of(tmp_path / "run")) == 0


def test_a_damaged_log_is_kept_by_step(tmp_path):
    lines = ['{"step": 1, "loss": 5}', '{"step": 2, "lo', "[]", '{"step": 4}', '{"step": 3}']
    (tmp_path / "log.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xff\n")
    begin_folder(tmp_path, 3)
    assert log_of(tmp_path) == [{"step": 1, "loss": 5}, {"step": 3}]


def test_the_best_weights_are_kept_and_patience_ends_a_run(tmp_path, pairs, monkeypatch, capsys):
    source, losses = open_source(pairs), iter([3.0, 2.0, 2.5, 2.25, 1.0])
    monkeypatch.setattr(Evaluation, "losses", lambda self, module: {"val_loss": next(losses)})
    changes = {"eval_every": 1}
    short_run(tmp_path / "run", source, changes=changes, patience=2)
    assert [entry["step"] for entry in log_of(tmp_path / "run")] == [1, 2, 3, 4]
    assert "best.safetensors, of step 2: validation loss 2.000" in capsys.readouterr().out
    short_run(tmp_path / "run", source, changes=changes, patience=2, resume=True)
    assert len(log_of(tmp_path / "run")) == 4                 # it was over
    best, last = (load_file(tmp_path / "run" / f"{name}.safetensors")
                  for name in ("best", "adapter"))
    assert not torch.equal(best["proj.weight"], last["proj.weight"])


def test_texts_that_are_cut_are_counted_in_log_report_and_warning(tmp_path, pairs, capsys):
    short_run(tmp_path / "run", open_source(pairs), changes={"max_text_tokens": 4})
    assert [entry["texts_cut"] for entry in log_of(tmp_path / "run")] == [8, 16, 24, 32, 40, 48]
    error = capsys.readouterr().err
    assert "longer than --max-text-tokens 4; it was cut and lost its end" in error
    assert "48 of 48 texts were cut at --max-text-tokens 4" in error
    report = (tmp_path / "run" / "report.html").read_text()
    for name, value in (("texts cut at --max-text-tokens", "48"), ("pairs", "48"),
                        ("epochs: how often each pair was seen", "4.00")):
        assert f"{name}</th><td>{value}</td>" in report, name


def test_every_held_out_pair_counts_once_for_any_number_of_processes(pairs):
    source = open_source(pairs)
    for batch_size, world in ((5, 1), (4, 2), (6, 3), (1, 1), (8, 5)):
        texts, batches = [], set()
        for rank in range(world):
            found = list(held_out_batches(source, 1, 28, batch_size, 0, rank, world))
            batches.add(len(found))
            for batch, counts in found:
                assert len(batch.texts) <= max(1, batch_size // world)
                texts += batch.texts if counts else []
        assert len(batches) == 1 and len(texts) == len(set(texts)) == 12


def test_too_many_bad_samples_end_a_run_that_is_saved_and_can_be_resumed(tmp_path, pairs):
    copy = tmp_path / "pairs"
    shutil.copytree(pairs, copy)
    (copy / "image" / "3.jpg").write_bytes(b"no picture")
    source, out = open_source(copy), tmp_path / "run"
    message = "1 of .* samples were bad, more than --max-bad 0.*--resume continues after step"
    with pytest.raises(ValueError, match=message):
        short_run(out, source, max_bad=0)
    step = load_checkpoint(out, {})["step"]
    assert step == len(log_of(out)) < 6
    short_run(out, source, max_bad=0.05, resume=True)
    assert len(log_of(out)) == 6


def test_an_error_of_the_loader_comes_after_a_checkpoint_and_says_how_to_continue(
        tmp_path, gallery, monkeypatch):
    batches = short_runs.batches

    def lost_after_4(*arguments, **options):
        yield from itertools.islice(batches(*arguments, **options), 4)
        raise ValueError("a process that reads pictures was killed")

    monkeypatch.setattr(short_runs, "batches", lost_after_4)
    message = "was killed; the same command with --resume continues after step 4"
    with pytest.raises(ValueError, match=message):
        short_run(tmp_path / "run", gallery)
    monkeypatch.undo()
    short_run(tmp_path / "run", gallery, resume=True)
    short_run(tmp_path / "whole", gallery)
    assert ((tmp_path / "run" / "adapter.safetensors").read_bytes()
            == (tmp_path / "whole" / "adapter.safetensors").read_bytes())


def test_the_lines_in_the_documents_send_a_log_to_tensorboard(tmp_path, monkeypatch):
    waiting, written = [], []                                 # it writes when it is closed

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == "runs/stage2/tensorboard"

        def add_scalar(self, key, value, step):
            waiting.append((key, float(value), step))

        def close(self):
            written.extend(waiting)

    tensorboard = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    monkeypatch.setattr(torch.utils, "tensorboard", tensorboard, raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "stage2"
    folder.mkdir(parents=True)
    lines = [{"step": 1, "loss": 2.5, "grad_norm": None}, {"step": 2, "loss": 2.0, "grad_norm": 1}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    document = (short_runs.ROOT / "docs" / "training.md").read_text()
    exec(re.search(r"```python\n(import json, torch.*?)```", document, re.DOTALL)[1], {})
    assert sorted(written) == [("grad_norm", 1, 2), ("loss", 2, 2), ("loss", 2.5, 1),
                               ("step", 1, 1), ("step", 2, 2)]
