"""What counts as a verdict: one JSON object or one whole number; nothing that leaves a doubt."""
import pytest

from evaluation.verdicts import verdict, verdicts


@pytest.mark.parametrize("reply, expected", [
    ('{"reason": "as it is", "score": 4}', (4, "as it is")),
    (' {"score": 0, "reason": "", "more": [1]}\n', (0, "")),
    ('```json\n{"reason": "fenced", "score": 5}\n```', (5, "fenced")),
    ('{"score": 4}', (4, "")),
    ('<think>\nPerhaps {"score": 2}? No, 3.\n</think>\n{"reason": "r", "score": 3}', (3, "r")),
    ('It began within the prompt.</think> {"reason": "r", "score": 3}', (3, "r")),
    ('{"reason": "it says </think>", "score": 1}', (1, "it says </think>")),
    ('Here: {"score": 4, "reason": "x"}', (4, "x")),
    ('{"score": 4, "reason": "x"}\n\nI hope that this helps!', (4, "x")),
    ('My score is 4.\n```json\n{"score": 4, "reason": "x"}\n```', (4, "x")),
    ("4", (4, "")),
    (" 0\n", (0, "")),
    ("score: 4", (4, "score: 4")),
    ("<think>3 or 4</think>It is complete, so I give 4.", (4, "It is complete, so I give 4.")),
])
def test_a_clear_verdict_is_taken(reply, expected):
    assert verdict(reply) == expected


WRONG_SCORES = ('"4"', "4.0", "4e0", "6", "-1", "true", "null", "[4]")


@pytest.mark.parametrize("reply", [
    "", "6", "44", "4.0", "4.5", "-4", "4e0", "4/5", "4 out of 5", "3 or 4", "3-4", "80%", "v4",
    "<html></html>", "[" * 100_000, "[4]", "<think>It is a 4", "<think>4</think>",
    '{"reason": "x"}', '{"verdict": {"score": 4}}',
    '{"score": 4, "reason": 4}',
    *(f'{{"score": {score}, "reason": "x"}}' for score in WRONG_SCORES),
    '[{"score": 4, "reason": "x"}]',
    'Score: 2. {"score": 4, "reason": "x"}',
    'By {reason, score}: {"score": 4, "reason": "x"}',
    '{"a": {"score": 4, "reason": "x"}',
    '{"score": 4, "reason": "x"',
    '{"score": 4, "reason": "x"} {"score": 5, "reason": "x"}',
    '{"score": 1, "score": 5, "reason": "x"}',
    '```json\n{"score": 4, "reason": "x"}\n```\n```json\n{"score": 5, "reason": "x"}\n```'])
def test_whatever_leaves_room_for_doubt_is_no_verdict(reply):
    with pytest.raises(ValueError):
        verdict(reply)


def test_several_answers_need_a_verdict_for_each_letter_and_no_other():
    good = '<think>A?</think>{"A": {"score": 1, "reason": "a"}, "B": {"score": 5, "reason": "b"}}'
    assert verdicts(good, "AB") == {"A": (1, "a"), "B": (5, "b")}
    for letters in ("A", "ABC"):
        with pytest.raises(ValueError, match=f"not one JSON object with {', '.join(letters)}"):
            verdicts(good, letters)
    for bad in ("4", '{"A": 1, "B": 5}', good.replace("5", "6"), good.replace('"B"', '"A"')):
        with pytest.raises(ValueError):
            verdicts(bad, "AB")
