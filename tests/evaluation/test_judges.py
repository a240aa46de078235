"""Judges that are programs: blind, in random order, never paid twice; and the gallery's rules."""
import json
import re
import shutil

import pytest

from gallery import benchmark as gallery
from gallery.scenes import Scene
from tests.evaluation.bad_server import gives, says
from tests.evaluation.runs import json_lines

def test_models_are_judged_blind_in_random_order(quick, server):
    out = quick(*server.flags, "--repeats", 2)
    texts = [body["messages"][0]["content"] for _, _, body in server.requests]
    assert len(texts) == 24
    assert all(".safetensors" not in text and str(out) not in text for text in texts)
    names = [re.search("(Art|Mini) says of", text)[1] for text in texts]
    assert names != sorted(names) and names.count("Art") == 12


def test_no_answer_is_paid_for_twice(quick, server):
    server.script += [gives(i % 6) for i in range(24)]
    out = quick(*server.flags, "--repeats", 2)
    file = out / "scores.jsonl"
    order = [record["answer"] for record in json_lines(file)]
    assert len(server.requests) == 24
    file.write_bytes(file.read_bytes()[:-30])                 # a kill: the last line is cut
    quick(*server.flags, "--repeats", 2)
    assert len(server.requests) == 25
    assert [record["answer"] for record in json_lines(file)] == order
    quick(*server.flags)
    quick(*server.flags, "--repeats", 2)
    assert len(server.requests) == 25
    assert "±" in (out / "report.md").read_text()
    quick("--judge", server.url, "--judge-model", "another")
    assert len(server.requests) == 37


def test_what_was_paid_for_stays_unjudged_and_what_got_no_reply_is_asked_again(
        quick, server, waits, capsys):
    server.script += [says("Four!")] * 3 + [(500, {}, "")] * 5
    out = quick(*server.flags, models=("Art",))
    assert len(server.requests) == 3 + 5 + 4
    scores = [record["score"] for record in json_lines(out / "scores.jsonl")]
    assert scores == [None, None, 3, 3, 3, 3]
    report = (out / "report.md").read_text().replace("\\", "")
    assert "Art: 2 of 6 scores are missing (unjudged)" in report
    quick(*server.flags, models=("Art",))
    assert len(server.requests) == 13
    assert "Art: 1 of 6 scores are missing" in (out / "report.md").read_text()
    server.script += [(500, {}, "")] * 15
    with pytest.raises(SystemExit):
        quick(*server.flags)
    expected = "failed three answers in a row, the last by: 500 Internal Server Error"
    assert expected in capsys.readouterr().err


def test_an_answer_given_by_two_models_is_judged_once(quick, server):
    quick.answer = lambda model, item: [item.name] * len(item.questions)
    quick(*server.flags)
    assert len(server.requests) == 6


# ---- The gallery's rules


def test_nothing_but_unjudged_answers_ends_with_code_1_and_the_commonest_reason(
        quick, server, capsys):
    server.script += [says("Four!")] * 15 + [says("2 or 3")] * 3
    with pytest.raises(SystemExit) as stopped:
        quick(*server.flags, models=("Art",))
    assert stopped.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "no scores: 6 of 6 answers are unjudged, most often because: 3 replies, none" in last
    assert "--ask-again" in last
    assert "unjudged" in (quick.tmp_path / "run" / "report.md").read_text()
    server.script += [says("4")] * 5 + [says("?")] * 3
    quick(*server.flags, "--ask-again", models=("Art",))
    assert len(server.requests) == 18 + 5 + 3
    assert "1 of 6 answers are unjudged" in capsys.readouterr().out
    quick(*server.flags, models=("Art",))
    assert len(server.requests) == 26


def together(scores):
    """A reply with these scores under letters."""
    return says(json.dumps({letter: {"score": score, "reason": f"letter {letter}"}
                            for letter, score in scores.items()}))


def test_all_models_may_be_judged_at_once_under_letters_in_random_order(quick, server):
    server.script += [together({"A": 5, "B": 1})] * 12
    flags = (*server.flags, "--judge-together", "--repeats", 2)
    out = quick(*flags)
    assert len(server.requests) == 12
    firsts = []
    for record in json_lines(out / "scores-together.jsonl"):
        a, b = record["answers"]["A"], record["answers"]["B"]
        assert record["verdicts"][a]["score"] == 5 and record["verdicts"][b]["score"] == 1
        firsts.append(a)
    said = [body["messages"][0]["content"] for _, _, body in server.requests]
    shown = [re.search(r'"A": \[\s*"(\w+) says of', text)[1] for text in said]
    assert sorted(set(shown)) == ["Art", "Mini"] and len(set(firsts)) > 6
    quick(*flags)
    assert len(server.requests) == 12
    server.script += [together({"A": 5})] * 12
    quick(*flags, models=("Art",))                            # alone is another question
    assert len(server.requests) == 24


@pytest.fixture
def one_painting(benchmark_folder):
    """The benchmark folder with IDC 1 alone, and the truth about it: a cat."""
    for name in ("ISAC", "ICRC", "MDIUC"):
        shutil.rmtree(benchmark_folder / name)
    for name in ("2.webp", "10.gif"):
        (benchmark_folder / "IDC" / name).unlink()
    scene = Scene("cat", "oil", "ember", "far away", 3, ())
    truth = {"IDC": {"1": scene.__dict__}}
    (benchmark_folder / "truth.json").write_text(json.dumps(truth))
    return benchmark_folder


def test_the_rules_judge_the_gallerys_own_questions(quick, one_painting):
    questions = {"IDC": gallery.QUESTIONS["IDC"]}
    (one_painting / "questions.json").write_text(json.dumps(questions))
    told = {"Art": "A passionate oil painting of a cat in the ember palette.",
            "Mini": "A woodcut of a castle."}
    quick.answer = lambda model, item: [told[model]]
    out = quick("--judge", "gallery", "--seed", 5)
    table = (out / "report.md").read_text()
    assert re.search(r"\| Art \| 4 \|.*\| 4\.00 \|", table)
    assert re.search(r"\| Mini \| 1 \|.*\| 1\.00 \|", table)
    assert "subject cat not named, but castle" in (out / "report.html").read_text()


def test_the_rules_refuse_other_questions_and_other_folders(quick, one_painting, capsys):
    with pytest.raises(SystemExit):
        quick("--judge", "gallery")
    assert "its own pictures and questions alone" in capsys.readouterr().err
    (one_painting / "truth.json").unlink()
    with pytest.raises(SystemExit):
        quick("--judge", "gallery")
    assert "no truth.json in it" in capsys.readouterr().err
