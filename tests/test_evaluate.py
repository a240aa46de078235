"""evaluate.py as a command: without arguments, and with --published."""
import evaluate
from evaluation.answers import BENCHMARKS
from gallery import benchmark as gallery
from gallery.scenes import Scene


def test_without_arguments_the_gallery_is_made_answered_and_judged(here, monkeypatch, capsys):
    scene = Scene("dancer", "oil", "ember", "in the centre", 5)
    monkeypatch.setattr(gallery, "scenes", lambda *_: {(name, "1"): scene for name in BENCHMARKS})
    evaluate.main(evaluate.command_line().parse_args(["--set", "max_new_tokens=5"]))
    report = capsys.readouterr().out
    assert "Judged by the gallery's rules" in report and "| ArtGPT-4 – MiniGPT-4 |" in report
    assert "–" not in report.partition("| ArtGPT-4 |")[2].partition("\n")[0]
    assert (here / "runs/gallery-benchmark/MDIUC/1.png").is_file()
    assert report.startswith((here / "runs/evaluation/report.md").read_text().rstrip())


def test_published_prints_the_papers_tables_and_asks_no_model(capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "named_models", None)
    evaluate.main(evaluate.command_line().parse_args(["--published"]))
    printed = capsys.readouterr().out
    assert "| MiniGPT-4 | 2.60 | 2.30 | 1.80 | 2.50 | 2.30 |" in printed
    assert "| MiniGPT-4, overall | 2.30 | 2.35 |" in printed
