"""Judges: blind, none paid twice; what a server may say; a person's table; the rules."""
import csv
import json
import re
import shutil

import pytest

from evaluation.judges import read_reply
from gallery import benchmark as gallery
from gallery.scenes import Scene
from tests.evaluation.conftest import KEY, gives, says


def content(request):
    _, body = request
    return body["messages"][0]["content"]


# ---- A server

def test_models_are_judged_blind_in_random_order_and_none_is_paid_twice(quick, server):
    quick(*server.flags, "--repeats", 2)
    texts = [content(request) for request in server.requests]
    names = [re.search("(Art|Mini) says of", text)[1] for text in texts]
    assert len(names) == 24 and names.count("Art") == 12 and names != sorted(names)
    assert not any(".safetensors" in text or str(quick.out) in text for text in texts)
    file = quick.out / "scores.jsonl"
    file.write_bytes(file.read_bytes()[:-30])                 # a kill: the last line is cut
    quick(*server.flags, "--repeats", 2)
    quick(*server.flags)
    quick(*server.flags[:-1], "another")
    assert len(server.requests) == 24 + 1 + 12
    quick.answer = lambda model, item: [item.name] * len(item.questions)
    quick(*server.flags, "--set", "seed=1")                   # both models answer the same
    assert len(server.requests) == 43


def test_the_judge_is_given_the_rubric_and_both_answers_of_a_pair_in_both_orders(quick, server):
    quick(*server.flags, "--judge-together", "--judge-options", '{"temperature": 0}')
    texts = "".join(map(content, server.requests))
    pairs = re.findall(r'"([AB])": \[\s*"(Art|Mini) says', texts)
    assert sorted(pairs) == [(letter, name) for letter in "AB" for name in ("Art", "Mini")
                             for _ in range(6)]
    assert all(body["temperature"] == 0 for _, body in server.requests)
    [text, *_] = [text for text in map(content, server.requests) if "sentiment" in text]
    assert "1: Can describe the relevant emotion but no logical proof, for example" in text
    assert "You cannot see the picture." in text


def test_the_picture_goes_along_as_a_data_url(quick, server):
    _, report, _ = quick(*server.flags, "--judge-sees-image", models=("Art",))
    kinds = [part["type"] for part in content(server.requests[0])]
    assert kinds == ["text", "image_url"] and "who saw the picture" in report
    url = content(server.requests[0])[1]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")


def test_what_stays_unjudged_is_told_and_asked_again_by_the_next_run(quick, server):
    server.script += [says("Four!")] * 3 + [(400, '{"error": {"message": "indecent"}}')]
    code, report, error = quick(*server.flags, models=("Art",))
    assert code == 0 and len(server.requests) == 3 + 1 + 4
    assert "2 of 6 answers of Art are unjudged" in report and "2 of 6 stay unjudged" in error
    _, report, _ = quick(*server.flags, models=("Art",))
    assert len(server.requests) == 10 and "are unjudged" not in report
    server.script += [says("Four!")] * 18
    code, _, error = quick(*server.flags, models=("Mini",))
    assert code == 1 and "6 of 6" in error.splitlines()[-1]


@pytest.mark.parametrize("reply, named", [
    ((401, json.dumps({"error": {"message": f"wrong key {KEY}"}})), r"401: .*wrong key \[key\]"),
    ((401, '{"detail": "key \\u0053k-secret-0123456789 \\u001b[31m"}'), r"401: .*\[key\]"),
    ((403, f"<html>\x1b]0;title\x07{KEY}</html>"), r"403: .*\[key\]"),
    (f"HTTP/1.1 {KEY} \x1b[31m\r\n\r\n".encode(), r"does not reply"),
    ((404, "x" * 5000), "404: x{100}"), ((302, ""), "302")])
def test_a_refusal_is_one_line_without_the_key_and_nothing_is_lost(quick, server, reply, named):
    server.script += [says(json.dumps({"score": 2, "reason": f"{KEY} \\u0053{KEY[1:]}"})), gives(3)]
    server.script += [reply] * 3
    code, _, error = quick(*server.flags)
    last = error.splitlines()[-1]
    assert code == 1 and re.search(named, last) and len(last) < 500
    assert KEY not in error and KEY[1:] not in error and "\x1b[31" not in error
    server.script.clear()
    assert quick(*server.flags)[0] == 0 and len(server.requests) in (13, 15)
    assert r"[key] [key]" in (quick.out / "scores.jsonl").read_text()
    assert not [file for file in quick.out.iterdir() if KEY[1:] in file.read_text()]


def test_a_busy_server_is_asked_again(quick, server):
    server.script += [(429, ""), (500, ""), (429, ""), b"", (200, "{}"), (503, "")]
    server.script[2:2] = [gives(3)]
    code, report, error = quick(*server.flags, models=("Art",))
    assert code == 0 and error.count("asking again") == 5 and "1 of 6 answers" in report


def test_a_reply_has_one_deadline_however_slowly_it_comes(quick, server):
    server.script += [0.2] * 3
    code, _, error = quick(*server.flags, "--judge-timeout", "0.4", models=("Art",))
    assert code == 1 and "takes too long" in error.splitlines()[-1]
    code, _, error = quick("--judge", "http://127.0.0.1:9/v1", "--judge-model", "x")
    assert code == 1 and "http://127.0.0.1:9/v1" in error.splitlines()[-1]
    assert "asking again" not in error                        # nobody is there


@pytest.mark.parametrize("reply, expected", [
    ('{"reason": "as it is", "score": 4}', [(4, "as it is")]),
    ('```json\n{"reason": "fenced", "score": 5}\n```', [(5, "fenced")]),
    ('<think>\nPerhaps {"score": 2}? No.\n</think>\n{"score": 3}', [(3, "")]),
    ('Here: {"score": 0, "reason": "x"}\n\nI hope that this helps!', [(0, "x")]),
    ('{"B": {"score": 5}, "A": {"score": 1, "reason": "a"}}', [(1, "a"), (5, "")]),
    *((reply, []) for reply in (
        "", "4", "<html></html>", "[" * 100_000, '{"reason": "x"}', '{"score": 4', "null",
        '{"score": 4} {"score": 5}', '<think>{"score": 4}', '{"score": "4"}', '{"score": 4.0}',
        '{"score": 6}', '{"score": -1}', '{"score": true}', '{"A": 1, "B": 2}',
        '{"B": {"score": 1}}', '{"A": {"score": 1}, "B": {}}'))])
def test_a_clear_reply_is_taken_and_whatever_leaves_room_for_doubt_is_no_verdict(reply, expected):
    assert read_reply(reply, 2 if '"B"' in reply else 1) == expected


# ---- A person

def fill(file, score, rows=99):
    """Write a score into the first rows of scoring.csv; returns the table."""
    with open(file, encoding="utf-8-sig", newline="") as stream:
        heading, *table = csv.reader(stream)
    for row in table[:rows]:
        row[heading.index("score")] = score
    with open(file, "w", encoding="utf-8-sig", newline="") as stream:
        csv.writer(stream).writerows([heading, *table])
    return table


def test_a_table_is_filled_in_and_new_answers_are_added_below(quick):
    _, _, error = quick("--judge", "manual", models=("Art",))
    file = quick.out / "scoring.csv"
    assert "6 of 6 stay unjudged" in error
    page = file.with_suffix(".html").read_text()
    assert "Art says of IDC 10" in page and ".safetensors" not in page
    assert all(row[0] in page for row in fill(file, "4.0", rows=2))
    first = fill(file, "5")
    _, report, _ = quick("--judge", "manual")
    assert "| Art | 5.00 | 5.00 | 5.00 | 5.00 | 5.00 |" in report
    table = fill(file, "", rows=0)
    assert table[:6] == first and len(table) == 12
    fill(file, "", rows=1)
    _, report, _ = quick("--judge", "manual", models=("Art",))
    assert "1 of 6 answers of Art are unjudged" in report     # a score that was taken back


@pytest.mark.parametrize("change, named", [
    (lambda text: text.replace(",,", ",7,", 1), "line 2, column score"),
    (lambda text: text.replace(",,", ',5,"vivid', 1), "scoring.csv"),     # its end is not there
    (lambda text: text + text.splitlines()[3], "line 8, column id"),
    (lambda text: text.replace(",", ";"), "line 1"), (lambda text: "", "line 1"),
    (lambda text: text.encode("utf-16").decode("latin-1"), "scoring.csv")])
def test_a_table_with_a_fault_is_refused_by_its_place_and_stays(quick, change, named):
    quick("--judge", "manual", models=("Art",))
    file = quick.out / "scoring.csv"
    text = change(file.read_text(encoding="utf-8-sig"))
    file.write_text(text, encoding="latin-1")
    code, _, error = quick("--judge", "manual", models=("Art",))
    assert code == 1 and named in error.splitlines()[-1]
    assert file.read_text(encoding="latin-1") == text


# ---- The gallery's rules

def test_the_rules_judge_the_gallerys_own_items_alone(quick, tmp_path, monkeypatch):
    scene = Scene("dancer", "oil", "ember", "in the centre", 5)
    monkeypatch.setattr(gallery, "scenes", lambda *_: {
        (name, "1"): scene for name in gallery.SHAPE})
    folder = tmp_path / "benchmark"
    shutil.rmtree(folder)
    gallery.make(folder)
    quick.answer = lambda model, item: ["nothing"] * len(item.questions)
    _, report, _ = quick("--judge", "gallery")
    assert "| Art | 0.00 | 0.00 | 0.00 | 0.00 | 0.00 |" in report
    (folder / "questions.json").unlink()
    code, _, error = quick("--judge", "gallery")
    assert code == 1 and "1.png" in error.splitlines()[-1]
