"""The tables of speed: what they compute beside the times."""
import pytest

from artgpt4 import ArtGPT4
from benchmarks.speed import TINY, common_prefix, layer_errors, model_table, rounds_table
from conversation import rounds

LIMITS = {"read": 10e9, "float32": 1e12, "int8": 2e12, "int8, one row": 8e9}


@pytest.fixture(scope="module")
def tiny():
    return ArtGPT4.from_pretrained(TINY)


def test_one_digit_suffers_from_outliers_and_two_digits_do_not():
    two, exact_outliers, one = layer_errors().values()
    assert two < 0.001
    assert 0.001 < exact_outliers < 0.011
    assert one > 0.09


def test_a_prefix_ends_where_the_ids_differ_or_a_list_ends():
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0
    assert common_prefix([1, 2], [1, 2, 3]) == 2


def test_after_the_first_round_only_the_new_tokens_of_a_prompt_are_computed(tiny):
    _, _, first, second = rounds_table(tiny, 2).splitlines()
    _, number, prompt, new, *_ = [cell.strip() for cell in first.split("|")]
    assert (number, prompt) == ("1", new)
    _, number, prompt, new, *_ = [cell.strip() for cell in second.split("|")]
    assert number == "2" and 0 < int(new) < int(prompt) / 2


def test_more_rounds_than_the_context_holds_are_refused(tiny, monkeypatch):
    monkeypatch.setattr(rounds, "MAX_CONTEXT", 120)
    with pytest.raises(ValueError, match=r"--rounds: after \d+ rounds the context of 120 tokens"):
        rounds_table(tiny, 50)


def test_the_table_of_a_model_has_its_three_parts(tiny):
    lines = model_table(tiny, LIMITS, 16, 4, 1).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "encode", "prefill, 16 tokens", "decode, 4 tokens"]
    assert all("%" in line for line in lines[2:])
