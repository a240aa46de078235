"""conversation/pictures.py: which pictures the arguments and typed paths mean."""
import pytest

from conversation.pictures import local_path, named_files, split_question, typed_path


def test_paths_as_they_are_typed_and_dropped(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = tmp_path / "it's my picture.png"
    name.touch()
    escaped = str(name).replace(" ", "\\ ").replace("'", "\\'")
    home = ("~/it's my picture.png", "~/it\\'s\\ my\\ picture.png")
    for text in (str(name), f'"{name}"', escaped, *home):
        assert typed_path(text) == name
    assert typed_path("new talk.md").name == "new talk.md"
    assert typed_path("'new talk.md'").name == "new talk.md"
    assert typed_path("it's new.md").name == "it's new.md"


def test_a_file_address_is_its_path_and_a_web_address_is_refused(tmp_path):
    file = tmp_path / "with space.png"
    file.touch()
    assert local_path(file.as_uri()) == file
    assert typed_path(f"'{file.as_uri()}'") == file
    assert typed_path(f"file://localhost{str(file).replace(' ', '%20')}") == file
    for address in ("https://a.b/c.png", "HTTP://a.b"):
        with pytest.raises(ValueError, match="a web address, and nothing here downloads; save"):
            local_path(address)


def test_the_question_is_a_last_argument_that_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a b", "why?"):
        (tmp_path / name).touch()
    assert split_question(["a.png", "What is it?"]) == (["a.png"], "What is it?")
    assert split_question(["Why"]) == (["Why"], None)
    assert split_question(["Who?"]) == ([], "Who?")
    for last in ("a b", "why?", "wh??", "a c.png", "file:///a b", "  ", "a.png"):
        assert split_question(["a.png", last]) == (["a.png", last], None)
    assert split_question([]) == ([], None)


def test_folders_and_patterns_are_collections_of_pictures(tmp_path, capsys):
    names = ["2.png", "10.JPG", "b.heic", "notes.txt", ".hidden.png"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    pictures = [tmp_path / name for name in ("10.JPG", "2.png", "b.heic")]
    assert named_files([str(tmp_path)]) == (pictures, True)
    assert "1 files that are no pictures" in capsys.readouterr().err
    assert named_files([f"{tmp_path}/*.png"]) == ([tmp_path / "2.png"], True)
    assert named_files(["-", f"{tmp_path}/2.png"]) == (["-", tmp_path / "2.png"], False)
    with pytest.raises(ValueError, match="no file fits"):
        named_files([f"{tmp_path}/*.tiff"])
    with pytest.raises(ValueError, match="sub: a folder without pictures"):
        named_files([str(tmp_path / "sub")])
