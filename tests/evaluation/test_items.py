"""Benchmark folders: which files are items, their questions, and what is refused."""
import json
import shutil

import pytest

from evaluation.items import QUESTIONS, read_items
from evaluation.rubrics import BENCHMARKS


def test_items_are_the_numbered_pictures_of_any_type_in_order(benchmark_folder):
    items = read_items(benchmark_folder)
    assert [(item.name, item.file.name) for item in items] == [
        ("IDC 1", "1.png"), ("IDC 2", "2.webp"), ("IDC 10", "10.gif"), ("ISAC 1", "1.bmp"),
        ("ICRC 1", "01.jpg"), ("MDIUC 1", "1.jpeg")]
    assert [len(item.questions) for item in items] == [1, 1, 1, 1, 1, 5]
    emotions = items[3].questions[0]
    assert emotions.startswith("Analyze the emotions expressed by the individuals")


def test_a_picture_that_cannot_be_read_is_refused_by_name(benchmark_folder):
    (benchmark_folder / "IDC" / "4.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"4\.png: not a picture that Pillow can read"):
        read_items(benchmark_folder)


def test_a_number_that_occurs_twice_is_refused_by_name(benchmark_folder):
    folder = benchmark_folder / "IDC"
    shutil.copy(folder / "1.png", folder / "01.png")
    with pytest.raises(ValueError, match=r"1\.png: picture 1 is there twice"):
        read_items(benchmark_folder)


def test_a_folder_without_numbered_pictures_is_refused(benchmark_folder):
    for name in BENCHMARKS:
        shutil.rmtree(benchmark_folder / name)
    with pytest.raises(ValueError, match="no benchmark folder"):
        read_items(benchmark_folder)


@pytest.mark.parametrize("text, message", [
    ("{", r"questions\.json: not JSON"),
    ('{"ABC": "?"}', "found ABC"),
    ("[1]", "found list"),
    ('{"IDC": {"7": "What?"}}', "IDC has no picture '7'"),
    ('{"IDC": ["What?", 5]}', "IDC 1 is no question"),
    ('{"ISAC": " "}', "ISAC 1 is no question"),
])
def test_questions_with_a_fault_are_refused_by_place(benchmark_folder, text, message):
    (benchmark_folder / "questions.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_items(benchmark_folder)


def test_a_folder_may_bring_questions_for_all_or_for_each(benchmark_folder):
    (benchmark_folder / "questions.json").write_text(json.dumps({
        "IDC": {"2": "What is it?", "10": ["And?", "So?"]},
        "ISAC": "Who is sad?",
        "MDIUC": ["One?", "Two?"]}))
    assert {item.name: item.questions for item in read_items(benchmark_folder)} == {
        "IDC 1": (QUESTIONS["IDC"],), "IDC 2": ("What is it?",), "IDC 10": ("And?", "So?"),
        "ISAC 1": ("Who is sad?",), "ICRC 1": (QUESTIONS["ICRC"],), "MDIUC 1": ("One?", "Two?")}
