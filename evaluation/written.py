"""Answers that no model here wrote: from a file of JSON lines, or from the authors' folder.

    {"benchmark": "IDC", "number": 1, "answer": "A vase ..."}
    {"benchmark": "MDIUC", "number": 1, "answers": ["...", "..."], "questions": ["...", "..."]}

"questions" is not needed; where it is given it must be what the benchmark asks.
"""
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

from evaluation.released import released_answers, text_of


class Written(NamedTuple):
    """Where the answers of a column of the report come from; beside Weights."""
    name: str
    path: Path


def named_answers(texts, items, names):
    """([Written], [{item name: answers}]) of the values of --answers.

    A value is NAME=FILE, or NAME=FOLDER:LETTER for the authors' layout. names: those of the models
    of --weights. Raises ValueError for what cannot be read, for an item without an answer and for a
    name that is there already.
    """
    sources, rows = [], []
    for text in texts:
        name, _, place = text.partition("=")
        name = name.strip()
        if not name or not place:
            raise ValueError(f"--answers {text}: expected is NAME=FILE or NAME=FOLDER:LETTER")
        if name in (*names, *(source.name for source in sources)):
            raise ValueError(f"--answers {text}: there is a model {name} already; give another "
                             "name")
        path, found = Path(place), re.fullmatch("(.+):([A-Z])", place)
        if found and not path.exists():
            path = Path(found[1])
        if path.is_dir() and not found:
            raise ValueError(f"--answers {text}: a folder holds several models' answers; add the "
                             f"letter of one, {name}={place}:A")
        known = released_answers(path, found[2]) if path.is_dir() else answers_in_lines(path)
        sources.append(Written(name, Path(place)))
        rows.append(answers_to(items, known, place))
    return sources, rows


def answers_in_lines(file):
    """{(benchmark, number): (questions or None, answers)} of a file of JSON lines."""
    found = {}
    for number, line in enumerate(text_of(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            key = record["benchmark"], record["number"]
            answers = record["answers"] if "answers" in record else [record["answer"]]
            questions = record.get("questions")
            questions = questions if questions is None else tuple(questions)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(f'{file}, line {number}: expected is {{"benchmark": "IDC", "number": '
                             '1, "answer": "..."}') from None
        texts = isinstance(answers, list) and all(isinstance(text, str) for text in answers)
        if not texts or not isinstance(key[0], str) or type(key[1]) is not int:
            raise ValueError(f"{file}, line {number}: the answers are not texts, or the number is "
                             "not a whole one")
        if key in found:
            raise ValueError(f"{file}, line {number}: {key[0]} {key[1]} is answered already; a "
                             "file holds one model's answers")
        found[key] = questions, answers
    return found


def answers_to(items, known, where):
    """{item name: answers} for all items, from {(benchmark, number): (questions, answers)}."""
    row = {}
    for item in items:
        key = item.benchmark, item.number
        if key not in known:
            raise ValueError(f"{where}: no answer to {item.name}")
        questions, row[item.name] = known[key]
        if questions not in (None, item.questions):
            raise ValueError(f"{where}: {item.name} was asked other questions, the first "
                             f"{questions[0]!r}; put them into questions.json of the benchmark "
                             "folder")
        if len(row[item.name]) != len(item.questions):
            raise ValueError(f"{where}: {len(row[item.name])} answers to {item.name}, which has "
                             f"{len(item.questions)} questions")
    others = known.keys() - {(item.benchmark, item.number) for item in items}
    if others:
        print(f"{where}: {len(others)} answers are to pictures that the benchmark does not have",
              file=sys.stderr)
    return row
