"""conversation/labelling.py: one question about many pictures, through chat.py."""
import json

import pytest
from PIL import Image

from conversation import labelling
from tests.conftest import draw


@pytest.fixture
def collection(tmp_path):
    """A folder of three pictures and two files that cannot be read."""
    folder = tmp_path / "collection"
    folder.mkdir()
    draw().save(folder / "1.png")
    Image.new("RGB", (40, 30), "white").save(folder / "2.png")
    draw().transpose(Image.Transpose.ROTATE_90).save(folder / "4.png")
    (folder / "3.png").write_text("words")
    (folder / "5.heic").write_bytes(b"\0\0\0\x18ftypheic")
    return folder


def single_answers(run_chat, folder, *flags):
    """{file: the answer to it alone}."""
    files = [folder / f"{i}.png" for i in (1, 2, 4)]
    return {str(file): run_chat(file, "What is it?", *flags)[1].strip() for file in files}


@pytest.mark.parametrize("flags", [
    (),
    ("--batch-size", 1),
    ("--repetition-penalty", 1.3, "--min-new-tokens", 3),
    ("--beams", 2),
])
def test_a_batch_answers_as_single_questions_do(run_chat, collection, flags):
    flags = ("--temperature", 0, *flags)
    code, out, err = run_chat(collection, "What is it?", *flags)
    found = dict(line.split("\t") for line in out.splitlines())
    expected = single_answers(run_chat, collection, *flags)
    assert {file: text.split() for file, text in found.items()} == {
        file: text.split() for file, text in expected.items()}
    assert code == 1 and list(found) == sorted(found)
    assert "3.png: not a picture" in err and "5.heic: a HEIC picture" in err
    assert "2 of 5 pictures could not be read" in err and "labelling 5/5 pictures" in err


def test_json_lines_have_the_bad_pictures_too(run_chat, collection):
    code, out, _ = run_chat(f"{collection}/[1-3].png", "What is it?", "--json", "--seed", 1)
    found = [json.loads(line) for line in out.splitlines()]
    by_file = {file: answer for answer in found for file in answer["images"]}
    assert code == 1 and len(by_file) == 3
    assert "not a picture" in by_file[str(collection / "3.png")]["error"]
    one = by_file[str(collection / "1.png")]
    assert one["tokens"] == 20 and one["settings"]["seed"] == 1 and one["question"] == "What is it?"
    _, again, _ = run_chat(f"{collection}/[1-3].png", "What is it?", "--json", "--seed", 1)
    answers = [json.loads(line).get("answer") for line in again.splitlines()]
    assert answers == [answer.get("answer") for answer in found]


def test_pictures_unlike_those_in_training_are_marked(run_chat, collection, monkeypatch):
    monkeypatch.setattr(labelling, "unfamiliar", lambda model, vectors: next(answers))
    answers = iter([True, False, True])
    _, out, err = run_chat(collection, "What is it?")
    assert len(out.splitlines()) == 3
    assert ("2 of 5 pictures look like nothing that this model has seen (1.png, 4.png); its "
            "answers to them may be wrong\n") in err
    first = str(collection / "1.png")
    for found, marked in (([True, False], [[first], []]), ([None, None], [None, None])):
        answers = iter(found)
        _, out, err = run_chat(f"{collection}/[12].png", "What is it?", "--json")
        assert [json.loads(line).get("unfamiliar") for line in out.splitlines()] == marked
        assert ("1 of 2 pictures look" in err) == (True in found)


def test_each_of_several_files_has_an_answer_of_its_own(run_chat, collection):
    files = [collection / "1.png", collection / "2.png"]
    code, out, _ = run_chat(*files, "What is it?", "--each", "--temperature", 0)
    assert code == 0
    assert [line.partition("\t")[0] for line in out.splitlines()] == [str(file) for file in files]


def test_a_collection_needs_a_question(run_chat, collection):
    for arguments in ((collection,), (f"{collection}/*.png",)):
        code, out, err = run_chat(*arguments, lines=b"What?")
        assert (code, out, err.count("\n")) == (1, "", 1) and "--prompt" in err
