"""evaluate.py as a command: without arguments, with --published, and what it refuses."""
import re
import shutil

import pytest

import evaluate
from evaluation.rubrics import BENCHMARKS
from gallery import benchmark as gallery
from gallery.scenes import Scene
from tests.evaluation.runs import TINY, run_evaluate


def test_without_arguments_the_gallery_is_made_answered_and_judged(tmp_path, monkeypatch):
    scene = Scene("dancer", "oil", "ember", "in the centre", 5)
    scenes = {(name, "1"): scene for name in BENCHMARKS}
    monkeypatch.setattr(gallery, "scenes", lambda *_: scenes)
    monkeypatch.setattr(evaluate, "HERE", tmp_path)
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights" / "tiny"
    shutil.copytree(TINY, weights)
    shutil.copy(TINY / "adapter.safetensors", weights / "minigpt4.safetensors")
    run_evaluate(None, "--max-new-tokens", 40)
    text = (tmp_path / "runs" / "evaluation" / "report.md").read_text()
    assert "ArtGPT-4 and MiniGPT-4 on the paper's four benchmarks" in text
    assert "Judge: gallery" in text
    assert (tmp_path / "runs" / "gallery-benchmark" / "MDIUC" / "1.png").is_file()
    assert not re.search(r"\| ArtGPT-4 \|.*–", text)


def test_published_prints_without_any_weights(capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "named_weights", None)
    run_evaluate(None, "--published")
    printed = capsys.readouterr().out
    assert "| MiniGPT-4 | 2.60 | 2.30 | 1.80 | 2.50 | 2.30 |" in printed
    assert printed.count("Table ") == 3


def test_a_server_needs_the_name_of_a_model_before_anything_is_asked(quick, capsys):
    with pytest.raises(SystemExit):
        quick("--judge", "http://127.0.0.1:9/v1")
    assert "--judge URL needs --judge-model NAME" in capsys.readouterr().err
    assert quick.asked == []


def test_judge_options_are_a_json_object(quick, capsys):
    for text in ("[1]", "{", "0"):
        with pytest.raises(SystemExit) as stopped:
            quick("--judge-options", text)
        assert stopped.value.code == 2
        assert "is no JSON object such as" in capsys.readouterr().err
