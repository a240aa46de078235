"""Files of JSON lines: what a kill cuts off goes, and nothing else."""
import subprocess
import sys

import pytest

from evaluation.records import append_record, digest, locked, read_records


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


def test_a_run_belongs_to_one_process_and_a_dead_one_leaves_no_lock(tmp_path):
    code = ("import sys, os; from pathlib import Path; from evaluation.records import locked\n"
            "with locked(Path(sys.argv[1])): print(os.getpid(), flush=True); sys.stdin.read()")
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path], text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with other:
        pid = other.stdout.readline().strip()
        with pytest.raises(ValueError, match=rf"another evaluate\.py \(process {pid}\) is writing"):
            with locked(tmp_path):
                pass
        other.kill()
    with locked(tmp_path):
        pass


def test_two_commands_on_one_run_do_not_mix(quick, capsys):
    quick()
    with locked(quick.tmp_path / "run"):
        with pytest.raises(SystemExit):
            quick("--seed", 3)
    assert "is writing there; wait until it has ended" in capsys.readouterr().err
    assert len(quick.asked) == 12
