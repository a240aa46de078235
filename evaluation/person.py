"""A person as the judge: scoring.csv to fill in, and a page to read from while doing so."""
import csv
import io
import random
import re

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


def read_cells(file):
    """The rows of a table as lists of cells, the heading first.

    Takes what spreadsheets write: commas, semicolons or tabs, with a byte order mark or in another
    encoding. Raises ValueError if it cannot be read.
    """
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    heading = text.partition("\n")[0]
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=heading.count))
        return [[cell.strip() for cell in row] for row in rows] or [[]]
    except csv.Error as error:
        raise ValueError(f"{file}: not a table of comma-separated values ({error})") from None


def read_scoring(file, ids):
    """{id: {"score", "reason"}} of a scoring.csv; the score is None where its cell is empty.

    ids: those of this run's answers. Raises ValueError naming row and column, the heading being
    row 1.
    """
    names, *rows = read_cells(file)
    missing = [name for name in ("id", "score", "reason") if name not in names]
    if missing:
        raise ValueError(f"{file}, row 1: no column {missing[0]!r}, found "
                         f"{', '.join(names)[:100]!r}; move the file away and run the same command "
                         "for a new one")
    found = {}
    for number, row in enumerate(rows, start=2):
        if not any(row):
            continue
        cells = dict(zip(names, row + [""] * len(names), strict=False))
        id, score = cells["id"], cells["score"]
        if id in found:
            raise ValueError(f"{file}, row {number}, column id: {id!r} is given twice")
        if id not in ids:
            raise ValueError(f"{file}, row {number}, column id: {id!r} is no answer of this run; "
                             "if there are new answers, move the file away and run the same "
                             "command for a new table")
        if not re.fullmatch("[0-5]?", score):
            raise ValueError(f"{file}, row {number}, column score: {score!r} is not a whole number "
                             "from 0 to 5; leave it empty if there is none")
        found[id] = {"score": int(score) if score else None, "reason": cells["reason"]}
    return found


def write_scoring(file, said, scores):
    """Write the table to fill in, and beside it, as .html, the page to read from.

    said: {id: Said} in the order to judge them in; scores: what read_scoring found before.
    """
    stream = io.StringIO(newline="")
    table = csv.writer(stream)
    table.writerow(COLUMNS)
    for id, (item, answers) in said.items():
        verdict = scores.get(id, {"score": None, "reason": ""})
        score = "" if verdict["score"] is None else str(verdict["score"])
        cells = (id, item.benchmark, numbered(item.questions), numbered(answers), score,
                 verdict["reason"])
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
    scores = read_scoring(file, said) if file.exists() else {}
    if said.keys() - scores.keys():
        order = random.Random(seed).sample(sorted(said), len(said))
        write_scoring(file, {id: said[id] for id in order}, scores)
    missing = {"score": None, "reason": "no score in the table yet"}
    found = {id: scores.get(id, missing) for id in said}
    left = sum(verdict["score"] is None for verdict in found.values())
    if left:
        print(f"{left} answers wait for a score: read {file.with_suffix('.html')}, fill in {file}, "
              "then run the same command again")
    return {id: [verdict] for id, verdict in found.items()}
