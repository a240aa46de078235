"""Files of JSON lines: what a kill cuts off goes, and nothing else."""
import pytest

from evaluation.records import append_record, digest, read_records


def test_records_are_read_back_and_a_line_that_was_cut_off_is_removed(tmp_path):
    file = tmp_path / "answers.jsonl"
    assert read_records(file, ("id",)) == []
    append_record(file, {"id": 1, "answer": "ü\n"})
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"id": 2, "ans')
    assert read_records(file, ("id", "answer")) == [{"id": 1, "answer": "ü\n"}]
    assert file.read_bytes() == whole


@pytest.mark.parametrize("line", ["{", "3", '{"answer": 1}'])
def test_a_whole_line_that_is_no_record_is_refused_by_number(tmp_path, line):
    file = tmp_path / "answers.jsonl"
    file.write_text(f'{{"id": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 2: not a record of this file"):
        read_records(file, ("id",))


def test_a_digest_depends_on_values_and_not_on_their_order_in_a_dictionary():
    assert digest({"a": 1, "b": (2,)}) == digest({"b": [2], "a": 1})
    assert digest("a", "b") != digest("ab") != digest("a b")
