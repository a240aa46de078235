"""training/skipped.py: bad samples are counted and named, and too many of them end a run."""
import json

import pytest

from training.data import Batch
from training.skipped import Skipped


def entries(*steps):
    return [{"step": step, "sample": f"0.tar:{step}", "reason": "cut"} for step in steps]


def batch_of(size, *steps):
    return Batch(None, [None] * size, ["text"] * size, entries(*steps))


def test_skipped_samples_are_counted_and_named_once_even_when_a_run_is_resumed(tmp_path):
    file = tmp_path / "skipped.jsonl"
    file.write_text('{"step": 1, "sample": "of an older run"}\n')
    skipped = Skipped(file)
    skipped.cut(0)
    steps = [batch_of(4, 1), batch_of(4)], [batch_of(8)], [batch_of(8, 3, 3)]
    assert [skipped.add(batches) for batches in steps] == [1, 0, 2]
    state = json.loads(json.dumps(skipped.state))
    skipped.add([batch_of(8, 4)])
    with open(file, "a") as opened:
        opened.write('{"step": 4, "sam')                      # killed while writing
    skipped = Skipped(file, state)
    skipped.cut(3)
    assert skipped.count == 3 and skipped.state == state
    skipped.add([batch_of(8, 4)])
    named = [json.loads(line) for line in file.read_text().splitlines()]
    assert named == entries(1, 3, 3, 4) and skipped.count == 4


def test_more_than_five_percent_of_a_thousand_samples_end_the_run_and_five_do_not(tmp_path):
    skipped = Skipped(tmp_path / "skipped.jsonl")
    for step in range(300):                                   # 1 of 21 is bad: 4.8 %
        skipped.add([batch_of(20, step)])
    skipped = Skipped(tmp_path / "skipped.jsonl", skipped.state)
    message = "skipped.jsonl: 51 of the last 1000 samples were bad, more than 50 of 1000"
    with pytest.raises(ValueError, match=message):
        for step in range(100):
            skipped.add([batch_of(18, step)])
    assert skipped.count > 300
