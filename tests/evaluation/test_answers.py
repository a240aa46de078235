"""Benchmark folders, what models answer, answers from elsewhere; and nothing is asked twice."""
import json
import shutil
from argparse import Namespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from common.models import TINY
from evaluation.answers import QUESTIONS, named_models, read_items
from tests.conftest import json_lines
from tests.evaluation.conftest import gives


def test_items_are_the_numbered_pictures_of_any_type_in_order(benchmark_folder, tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):      # none there
        read_items(tmp_path)
    items = read_items(benchmark_folder)
    assert [f"{item.name} {item.file.name}" for item in items] == [
        "IDC 1 1.png", "IDC 2 2.webp", "IDC 10 10.gif", "ISAC 1 1.bmp", "ICRC 1 01.jpg",
        "MDIUC 1 1.jpeg"]
    assert [len(item.questions) for item in items] == [1, 1, 1, 1, 1, 5]
    assert items[3].questions[0].startswith("Analyze the emotions expressed by the individuals")


def test_a_folder_may_bring_questions_for_all_or_for_each(benchmark_folder):
    (benchmark_folder / "questions.json").write_text(json.dumps({
        "IDC": {"2": "What is it?", "10": ["And?", "So?"]},
        "ISAC": "Who is sad?",
        "MDIUC": ["One?", "Two?"]}))
    assert {item.name: item.questions for item in read_items(benchmark_folder)} == {
        "IDC 1": (QUESTIONS["IDC"],), "IDC 2": ("What is it?",), "IDC 10": ("And?", "So?"),
        "ISAC 1": ("Who is sad?",), "ICRC 1": (QUESTIONS["ICRC"],), "MDIUC 1": ("One?", "Two?")}


@pytest.mark.parametrize("file, text", [
    ("questions.json", "{"), ("questions.json", '{"ABC": "?"}'), ("questions.json", "[1]"),
    ("questions.json", '{"IDC": {"7": "What?"}}'), ("questions.json", '{"IDC": ["What?", 5]}'),
    ("questions.json", '{"ISAC": " "}'), ("questions.json", '{"ISAC": []}'),
    ("IDC/4.png", "no picture"), ("IDC/01.gif", None)])
def test_a_folder_with_a_fault_is_refused_by_its_file(benchmark_folder, file, text):
    if text is None:
        shutil.copy(benchmark_folder / "IDC" / "10.gif", benchmark_folder / file)
    else:
        (benchmark_folder / file).write_text(text)
    with pytest.raises(ValueError, match=f"{file[:-4]}|1.png"):
        read_items(benchmark_folder)


# ---- Answers of models

def test_models_without_a_name_are_several_whatever_their_files_are_called():
    args = Namespace(weights=[], adapter=["1/adapter.st", "2/adapter.st", "C=3.st", "4.st"])
    assert [name for name, *_ in named_models(args)] == ["1/adapter.st", "2/adapter.st", "C", "4"]


def test_models_answer_side_by_side_each_question_a_round(run, benchmark_folder, tmp_path):
    tensors = load_file(TINY / "adapter.safetensors")
    tensors["proj.weight"] = torch.zeros_like(tensors["proj.weight"])
    save_file(tensors, tmp_path / "blind.safetensors")
    shutil.rmtree(benchmark_folder / "IDC")
    code, _, error = run("--adapter", f"Art={TINY / 'adapter.safetensors'}",
                         tmp_path / "blind.safetensors", "--set", "max_new_tokens=12")
    assert code == 0, error
    records = json_lines(tmp_path / "run" / "answers.jsonl")
    assert [(r["model"], r["benchmark"], r["number"], len(r["answers"])) for r in records] == [
        ("Art", "ISAC", 1, 1), ("Art", "ICRC", 1, 1), ("Art", "MDIUC", 1, 5),
        ("blind", "ISAC", 1, 1), ("blind", "ICRC", 1, 1), ("blind", "MDIUC", 1, 5)]
    assert records[0]["answers"] != records[3]["answers"] and len(set(records[2]["answers"])) > 2
    assert records[2]["questions"] == QUESTIONS["MDIUC"]


def test_only_what_has_changed_is_asked_again(quick, benchmark_folder):
    quick()
    assert len(quick.asked) == 12
    quick()
    quick(models=("Art",))
    assert len(quick.asked) == 12
    (benchmark_folder / "questions.json").write_text('{"ISAC": "Who is sad?"}')
    Image.new("RGB", (9, 9), "red").save(benchmark_folder / "IDC" / "2.webp")
    quick(models=("Art",))
    assert quick.asked[12:] == [("Art", "IDC 2"), ("Art", "ISAC 1")]
    quick("--set", "seed=3", models=("Art",))
    (quick.out.parent / "Art.safetensors").write_text("other weights")
    quick(models=("Art",))
    assert len(quick.asked) == 26


def test_a_killed_run_continues_and_ends_as_one_that_was_not(quick):
    quick()
    whole = {file.name: file.read_bytes() for file in quick.out.iterdir()}
    file = quick.out / "answers.jsonl"
    file.write_bytes(b"\n".join(file.read_bytes().split(b"\n")[:4])[:-40])    # within the fourth
    quick()
    assert quick.asked[12:] == quick.asked[3:12]
    assert (quick.out / "report.html").read_bytes() == whole["report.html"]
    quick()
    assert len(quick.asked) == 21                             # the cut line hides no later one


def test_a_full_disk_is_one_line_and_the_same_command_continues(quick, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        code, _, error = quick()
    assert code == 1 and "answers.jsonl" in error and quick()[0] == 0


@pytest.mark.parametrize("flags, code, named", [
    (("--weights", "none"), 1, "none"), (("--adapter", "none.safetensors"), 1, "none.safetensors"),
    (("--weights", TINY, TINY, "--adapter", "a"), 2, "--adapter"),
    (("--set", "colour=1"), 2, "colour"), (("--set", "temperature"), 2, "temperature"),
    (("--answers", "X"), 2, "--answers"), (("--answers", "X=none.jsonl"), 1, "none.jsonl"),
    (("--judge", "http://127.0.0.1:9/v1"), 2, "--judge-model"),
    (("--judge", "somewhere", "--judge-model", "x"), 2, "--judge"),
    (("--judge", "http://me:pass@127.0.0.1/v1", "--judge-model", "x"), 2, "--judge"),
    (("--judge", "http://127.0.0.1/v1?key=pass", "--judge-model", "x"), 2, "--judge"),
    (("--judge", "http://h/v1", "--judge-model", "x", "--judge-options", "[1]"), 2, "--judge-opt"),
    (("--judge", "gallery"), 1, "truth.json")])
def test_wrong_flags_are_one_line_before_any_model_is_asked(run, tmp_path, flags, code, named):
    found, _, error = run(*flags)
    last = error.splitlines()[-1]
    assert found == code and named in last and last.startswith("evaluate.py: ")
    assert "pass@" not in error and "Traceback" not in error and "internal" not in error
    assert not (tmp_path / "run" / "answers.jsonl").exists()


# ---- Answers from elsewhere

@pytest.fixture
def lines(benchmark_folder):
    """Records that answer every item of the benchmark folder."""
    records = [{"benchmark": item.benchmark, "number": item.number,
                "answers": [f"about {item.name}, {i}" for i in range(len(item.questions))]}
               for item in read_items(benchmark_folder)]
    records[0]["answer"] = records[0].pop("answers")[0]
    return records


def written(tmp_path, records):
    (tmp_path / "gpt4.jsonl").write_text("\n\n".join(map(json.dumps, records)))
    return f"GPT-4={tmp_path / 'gpt4.jsonl'}"


def test_texts_from_elsewhere_are_judged_beside_a_models(quick, server, tmp_path, lines):
    server.script += [gives(2)] * 6
    code, report, _ = quick("--answers", written(tmp_path, lines), *server.flags, models=("Art",))
    assert code == 0 and len(server.requests) == 12
    assert f"GPT-4: answers from {tmp_path / 'gpt4.jsonl'}" in report and "| GPT-4 |" in report
    assert "about MDIUC 1, 4" in (quick.out / "report.html").read_text()


def test_a_runs_own_answers_can_be_given_to_another_run(quick, run, tmp_path):
    quick()
    (quick.out / "answers.jsonl").rename(tmp_path / "a.jsonl")
    asked = list(quick.asked)
    code, report, _ = run("--answers", f"Mini={tmp_path / 'a.jsonl'}")
    assert code == 0 and quick.asked == asked
    html = (quick.out / "report.html").read_text()
    assert "Mini says of IDC 1" in html and "Art says" not in html


@pytest.mark.parametrize("change, named", [
    (lambda records: records.pop(2), "IDC 10"),
    (lambda records: records[1].update(answers=[3]), "IDC 2"),
    (lambda records: records[5].update(answers=["one"]), "MDIUC 1"),
    (lambda records: records[5].update(answers="texts"), "MDIUC 1"),
    (lambda records: records[1].update(questions=["Who?"]), "IDC 2")])
def test_answers_with_a_fault_are_refused_by_item(run, tmp_path, lines, change, named):
    change(lines)
    code, _, error = run("--answers", written(tmp_path, lines))
    assert code == 1 and f"gpt4.jsonl: {named}" in error
