"""training/skipped.py: bad samples are counted and named, and too many of them end a run."""
import json

import numpy as np
import pytest

from training.skipped import Skipped


def entries(*steps):
    return [{"step": step, "sample": f"0.tar:{step}", "reason": "cut"} for step in steps]


def test_skipped_samples_are_counted_and_named_once_even_when_a_run_is_resumed(tmp_path):
    file = tmp_path / "skipped.jsonl"
    file.write_text('{"step": 1, "sample": "of an older run"}\n')
    skipped = Skipped(file)
    skipped.cut(0)
    for step in (entries(1), [], entries(3, 3)):
        skipped.add(step)
    state = json.loads(json.dumps(skipped.state))
    skipped.add(entries(4))
    with open(file, "a") as opened:
        opened.write('{"step": 4, "sam')                      # killed while writing
    skipped = Skipped(file, state=state)
    skipped.cut(3)
    assert skipped.count == 3 and skipped.state == state
    skipped.add(entries(4))
    named = [json.loads(line) for line in file.read_text().splitlines()]
    assert named == entries(1, 3, 3, 4) and skipped.count == 4


def test_more_than_five_percent_of_distinct_samples_end_the_run_and_repeats_do_not(tmp_path):
    skipped = Skipped(tmp_path / "skipped.jsonl")
    for _ in range(300):                                      # two bad pictures, again and again
        skipped.add(entries(1, 2))
        skipped.check(20)
    assert skipped.state == {"count": 600, "names": ["0.tar:1", "0.tar:2"]}
    message = "skipped.jsonl: 72 of 1000 samples were bad, more than --max-bad 0.05"
    with pytest.raises(ValueError, match=message):
        for step in range(100):
            skipped.add(entries(step))
            skipped.check(1000)


def test_a_stretch_of_bad_luck_does_not_end_a_run(tmp_path):
    for seed in range(50):                                    # 4.7 % of 20,000 samples are bad
        bad = np.random.RandomState(seed).random(20000) < 0.047
        skipped = Skipped(tmp_path / "skipped.jsonl")
        for seen in range(0, 20000, 250):
            skipped.add(entries(*(seen + bad[seen:seen + 250].nonzero()[0])), write=False)
            skipped.check(seen + 250)


def test_no_bad_sample_or_all_of_them_may_be_allowed(tmp_path):
    strict, lenient = (Skipped(tmp_path / "skipped.jsonl", max_bad) for max_bad in (0, 1))
    for skipped in (strict, lenient):
        skipped.add(entries(1, 2), write=False)
    lenient.check(2)
    with pytest.raises(ValueError, match="2 of 2 samples were bad, more than --max-bad 0;"):
        strict.check(2)
