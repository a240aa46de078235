"""training/run.py, validation.py, report.py: what a run logs, evaluates, warns of and refuses."""
import json
import math

import pytest

from tests.training.short_runs import log_of, short_run
from training.checkpoints import load_checkpoint
from training.data import open_source
from training.sources import Part


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
