"""Runs of evaluate.py in this process, with the shipped weights or with models that answer at once.
"""
import csv
import json

import evaluate
from evaluation import answers

TINY = evaluate.HERE / "weights" / "tiny"


def run_evaluate(folder, *flags):
    """evaluate.py FOLDER FLAGS; folder None: without one."""
    arguments = [] if folder is None else [str(folder)]
    arguments += map(str, flags)
    evaluate.run_command(evaluate.main, evaluate.command_line(), arguments)


def json_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def csv_rows(file):
    """The rows of a scoring.csv that evaluate.py wrote."""
    with open(file, encoding="utf-8-sig", newline="") as stream:
        return list(csv.reader(stream))


def say_what_was_asked(model, item):
    return [f"{model} says of {item.name}: {question}" for question in item.questions]


class QuickRuns:
    """quick(*flags): run evaluate.py on a folder. Returns the folder of the run.

    A model is its name, and answers what the function `answer` returns for it and an item.
    asked: (model, item name) of all that was asked.
    """

    def __init__(self, folder, tmp_path, monkeypatch):
        self.folder, self.tmp_path = folder, tmp_path
        self.asked, self.answer = [], say_what_was_asked
        monkeypatch.setattr(answers.Weights, "load", lambda weights, args: weights.name)
        monkeypatch.setattr(answers, "dialogue", self.dialogue)

    def dialogue(self, model, item, settings):
        self.asked.append((model, item.name))
        return self.answer(model, item)

    def __call__(self, *flags, models=("Art", "Mini")):
        weights = []
        for name in models:
            path = self.tmp_path / f"{name}.safetensors"
            path.write_text(path.name)
            weights.append(f"{name}={path}")
        out = self.tmp_path / "run"
        run_evaluate(self.folder, "--weights", *weights, "--out", out, *flags)
        return out
