"""scoring.csv: written, filled in by spreadsheets, taken back, or refused by row and column."""
import csv
import re

import pytest

from evaluation.person import COLUMNS
from tests.evaluation.runs import csv_rows


def test_a_table_is_written_in_random_order_with_a_page_to_read_from(quick, capsys):
    out = quick("--judge", "manual")
    assert "12 answers wait for a score" in capsys.readouterr().out
    heading, *rows = csv_rows(out / "scoring.csv")
    assert heading == list(COLUMNS) and len(rows) == 12
    models = [row[3].split()[0] for row in rows]
    assert models != sorted(models)
    page = (out / "scoring.html").read_text()
    assert all(row[0] in page for row in rows) and "Partial image description" in page


def test_a_filled_table_is_taken_back_and_new_answers_get_new_rows(quick, capsys):
    out = quick("--judge", "manual")
    file = out / "scoring.csv"
    rows = csv_rows(file)
    for row in rows[1:8]:
        row[4:] = ["4", "=good; as\nit is"]
    with open(file, "w", encoding="cp1252", newline="") as stream:     # as a spreadsheet may do it
        csv.writer(stream, delimiter=";").writerows(rows)
    before = file.read_bytes()
    capsys.readouterr()
    quick("--judge", "manual")
    assert "5 answers wait" in capsys.readouterr().out
    assert "=good; as\nit is" in (out / "report.html").read_text()
    assert file.read_bytes() == before                        # nothing new to ask
    quick("--judge", "manual", models=("Art", "Mini", "Third"))
    rows = csv_rows(file)
    assert len(rows) == 19
    assert sum(row[4:] == ["4", "'=good; as\nit is"] for row in rows) == 7


def refused(quick, capsys, rows):
    """What evaluate.py says of a table with these rows, which it must refuse and leave as it is."""
    file = quick.tmp_path / "run" / "scoring.csv"
    with open(file, "w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    before = file.read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        quick("--judge", "manual")
    assert file.read_bytes() == before
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("row, column, value, message", [
    (3, 4, "6", "row 3, column score: '6' is not a whole number from 0 to 5"),
    (2, 4, "4.5", "row 2, column score: '4.5'"),
    (4, 4, "good", "row 4, column score: 'good'"),
    (2, 0, "b123", "row 2, column id: 'b123' is no answer of this run"),
    (1, 4, "points", "row 1: no column 'score'"),
])
def test_a_table_with_a_fault_is_refused_by_row_and_column(
        quick, capsys, row, column, value, message):
    rows = csv_rows(quick("--judge", "manual") / "scoring.csv")
    rows[row - 1][column] = value
    assert message in refused(quick, capsys, rows)


def test_an_id_that_is_given_twice_is_refused_by_row(quick, capsys):
    rows = csv_rows(quick("--judge", "manual") / "scoring.csv")
    error = refused(quick, capsys, [*rows, rows[1]])
    assert re.search("row 14, column id: .* given twice", error)


def rewritten(rows):
    """A table as other spreadsheets would write it, with a score of 5.0 and two columns more."""
    heading, first, *others = rows
    heading = [*(name.upper() for name in heading), "Seen by", ""]
    first = [*first[:4], "5,0", "fine", "Ann", "=twice"]
    return [heading, first, *([*row, "", ""] for row in others)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "cp1252"])
def test_tables_of_other_spreadsheets_are_taken_and_own_columns_survive(quick, encoding):
    file = quick("--judge", "manual") / "scoring.csv"
    rows = rewritten(csv_rows(file))
    with open(file, "w", encoding=encoding, newline="") as stream:
        stream.write("sep=;\r\n")
        csv.writer(stream, delimiter=";").writerows(rows)
    quick("--judge", "manual", models=("Art", "Mini", "Third"))
    heading, *rows = csv_rows(file)
    assert heading == [*COLUMNS, "Seen by", ""] and len(rows) == 18
    assert sum(row[4:] == ["5", "fine", "Ann", "'=twice"] for row in rows) == 1
    assert "5: fine" in (file.parent / "report.html").read_text()


def test_a_fault_below_a_line_that_names_the_separator_is_told_by_its_row(quick, capsys):
    file = quick("--judge", "manual") / "scoring.csv"
    rows = csv_rows(file)
    rows[1][4] = "4.5"
    assert "row 3, column score: '4.5'" in refused(quick, capsys, [["sep=,"], *rows])
    assert "row 1: two columns 'score'" in refused(quick, capsys, [[*rows[0], "Score"]])
    file.write_bytes(b"\x00\x01\x02\x03\xff")
    with pytest.raises(SystemExit):
        quick("--judge", "manual")
    assert "scoring.csv: not a text in UTF-8, UTF-16" in capsys.readouterr().err
