"""chat.py: one question, its arguments, many pictures, a surprise, what goes wrong."""
import json
import os

import pytest
from PIL import Image

import chat
from artgpt4 import IMAGE_SLOT
from conversation import rounds
from gallery.scenes import Scene
from tests.conversation.conftest import draw

SHORT = ("--max-new-tokens", 12)
HOT, COLD = ("--temperature", 2, *SHORT), ("--temperature", 0, *SHORT)


def test_a_question_prints_the_answer_alone_and_the_same_for_the_same_seed(run_chat, picture):
    code, out, err = run_chat(picture, "--prompt", "What is this?", "--seed", 5, *HOT)
    assert (code, err) == (0, "") and out == out.strip() + "\n" and len(out) > 10
    assert run_chat(picture, "What is this?", "--seed", 5, *HOT)[1] == out
    others = {run_chat(picture, "What is this?", *flags, *HOT)[1] for flags in ((), ("--seed", 8))}
    assert len(others | {out}) == 3


def test_without_a_picture_it_takes_the_first_sample_and_says_so(run_chat):
    sample = chat.SAMPLES / "couple.png"
    code, out, err = run_chat("--prompt", "What?", *COLD)
    assert code == 0 and out == run_chat(sample, "What?", *COLD)[1]
    assert err.count("\n") == 1 and str(sample) in err


def test_pictures_and_question_are_told_apart(run_chat, picture, white, script, monkeypatch):
    monkeypatch.chdir(picture.parent)
    both, long = f"{IMAGE_SLOT} {IMAGE_SLOT} ", "x " * 200 + "?"
    for arguments, question in (
            (["picture.png", white, "Which of them?"], both + "Which of them?"),
            (["picture.png", "Which?", white], both + "Which?"),
            (["What's in this image? picture.png"], f"{IMAGE_SLOT} What's in this image?"),
            ([white, "--prompt", "Is it picture.png?"], both + "Is it"),
            ([white, long], f"{IMAGE_SLOT} {long}"),
            ([white, "--seed", 1, "这是什么？"], f"{IMAGE_SLOT} 这是什么？")):
        asked = script(["One."])
        assert run_chat(*arguments) == (0, "One.\n", "") and asked == [[question]]


def test_json_is_the_answer_with_how_it_was_made(run_chat, picture, white, tiny):
    arguments = (picture, white, "Which of them?", *COLD, "--top-p", 0.5)
    answer = run_chat(*arguments)[1].strip()
    code, out, err = run_chat(*arguments, "--json")
    found = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1) and found.pop("seconds") > 0
    assert found == {
        "images": [str(picture), str(white)], "question": "Which of them?", "answer": answer,
        "tokens": len(tiny.tokenizer.encode(answer)), "model": "tiny", "unfamiliar": [None, None],
        "settings": {"temperature": 0.0, "top_p": 0.5, "repetition_penalty": 1.0,
                     "max_new_tokens": 12, "beams": 1, "seed": None}}
    _, out, _ = run_chat(picture, "What?", "--json", *SHORT)
    assert json.loads(out)["settings"]["temperature"] == 0.2  # of weights/tiny/about.json


def test_a_picture_comes_through_standard_input(run_chat, picture):
    _, answer, _ = run_chat(picture, "What?", *COLD)
    assert run_chat("-", "What?", *COLD, lines=picture.read_bytes()) == (0, answer, "")
    code, out, err = run_chat("-", "What?", lines=b"words")
    assert (code, out) == (1, "") and "-: " in err


# Many pictures

@pytest.fixture
def collection(tmp_path):
    """A folder of three pictures, one of them below it, and two files that cannot be read."""
    folder = tmp_path / "collection"
    (folder / "sub").mkdir(parents=True)
    draw().save(folder / "1.png")
    Image.new("RGB", (40, 30), "white").save(folder / "2.png")
    draw().transpose(Image.Transpose.ROTATE_90).save(folder / "sub" / "4.JFIF", format="PNG")
    (folder / "3.png").write_text("words")
    (folder / "5.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "notes.txt").touch()
    return folder


@pytest.mark.parametrize("flags", [
    (), ("--batch-size", 1, "--repetition-penalty", 1.3), ("--beams", 2)])
def test_a_batch_answers_as_single_questions_do(run_chat, collection, flags):
    code, out, err = run_chat(collection, "What is it?", *COLD, *flags)
    found = dict(line.split("\t") for line in out.splitlines())
    files = [str(collection / name) for name in ("1.png", "2.png", "sub/4.JFIF")]
    assert code == 1 and list(found) == files
    for file in files:
        assert found[file].split() == run_chat(file, "What is it?", *COLD, *flags)[1].split()
    assert run_chat(*files[:2], "What is it?", "--each", *COLD, *flags)[1] in out
    assert "3.png: " in err and "5.heic: " in err and ".txt" in err


def test_json_lines_have_the_bad_pictures_too(run_chat, collection, monkeypatch):
    monkeypatch.setattr(chat, "unfamiliar", lambda *_: True)
    arguments = (collection, "What is it?", "--json", "--seed", 1, *SHORT)
    code, out, err = run_chat(*arguments)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and [row["images"] for row in found if "error" in row] == [
        [str(collection / "3.png")], [str(collection / "5.heic")]]
    assert [row["unfamiliar"] for row in found if "answer" in row] == [[True]] * 3
    assert "3 of 3" in err
    again = [json.loads(line) for line in run_chat(*arguments)[1].splitlines()]
    assert [row.get("answer") for row in again] == [row.get("answer") for row in found]


def test_a_painting_nobody_has_seen_is_described_and_told(run_chat, script, monkeypatch):
    scene = Scene("castle", "oil", "ember", "far away", 3, ("birds", "fence"))
    monkeypatch.setattr(chat, "random_scenes", lambda *_: [scene])
    asked = script(["A castle in oil, rose", " colours."], ["A cat."])
    code, out, err = run_chat("--surprise", "--seed", 5)
    assert (code, err) == (0, "") and asked[0][0].endswith("Describe this image in detail.")
    assert out.splitlines()[0] == "A castle in oil, rose colours."
    assert "ember: it said rose" in out and "2 of 4 right" in out and "--seed 5" in out
    assert "0 of 4 right" in run_chat("--surprise")[1]


# What goes wrong

def test_a_broken_or_missing_file_is_named_in_one_line(run_chat, picture, here, monkeypatch):
    monkeypatch.setattr(rounds, "MAX_CONTEXT", 160)
    draw().save("truncated.jpg")
    os.truncate("truncated.jpg", 300)
    for name in ("words.png", "talk.json"):
        (here / name).write_text("words")
    os.mkfifo("pipe.png")
    os.mkfifo("pipe.json")
    (here / "empty").mkdir()
    for name, arguments in {
            "missing.png": ["missing.png"], "gone": ["gone"], "words.png": ["words.png"],
            "truncated.jpg": ["truncated.jpg"], "empty": ["empty"], "pipe.png": ["pipe.png"],
            "http://a.b/c": ["http://a.b/c"], "--prompt": ["Describe"], "folder": ["--resume", ""],
            "this": [picture, "this", "Describe it"], "n" * 300: ["n" * 300], ": no such": [""],
            "--each": [picture] * 9, "no_weights": [picture, "--weights", "no_weights"],
            "talk.json": ["--resume", "talk.json"], "pipe.json": ["--resume", "pipe.json"]}.items():
        code, out, err = run_chat(*arguments, "--prompt", "What?")
        *_, last = err.splitlines()
        assert (code, out) == (1, "") and last.startswith("chat.py: ") and name in last, name


@pytest.mark.parametrize("arguments", [
    ("--temperature", "-1"), ("--temperature", "nan"), ("--max-new-tokens", "0"),
    ("--max-new-tokens", "2.5"), ("--seed", "-1"), ("--seed", "x"), ("--top-p", "1.5"),
    ("--dtype", "int4"), ("--device", "abacus"), ("--prompt", "  "),
    ("--prompt", "Why?", "What is this?"),
    ("--json",), ("--each",), ("--surprise",), ("--batch-size", "0")])
def test_misuse_is_exit_code_2_and_names_the_flag(run_chat, picture, arguments):
    code, out, err = run_chat(picture, *arguments)
    assert (code, out) == (2, "") and arguments[0].strip("-") in err
    assert "Traceback" not in err
