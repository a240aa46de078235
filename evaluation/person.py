"""A person as the judge: scoring.csv to fill in, and a page to read from while doing so."""
import codecs
import contextlib
import csv
import io
import random
import re
from typing import NamedTuple

from common.files import open_image
from common.page import html_table, page, paragraph, picture_tag
from evaluation.records import write_text
from evaluation.report import rounds_in_html
from evaluation.rubrics import RUBRICS

COLUMNS = ("id", "benchmark", "question", "answer", "score", "reason")


def as_text(cell):
    """A cell that a spreadsheet takes for text: an apostrophe before what looks like a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def numbered(texts):
    """The rounds of a dialogue in one cell, numbered if there are several."""
    if len(texts) == 1:
        return texts[0]
    return "\n".join(f"{i}. {text}" for i, text in enumerate(texts, start=1))


def decoded(file):
    """The text of a table, in any encoding that spreadsheets write. Raises ValueError."""
    data = file.read_bytes()
    encodings = ["utf-8-sig", "cp1252"]
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    elif b"\0" in data[:2]:                                   # no byte order mark
        encodings = ["utf-16-be" if data.startswith(b"\0") else "utf-16-le"]
    for encoding in encodings:
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            if "\0" not in text:
                return text
    raise ValueError(f"{file}: not a text in UTF-8, UTF-16 or Windows-1252; save the table as CSV "
                     "in UTF-8")


def read_cells(file):
    """[(row number in the file, its cells)] of a table, the heading first.

    Takes what spreadsheets write: commas, semicolons or tabs, a first line sep=;, a byte order
    mark or another encoding. Raises ValueError if it cannot be read.
    """
    text, first = decoded(file), 1
    separator = re.match(r'"?sep=([,;\t])"?[^\S\n]*\n', text, re.IGNORECASE)
    if separator:
        text, first = text[separator.end():], 2
    heading = text.partition("\n")[0]
    delimiter = separator[1] if separator else max(",;\t", key=heading.count)
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        cells = [[cell.strip() for cell in row] for row in rows] or [[]]
    except csv.Error as error:
        raise ValueError(f"{file}: not a table of comma-separated values ({error})") from None
    return list(enumerate(cells, start=first))


class Scoring(NamedTuple):
    """What a scoring.csv holds.

    scores: {id: {"score", "reason"}}, the score None where its cell is empty. own: the headings of
    columns that a person added. cells: {id: what stands in these columns}.
    """
    scores: dict
    own: list
    cells: dict


def read_scoring(file, ids):
    """The Scoring of a scoring.csv.

    ids: those of this run's answers. Raises ValueError naming row and column, as they are in the
    file.
    """
    (first, names), *rows = read_cells(file)
    known = {}                                                # column -> its place
    for place, name in enumerate(names):
        column = name.casefold()
        if column in known:
            raise ValueError(f"{file}, row {first}: two columns {column!r}; rename one")
        if column in COLUMNS:
            known[column] = place
    for name in ("id", "score", "reason"):
        if name not in known:
            raise ValueError(f"{file}, row {first}: no column {name!r}, found "
                             f"{', '.join(names)[:100]!r}; move the file away and run the same "
                             "command for a new one")
    width = max([len(names), *(len(row) for _, row in rows)])
    own = [place for place in range(width) if place not in known.values()]
    found = Scoring({}, [(names + [""] * width)[place] for place in own], {})
    for number, row in rows:
        if not any(row):
            continue
        row = row + [""] * (width - len(row))
        id, score, reason = (row[known[name]] for name in ("id", "score", "reason"))
        if id in found.scores:
            raise ValueError(f"{file}, row {number}, column id: {id!r} is given twice")
        if id not in ids:
            raise ValueError(f"{file}, row {number}, column id: {id!r} is no answer of this run; "
                             "if there are new answers, move the file away and run the same "
                             "command for a new table")
        if not re.fullmatch(r"([0-5]([.,]0+)?)?", score):     # 5.0 is what spreadsheets make of 5
            raise ValueError(f"{file}, row {number}, column score: {score!r} is not a whole number "
                             "from 0 to 5; leave it empty if there is none")
        found.scores[id] = {"score": int(score[0]) if score else None, "reason": reason}
        found.cells[id] = [row[place] for place in own]
    return found


def write_scoring(file, said, before):
    """Write the table to fill in, and beside it, as .html, the page to read from.

    said: {id: Said} in the order to judge them in; before: the Scoring that the file holds now.
    """
    stream = io.StringIO(newline="")
    table = csv.writer(stream)
    table.writerow([*COLUMNS, *map(as_text, before.own)])
    for id, (item, answers) in said.items():
        verdict = before.scores.get(id, {"score": None, "reason": ""})
        score = "" if verdict["score"] is None else str(verdict["score"])
        cells = (id, item.benchmark, numbered(item.questions), numbered(answers), score,
                 verdict["reason"], *before.cells.get(id, [""] * len(before.own)))
        table.writerow([as_text(cell) for cell in cells])
    write_text(file.with_suffix(".html"), scoring_page(file, said))
    write_text(file, stream.getvalue(), "utf-8-sig")


def scoring_page(file, said):
    """The HTML that shows what scoring.csv asks for: rubrics, pictures, questions and answers."""
    body = [paragraph(
        f"Write a score from 0 to 5 and a reason into the table {file.name}, in the row with the "
        "same id, and run the same command again. The page does not tell which model said what; "
        "the order is random.")]
    benchmarks = {item.benchmark for item, _ in said.values()}
    for benchmark, (name, rubric) in RUBRICS.items():
        if benchmark in benchmarks:
            body.append(html_table((benchmark, name), enumerate(rubric)))
    for id, (item, answers) in said.items():
        picture = picture_tag(open_image(item.file), 320, f"the picture of {id}")
        body.append(f'<div class="card"><h3>{id}, {item.benchmark}</h3><div class="side">{picture}'
                    f"<div>{rounds_in_html(item.questions, answers)}</div></div></div>")
    return page("Answers to judge", "\n".join(body))


def by_hand(said, seed, file):
    """{id: [verdict]} from the filled scoring.csv; a verdict is {"score", "reason"}.

    said: {id: Said}. Writes the table and its page if there are answers that it does not hold yet.
    """
    found = read_scoring(file, said) if file.exists() else Scoring({}, [], {})
    scores = found.scores
    if said.keys() - scores.keys():
        order = random.Random(seed).sample(sorted(said), len(said))
        write_scoring(file, {id: said[id] for id in order}, found)
    missing = {"score": None, "reason": "no score in the table yet"}
    verdicts = {id: scores.get(id, missing) for id in said}
    left = sum(verdict["score"] is None for verdict in verdicts.values())
    if left:
        print(f"{left} answers wait for a score: read {file.with_suffix('.html')}, fill in {file}, "
              "then run the same command again")
    return {id: [verdict] for id, verdict in verdicts.items()}
