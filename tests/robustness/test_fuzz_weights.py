"""The first of the random faults of fuzz_weights.py, which has the rest."""
from tests.robustness.fuzz_weights import fuzz


def test_a_random_fault_is_refused_in_one_line_or_changes_no_tensor():
    ends, wrong = fuzz(30)
    assert wrong == []
    assert ends["refused"] + ends["same"] == 30 and ends["refused"] > 15
