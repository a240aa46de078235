"""Models and their answers: names, dialogues, and that nothing is asked twice."""
import json
import re
import shutil

import pytest
import torch
from PIL import Image

from artgpt4 import ArtGPT4
from common.files import save_adapter
from evaluation.answers import named_weights
from evaluation.items import QUESTIONS
from tests.evaluation.runs import TINY, json_lines, run_evaluate


@pytest.fixture
def prompts(monkeypatch):
    """The prompts that models are given."""
    given, prompt_ids = [], ArtGPT4.prompt_ids

    def recorded(model, prompt):
        given.append(prompt)
        return prompt_ids(model, prompt)

    monkeypatch.setattr(ArtGPT4, "prompt_ids", recorded)
    return given


def test_models_answer_side_by_side_and_each_round_sees_those_before_it(
        benchmark_folder, tmp_path, prompts):
    adapter = tmp_path / "other.safetensors"
    changed = ArtGPT4.from_pretrained(TINY)
    torch.nn.init.zeros_(changed.proj.weight)
    save_adapter(changed, adapter)
    shutil.rmtree(benchmark_folder / "IDC")
    run_evaluate(benchmark_folder, "--weights", f"Art={TINY}", f"Blind={adapter}",
                 "--out", tmp_path / "run", "--max-new-tokens", 12, "--temperature", 1)
    records = json_lines(tmp_path / "run" / "answers.jsonl")
    found = [(r["model"], r["benchmark"], r["number"], len(r["answers"])) for r in records]
    assert found == [
        ("Art", "ISAC", 1, 1), ("Art", "ICRC", 1, 1), ("Art", "MDIUC", 1, 5),
        ("Blind", "ISAC", 1, 1), ("Blind", "ICRC", 1, 1), ("Blind", "MDIUC", 1, 5)]
    assert records[0]["answers"] != records[3]["answers"]
    answers, last_prompt = records[2]["answers"], prompts[6]
    assert all(answers)
    texts = (*answers[:4], *QUESTIONS["MDIUC"])
    assert [last_prompt.count(text) for text in texts] == [1] * 9
    assert last_prompt.count("<ImageHere>") == 1


def test_only_what_has_changed_is_asked_again(quick, benchmark_folder, capsys):
    out = quick()
    assert len(quick.asked) == 12
    quick()
    quick(models=("Art",))
    assert len(quick.asked) == 12
    (benchmark_folder / "questions.json").write_text('{"ISAC": "Who is sad?"}')
    Image.new("RGB", (9, 9), "red").save(benchmark_folder / "IDC" / "2.webp")
    quick(models=("Art",))
    assert quick.asked[12:] == [("Art", "IDC 2"), ("Art", "ISAC 1")]
    quick("--seed", 3, models=("Art",))
    assert len(quick.asked) == 20
    with open(out / "answers.jsonl", "a") as file:
        file.write('{"id": 3}\n')
    capsys.readouterr()
    with pytest.raises(SystemExit):
        quick()
    expected = (r"evaluate.py: .*answers\.jsonl, line 21: not a record of this file; "
                r"remove the line\n")
    assert re.fullmatch(expected, capsys.readouterr().err)


def test_weights_are_named_by_the_user_or_by_their_file(tmp_path):
    for name in ("a", "adapter"):
        (tmp_path / f"{name}.safetensors").write_text(name)
    texts = [str(TINY), f"X={tmp_path / 'a.safetensors'}", f"X={tmp_path / 'adapter.safetensors'}"]
    named = named_weights(texts, TINY)
    assert [(w.name, w.folder) for w in named] == [("tiny", TINY), ("X", TINY), ("X", TINY)]
    assert len({str(w.version()) for w in named}) == 3
    texts = [str(tmp_path / "a.safetensors"), str(tmp_path / "adapter.safetensors")]
    assert [w.name for w in named_weights(texts, TINY)] == ["a", tmp_path.name]


@pytest.mark.parametrize("texts, message", [
    (["weights/none"], "no such weights folder"),
    ([str(TINY), str(TINY)], "give each a name"),
    (["M=weights/none/minigpt4.safetensors"], "train.py --stage 1 --mode minigpt4"),
])
def test_missing_weights_and_names_given_twice_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        named_weights(texts, TINY)


def test_the_answers_of_an_item_are_as_json_what_the_model_said(quick):
    records = json_lines(quick(models=("Art",)) / "answers.jsonl")
    asked = json.loads(json.dumps(QUESTIONS["MDIUC"]))
    assert records[-1]["answers"] == [f"Art says of MDIUC 1: {question}" for question in asked]
    assert records[-1]["questions"] == asked
