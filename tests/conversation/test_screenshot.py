"""conversation/screenshot.py: a session for the docs."""
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from conversation import screenshot
from conversation.screenshot import main, run_session, to_svg, to_text

SHOWN = ("\x1b[38;2;1;2;3;48;2;255;0;16m\u2580\x1b[38;2;9;9;9;48;2;9;9;9m\u2580\x1b[0m\n"
         "\x1b[2ma.png, 2 x 2\nand more\x1b[0m\n> What is <b>?\nA boat.\n")


def test_the_text_is_without_picture_and_colours():
    assert to_text(SHOWN) == "a.png, 2 x 2\nand more\n> What is <b>?\nA boat."


def test_the_picture_has_two_pixels_for_each_half_block_and_dim_lines():
    root = ElementTree.fromstring(to_svg(SHOWN))
    paths = [(path.get("fill"), path.get("d")[:4]) for path in root.findall(".//{*}path")]
    assert paths == [("#010203", "M0 0"), ("#ff0010", "M0 1"), ("#090909", "M1 0"),
                     ("#090909", "M1 1")]
    texts = [(text.text, text.get("fill")) for text in root.findall(".//{*}text")]
    assert texts == [("a.png, 2 x 2", screenshot.DIM), ("and more", screenshot.DIM),
                     ("> What is <b>?", screenshot.INK), ("A boat.", screenshot.INK)]


def test_lines_are_typed_after_prompts(tmp_path, monkeypatch):
    (tmp_path / "chat.py").write_text("import sys\nprint(sys.argv[1])\n"
                                      "while (line := input('> ')) != '/quit': print(line.upper())")
    monkeypatch.setattr(screenshot, "ROOT", tmp_path)
    shown = run_session(["a.png"], ["one", "two", "/quit"], tmp_path)
    assert shown == "a.png\n> one\nONE\n> two\nTWO\n> /quit\n"
    (tmp_path / "chat.py").write_text("import sys\nsys.exit('no weights')")
    with pytest.raises(ValueError, match="ended with 1: no weights"):
        run_session([], ["one"], tmp_path)


def test_the_session_replaces_the_one_in_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(screenshot, "run_session", lambda *_: SHOWN)
    page, picture = tmp_path / "page.md", tmp_path / "terminal.svg"
    page.write_text("a\n<!-- session -->\n```\nold\n```\n<!-- end -->\nb\n")
    args = SimpleNamespace(page=page, picture=picture, weights=tmp_path)
    main(args)
    shown = f"$ python chat.py samples/couple.png --temperature 0\n{to_text(SHOWN)}"
    assert page.read_text() == f"a\n<!-- session -->\n```\n{shown}\n```\n<!-- end -->\nb\n"
    assert "A boat." in picture.read_text()
    assert sorted(tmp_path.iterdir()) == [page, picture]
    page.write_text("a")
    with pytest.raises(ValueError, match="no place for a session"):
        main(args)
