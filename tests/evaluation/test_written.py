"""Answers that no model here wrote: read, judged like the others, or refused by place."""
import json

import pytest

from evaluation.items import read_items
from evaluation.written import named_answers
from tests.evaluation.bad_server import gives
from tests.evaluation.runs import run_evaluate


@pytest.fixture
def lines(benchmark_folder):
    """Records that answer every item of the benchmark folder."""
    records = []
    for item in read_items(benchmark_folder):
        texts = [f"about {item.name}, {i}" for i in range(len(item.questions))]
        records.append({"benchmark": item.benchmark, "number": item.number, "answers": texts})
    records[0]["answer"] = records[0].pop("answers")[0]
    return records


def written(tmp_path, records):
    file = tmp_path / "gpt4.jsonl"
    file.write_text("\n\n".join(record if isinstance(record, str) else json.dumps(record)
                                for record in records))
    return file


def test_texts_from_elsewhere_are_judged_beside_a_models(quick, server, tmp_path, lines):
    server.script += [gives(2)] * 6
    out = quick("--answers", f"GPT-4={written(tmp_path, lines)}", *server.flags, models=("Art",))
    assert len(server.requests) == 12 and {name for name, _ in quick.asked} == {"Art"}
    report = (out / "report.md").read_text()
    assert "Art and GPT-4 on the paper's four benchmarks" in report and "| GPT-4 |" in report
    assert "about MDIUC 1, 4" in (out / "report.html").read_text()


def test_answers_alone_load_no_model(quick, benchmark_folder, tmp_path, lines):
    run_evaluate(benchmark_folder, "--answers", f"GPT-4={written(tmp_path, lines)}", "--out",
                 tmp_path / "alone")
    assert quick.asked == []
    assert "GPT-4 on the paper's" in (tmp_path / "alone" / "report.md").read_text()


def changed(number, **fields):
    def change(records):
        records[number] |= fields
    return change


@pytest.mark.parametrize("change, message", [
    (lambda records: records.pop(2), r"gpt4\.jsonl: no answer to IDC 10"),
    (lambda records: records.append(records[1]), "line 13: IDC 2 is answered already"),
    (lambda records: records.insert(0, "{"), 'line 1: expected is {"benchmark"'),
    (lambda records: records.insert(0, {"benchmark": "IDC"}), "line 1: expected is"),
    (changed(1, answers=[3]), "line 3: the answers are not texts"),
    (changed(5, answers=["one"]), "1 answers to MDIUC 1, which has 5 questions"),
    (changed(1, questions=["Who?"]), "IDC 2 was asked other questions, the first 'Who"),
])
def test_a_file_with_a_fault_is_refused_by_its_place(
        benchmark_folder, tmp_path, lines, change, message):
    change(lines)
    with pytest.raises(ValueError, match=message):
        named_answers([f"X={written(tmp_path, lines)}"], read_items(benchmark_folder), [])


def test_other_pictures_are_told_and_names_are_needed_once(
        benchmark_folder, tmp_path, lines, capsys):
    lines.append({"benchmark": "IDC", "number": 99, "answer": "x"})
    file, items = written(tmp_path, lines), read_items(benchmark_folder)
    [source], [row] = named_answers([f"X={file}"], items, ["Art"])
    assert source.name == "X" and row["IDC 1"] == ["about IDC 1, 0"]
    assert "1 answers are to pictures that the benchmark does not have" in capsys.readouterr().err
    for text, message in ((str(file), "expected is NAME=FILE"), (f"Art={file}", "is a model Art"),
                          (f"X={tmp_path}", "add the letter of one"),
                          (f"X={tmp_path / 'none'}", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            named_answers([text], items, ["Art"])


def test_the_authors_folder_brings_its_dialogues_questions(benchmark_folder, tmp_path):
    (benchmark_folder / "MDIUC" / "Answer1.txt").write_text("What?\nA:x\nM:y\n\nWhy?\nA:z\nM:w\n")
    for name, numbers in (("IDC", (1, 2, 10)), ("ISAC", (1,)), ("ICRC", (1,))):
        text = "\n".join(f"{number}.\nA:a\nM:m\n" for number in numbers)
        (benchmark_folder / name / "Answer.txt").write_text(text)
    items = read_items(benchmark_folder)
    assert items[-1].questions == ("What?", "Why?")
    _, rows = named_answers([f"Art={benchmark_folder}:A", f"Mini={benchmark_folder}:M"], items, [])
    assert [row["MDIUC 1"] for row in rows] == [["x", "z"], ["y", "w"]]
    assert [row["IDC 10"] for row in rows] == [["a"], ["m"]]
