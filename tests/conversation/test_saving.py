"""conversation/saving.py: what /save, /page and --resume write and read, through chat.py."""
import json
import shutil

import pytest
from PIL import Image

from artgpt4 import IMAGE_SLOT
from conversation.saving import read_json

PAGE = "<!doctype html>\n<title>Boat</title>\n<h1>A boat</h1>"


@pytest.mark.parametrize("answer, page", [
    (f"Here it is:\n```html\n{PAGE}\n```\nI hope you like it. <p>", PAGE),
    ("Sure. <HTML><body>1 < 2</body></HTML> It is <p>.", "<HTML><body>1 < 2</body></HTML>"),
    ("```\n<div class='a'>```", "<div class='a'>"),
    (f"{PAGE}\n<p>cut of", f"{PAGE}\n<p>cut of"),
])
def test_page_writes_the_html_of_the_last_answer(run_chat, picture, script, tmp_path, answer, page):
    script([answer], [answer])
    file = tmp_path / "a b.html"
    code, _, _ = run_chat(picture, lines=f"Page?\n/page {file}\n/page {file}".encode())
    assert code == 0
    assert file.read_text() == f"{page}\n"


def test_a_saved_conversation_is_resumed_as_it_was(run_chat, picture, tmp_path):
    white, file = tmp_path / "white.png", tmp_path / "talk.json"
    Image.new("RGB", (40, 30), "white").save(white)
    lines = f"What?\n/image {white}\nAnd this?\n/save {file}\n/save {file}\nWhy?\n".encode()
    code, out, err = run_chat(picture, "--temperature", 0, "--repetition-penalty", 1.25,
                              lines=lines)
    assert (code, err) == (0, "")
    *_, last_answer = out.splitlines(True)
    assert out.count("\n") == 3

    saved = json.loads(file.read_text())
    assert [round["images"] for round in saved["rounds"]] == [[str(picture)], [str(white)]]
    assert run_chat("--resume", file, lines=b"Why?\n") == (0, last_answer, "")
    _, out, _ = run_chat("--resume", file, "--temperature", 2, "--seed", 1, "--prompt", "Why?")
    assert out != last_answer
    code, out, err = run_chat("--resume", file, lines=f"/save {file}".encode(), terminal=True)
    assert code == 0 and "> And this?" in err
    assert json.loads(file.read_text())["rounds"] == saved["rounds"]

    white.unlink()
    code, out, err = run_chat("--resume", file, lines=b"Why?\n")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "white.png: no such file" in err


def test_markdown_shows_the_pictures_from_where_it_lies(run_chat, picture, script, tmp_path):
    script(["A *boat*."], ["Blue."])
    file = tmp_path / "talks" / "my talk.md"
    file.parent.mkdir()
    code, _, _ = run_chat(picture, lines=f"What?\nWhich colour?\n/save {file}\n".encode())
    assert code == 0
    link, *rest = file.read_text().split("\n\n")
    assert rest == ["> What?", "A *boat*.", "> Which colour?", "Blue.", "*talker0*\n"]
    _, _, path = link.removesuffix(">)").partition("](<")
    assert (file.parent / path).samefile(picture)


def test_a_picture_that_is_gone_is_replaced_or_left_out(run_chat, picture, tmp_path, script):
    white, file = tmp_path / "white.png", tmp_path / "talk.json"
    Image.new("RGB", (40, 30), "white").save(white)
    asked = script(["One."], ["Two."])
    run_chat(picture, lines=f"What?\n/image {white}\nAnd this?\n/save {file}\n".encode())
    moved = white.rename(tmp_path / "moved.png")
    code, out, err = run_chat("--resume", file, lines=b"Why?\n")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "--replace 'white.png=FILE'" in err and "--replace 'white.png='" in err

    first, second = f"{IMAGE_SLOT} What?", "And this?"
    for replacement, expected in ((f"white.png={moved}", f"{IMAGE_SLOT} {second}"),
                                  (f"{white}=", second)):
        asked = script(["Three."])
        code, out, err = run_chat("--resume", file, "--replace", replacement, lines=b"Why?\n")
        assert (code, out, err) == (0, "Three.\n", "")
        assert asked == [[first, "One.", expected, "Two.", "Why?"]]
    code, _, err = run_chat("--resume", file, "--replace", "black.png=a.png", lines=b"Why?\n")
    assert code == 1 and "black.png" in err and "white.png" in err


def test_a_talk_names_its_model_and_another_one_says_so(run_chat, picture, script, talker_weights,
                                                        tmp_path):
    file, other = tmp_path / "talk.json", tmp_path / "other"
    other.symlink_to(talker_weights)
    copy = tmp_path / "copied"
    shutil.copytree(talker_weights, copy)
    script(["One."])
    run_chat(picture, lines=f"What?\n/save {file}\n".encode())
    assert json.loads(file.read_text())["model"] == talker_weights.name
    script(["Two."], ["Two."])
    for weights in (talker_weights, other):
        assert run_chat("--resume", file, "Why?", "--weights", weights) == (0, "Two.\n", "")
    script(["Two."])
    _, _, err = run_chat("--resume", file, "--prompt", "Why?", "--weights", copy)
    assert err == (f"{file}: the answers so far are by {talker_weights.name}, those to come by "
                   "copied\n")


def test_null_settings_and_a_byte_order_mark_are_fine(tmp_path):
    file = tmp_path / "talk.json"
    for settings in ("null", '{"seed": null, "temperature": 0.5}'):
        text = '{"rounds": [], "images": ["a.png"], "settings": ' + settings + "}"
        file.write_text("\ufeff" + text, encoding="utf-8")
        saved = read_json(file)
        assert saved.waiting == ["a.png"] and saved.model == ""
    assert saved.settings == {"temperature": 0.5}


@pytest.mark.parametrize("text, words", [
    ("{", "no JSON in line 1, column 2"),
    ("[]", "the file should be an object with names and values"),
    ('{"rounds": []}', 'the file has no "images"'),
    ('{"images": [], "rounds": [{"images": [], "question": 1, "answer": ""}]}',
     'round 1: "question" should be a text'),
    ('{"images": [], "rounds": [], "settings": {"beams": true}}',
     "setting beams: should be a number"),
])
def test_what_is_wrong_in_a_file_is_said_in_words(tmp_path, text, words):
    file = tmp_path / "talk.json"
    file.write_text(text)
    with pytest.raises(ValueError) as refused:
        read_json(file)
    assert str(refused.value) == f"{file}: not a conversation that /save FILE.json wrote: {words}"


@pytest.mark.parametrize("text", [
    "",
    "{}",
    "[]",
    "null",
    '{"rounds": [], "images": "a", "settings": []}',
    "[" * 100_000,
    '{"rounds": [], "images": [1], "settings": {}}',
    '{"rounds": [], "images": [], "settings": {"a": 1}}',
    '{"rounds": [], "images": [], "settings": {"beams": true}}',
    '{"rounds": [{"images": [], "question": 1, "answer": ""}], "images": [], "settings": {}}',
])
def test_a_file_that_is_not_a_saved_conversation_is_one_line(run_chat, picture, tmp_path, text):
    talk, gone = tmp_path / "talk.json", tmp_path / "gone.json"
    talk.write_text(text)
    for file in (talk, picture, gone, tmp_path):
        code, out, err = run_chat("--resume", file, "--prompt", "What?")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert str(file) in err
