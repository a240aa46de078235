"""The layout of the authors' evaluation folder: which text is whose answer to which picture."""
import pytest

from evaluation.released import dialogue_questions, released_answers, rounds

SINGLE = """1.
A:A vase.

It has sunflowers.


M:Flowers: many.


2.
A: A boat.
M:A ship.
"""
DIALOGUE = """
What is it?

A:Captain America.

He holds a shield:

1. round
2. red

M:A man.


What will he do?
A:Fight.

B:Rest.

Why?

A:He must.
M:It is late.
"""


@pytest.fixture
def folder(tmp_path):
    for name, text in (("IDC/Answer.txt", SINGLE), ("MDIUC/Answer1.txt", DIALOGUE)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    return tmp_path


def test_answers_go_to_their_picture_and_letter(folder):
    questions = ("What is it?", "What will he do?", "Why?")
    fights = ["Captain America.\n\nHe holds a shield:\n\n1. round\n2. red", "Fight.", "He must."]
    assert released_answers(folder, "A") == {
        ("IDC", 1): (None, ["A vase.\n\nIt has sunflowers."]), ("IDC", 2): (None, ["A boat."]),
        ("MDIUC", 1): (questions, fights)}
    assert dialogue_questions(folder, 1) == questions
    assert dialogue_questions(folder, 2) is None


def test_a_letter_that_is_wrong_in_one_round_is_taken_for_the_missing_one_and_told(folder, capsys):
    found = released_answers(folder, "M")
    assert found["MDIUC", 1][1] == ["A man.", "Rest.", "It is late."]
    assert found["IDC", 1] == (None, ["Flowers: many."])
    assert "Answer1.txt, round 2: B is taken for M" in capsys.readouterr().err


@pytest.mark.parametrize("name, text, message", [
    ("IDC/Answer.txt", "A: a vase", r"Answer\.txt: no answers in it"),
    ("IDC/Answer.txt", "1.\nA: a vase\n", r"Answer\.txt, picture 1: no answer of 'M', found A"),
    ("MDIUC/Answer1.txt", "What?", r"Answer1\.txt: no dialogue in it"),
    ("MDIUC/Answer1.txt", "What?\nA:x\nM:y\nAnd?\nA:z\nB:y\nC:x", "round 2: no answer of 'M'"),
])
def test_a_text_in_another_layout_is_refused_by_its_place(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        released_answers(folder, "M")


def test_a_folder_without_answers_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no answers; expected are IDC/Answer\.txt"):
        released_answers(tmp_path, "A")


def test_the_first_line_may_be_the_question(tmp_path):
    file = tmp_path / "Answer1.txt"
    file.write_text("What?\nA:x\n")
    assert rounds(file) == [("What?", {"A": "x"})]
