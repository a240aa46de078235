"""conversation/terminal.py: what typed lines mean, questions, /commands, files that are written."""
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

from artgpt4 import IMAGE_SLOT, ArtGPT4
from conversation import rounds
from conversation.terminal import COMMANDS, named_pictures, typed_path


def test_paths_as_they_are_typed_and_dropped(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = tmp_path / "it's my picture.png"
    name.touch()
    escaped = str(name).replace(" ", "\\ ").replace("'", "\\'")
    for text in (str(name), f'"{name}"', escaped, "~/it\\'s\\ my\\ picture.png", name.as_uri(),
                 f"file://localhost{str(name).replace(' ', '%20')}"):
        assert typed_path(text) == name
    for text in ("new talk.md", "'new talk.md'", "new\\ talk.md"):
        assert typed_path(text) == Path("new talk.md")
    assert typed_path("it's new.md") == Path("it's new.md")
    for address in ("https://a.b/c.png", "HTTP://a.b", "ftp://a"):
        with pytest.raises(ValueError, match=address):
            typed_path(address)


@pytest.mark.parametrize("text, question, names", [
    ("What's in this image? a.png", "What's in this image?", ["a.png"]),
    ("a.png What is it?", "What is it?", ["a.png"]),
    ("./sub/b.JPG", "", ["sub/b.JPG"]),
    ("Is a.png older than 'sub/c d.png'?", "Is older than ?", ["a.png", "sub/c d.png"]),
    ("Is it in sub/c\\ d.png?", "Is it in", ["sub/c d.png"]),
    ("What is in sub/plain, then?", "What is in then?", ["sub/plain"]),
    ("Look (gone.webp).", "Look", ["gone.webp"]),
    ("Is it  and/or a.b? e.g. no.txt, the \"sea\" or 's", None, []),
])
def test_a_question_may_name_pictures(text, question, names, here):
    (here / "sub").mkdir()
    for name in ("a.png", "sub/plain", "sub/c d.png", "no.txt"):
        (here / name).touch()
    left, found = named_pictures(text)
    assert found == [Path(name) for name in names]
    assert left == (text if question is None else question)


def test_lines_on_stdin_are_one_conversation_about_an_image_encoded_once(run_chat, picture, script,
                                                                         monkeypatch):
    asked, encoded = script(["A", " boat", "."], ["Blue", ".\n"]), []
    encode_image = ArtGPT4.encode_image
    monkeypatch.setattr(ArtGPT4, "encode_image",
                        lambda *args: encoded.append(args) or encode_image(*args))
    lines = "\ufeffIs it é?\n\n  \n Which colour? \r\n/quit\nMore?\n".encode()
    assert run_chat(picture, lines=lines) == (0, "A boat.\nBlue.\n", "")
    first = f"{IMAGE_SLOT} Is it é?"
    assert asked == [[first], [first, "A boat.", "Which colour?"]] and len(encoded) == 1


def test_control_characters_reach_no_terminal(run_chat, picture, script, tmp_path):
    script(["\n", "\x1b[31mred", "\x07\r", "\n\tor", "\x9b", " \x7fno\u202et", "\n"])
    assert run_chat(picture, "What?") == (0, "[31mred\n\tor not\n", "")
    file = tmp_path / "a\x1b]0;x\x07\tb\n.gif"
    file.touch()
    _, _, err = run_chat(file, "What?", typed=True)
    assert "empty" in err and err.count("\n") == 1
    Image.new("RGB", (9, 9)).save(file)
    script(["Two\nlines"])
    _, out, _ = run_chat(file, "What?", "--each", lines=b"/\x1b]0;x\n")
    assert out.count("\t") == out.count("\n") == 1 and out.endswith("\tTwo lines\n")
    _, _, more = run_chat(picture, lines=b"/\x1b]0;x\x07page\n/image a\x1b[2J.png\n/set \x1b 1\n")
    assert not set("\x1b\x07\t") & set(err + out.replace("\t", "") + more)


def test_forgotten_rounds_are_told(run_chat, picture, monkeypatch):
    monkeypatch.setattr(rounds, "MAX_CONTEXT", 160)
    code, out, err = run_chat(picture, "--seed", 1, lines=b"One?\nTwo?\nThree?\n")
    assert code == 0 and out.count("\n") == 3
    assert err.count("/reset") == err.count("\n") > 0


def test_ctrl_c_keeps_what_was_said_on_a_terminal_and_ends_a_pipe(run_chat, picture, script):
    asked = script(["A grey", signal.SIGINT, " boat", "s"], [signal.SIGINT], ["Yes"])
    code, out, _ = run_chat(picture, lines=b"What?\nNothing?\nSure?\n", typed=True)
    assert (code, out) == (0, "A grey boat\nYes\n")
    assert asked[2] == [f"{IMAGE_SLOT} What?", "A grey boat", "Sure?"]
    for pieces in (["A", signal.SIGINT, " grey", "s"], ["A grey", signal.SIGINT]):
        script(pieces)
        code, out, _ = run_chat(picture, lines=b"What?\nSure?\n")
        assert (code, out) == (130, "A grey\n")


def test_a_closed_pipe_ends_it_quietly(run_chat, picture, script, monkeypatch):
    script(["A boat."])
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run_chat(picture, lines=b"What?\nWhy?\n") == (1, "", "")


def test_help_names_every_command_in_the_words_people_use(run_chat, picture):
    for line in ("/help", "/?", "help", "/HELP me", "Help"):
        code, out, err = run_chat(picture, lines=line.encode())
        assert (code, out) == (0, "") and all(f"{name} " in err for name in COMMANDS)
    for line in ("/quit", "/exit", "/BYE", "exit", " Quit ", "/quit now"):
        assert run_chat(picture, lines=f"{line}\nWhat?".encode()) == (0, "", "")


def test_further_pictures_come_with_the_next_question(run_chat, picture, script, here,
                                                      monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    for name in ("my picture.png", "b.png", "plain"):
        Image.new("RGB", (7, 5)).save(here / name, format="PNG")
    two = f"{IMAGE_SLOT} {IMAGE_SLOT}"
    asked = script(*([str(i)] for i in range(5)))
    lines = [f"A? {here}/b.png", f"/image '{here}/my picture.png' b.png", "B?",
             "~/my\\ picture.png", "b.png", "C?", "/image my picture.png", "/image plain", "D?",
             "/reset", "E?"]
    code, out, err = run_chat(picture, lines="\n".join(lines).encode())
    assert (code, out, err.count("at most 2")) == (0, "0\n1\n2\n3\n4\n", 1)
    assert [messages[-1] for messages in asked] == [
        f"{two} A?", f"{two} B?", f"{two} C?", f"{two} D?", f"{IMAGE_SLOT} E?"]
    assert len(asked[3]) == 7 and len(asked[4]) == 1


def test_again_asks_the_same_question(run_chat, picture, script):
    asked = script(["One"], ["Two"], [], ["Three"], [])
    code, out, err = run_chat(picture, lines=b"/again\nA?\nB?\n/again\n/again\nC?")
    assert (code, out, err.count("\n")) == (1, "One\nTwo\n\nThree\n\n", 1)
    first = f"{IMAGE_SLOT} A?"
    third = [first, "One", "B?"]
    assert asked == [[first], third, third, third, [*third, "Three", "C?"]]


@pytest.mark.parametrize("line, name", [                      # a line, and what its error names
    ("/picture a.png", "/picture"), ("/image", "."), ("/image gone.png", "gone.png"),
    ("/image words.png", "words.png"), ("/image pipe.png", "pipe.png"), ("/tmp/gone", "/help"),
    ("/image ~nobody_here/a.png", "~nobody_here/a.png"), ("/image https://a.b/c", "https://a.b/c"),
    ("/image words.png words.md", "words.png"), ("What is it? gone.png", "gone.png"),
    ("gone.png", "gone.png"), ("See http://a.b/c.png", "http://a.b/c.png"),
    ("/set warmth 1", "warmth"), ("/set temperature hot", "hot"), ("/set\tbeams\t0", "beams"),
    ("/save", "/save"), ("/save talk", "talk"), ("/save words.png", "words.png"),
    ("/save words.md", "words.md"), ("/save link.md", "link.md"), ("/save pipe.md", "pipe.md"),
    ("/save words.md/talk.md", "words.md"), ("/page page.html", "HTML"),
])
def test_a_line_that_fails_is_one_line_and_the_session_continues(run_chat, picture, script, line,
                                                                 name, here):
    for file in ("words.png", "words.md"):
        (here / file).write_text("mine")
    (here / "link.md").symlink_to("nothing")
    for file in ("pipe.png", "pipe.md"):
        os.mkfifo(here / file)
    before = sorted(here.iterdir())
    asked = script(["Yes, 1 < 2 and 2 > 1."], ["Yes"])
    code, out, err = run_chat(picture, lines=f"What?\n{line}\nSure?\n".encode())
    assert (code, out, err.count("\n")) == (1, "Yes, 1 < 2 and 2 > 1.\nYes\n", 1)
    assert name in err and len(asked) == 2
    assert sorted(here.iterdir()) == before and (here / "words.md").read_text() == "mine"


def test_set_changes_the_answers_to_come_and_shows_them(run_chat, picture):
    lines = (b"What?\n/set temperature=0.5\n/set max-new_tokens 5\n/reset\n/set seed  4\nWhat?\n"
             b"/reset\n/set SEED 4\nWhat?\n/set\n")
    code, out, err = run_chat(picture, "--seed", 9, "--max-new-tokens", 20, lines=lines)
    first, second, third = out.splitlines()
    assert code == 0 and len(first) > len(second) > 0 and second == third
    values = "temperature 0.5, top_p 0.9, repetition_penalty 1.0, "
    assert err.count("\n") == 5 and err.endswith(f"{values}max_new_tokens 5, beams 1, seed 4\n")


def test_page_writes_the_html_of_the_last_answer(run_chat, picture, script, tmp_path):
    for answer, page in (("See:\n```html\n<!doctype html>\n<p>A\n```\nI hope. <p>",
                          "<!doctype html>\n<p>A"), ("1 < 2: <h1>A</h1> cut", "<h1>A</h1> cut")):
        script([answer])
        file = tmp_path / page[1:3] / "a b.html"
        assert run_chat(picture, lines=f"Page?\n/page {file}\n/page '{file}'".encode())[0] == 0
        assert file.read_text() == f"{page}\n"


def test_a_saved_conversation_is_resumed_as_it_was(run_chat, picture, white, tmp_path):
    file = tmp_path / "talk.json"
    lines = f"What?\n/image {white}\nAnd this?\n/save {file}\n/save {file}\nWhy?\n".encode()
    code, out, err = run_chat(picture, "--temperature", 0, "--repetition-penalty", 1.25,
                              "--max-new-tokens", 20, lines=lines)
    *_, last_answer = out.splitlines(True)
    assert (code, err, out.count("\n")) == (0, "", 3)
    saved = json.loads(file.read_text())
    assert [entry["images"] for entry in saved["rounds"]] == [[str(picture)], [str(white)]]
    assert run_chat("--resume", file, lines=b"Why?\n") == (0, last_answer, "")
    assert run_chat("--resume", file, "--temperature", 2, "--seed", 1, "Why?")[1] != last_answer
    code, out, err = run_chat("--resume", file, lines=f"/save {file}".encode(), typed=True)
    assert code == 0 and "> And this?" in err
    assert json.loads(file.read_text())["rounds"] == saved["rounds"]
    white.unlink()
    code, out, err = run_chat("--resume", file, lines=b"Why?\n")
    assert (code, out, err.count("\n")) == (1, "", 1) and "white.png" in err


def test_markdown_shows_the_pictures_from_where_it_lies(run_chat, picture, script, tmp_path):
    script(["A *boat*."], ["Blue."])
    odd = tmp_path / "a\n(b) c.png"
    odd.write_bytes(picture.read_bytes())
    file = tmp_path / "talks" / "my talk.md"
    lines = f"What?\nWhich colour?\n/save {file}\n".encode()
    assert run_chat(odd, lines=lines)[0] == 0
    link, *rest = file.read_text().split("\n\n")
    assert rest == ["> What?", "A *boat*.", "> Which colour?", "Blue.", "*tiny*\n"]
    assert link == "![a\\n(b) c.png](../a%0A%28b%29%20c.png)"
