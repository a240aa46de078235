"""report.html and report.md of a run: the tables, and every answer beside its picture."""
from typing import NamedTuple

from common.files import open_image
from common.page import (
    bar_chart, frame, html_table, markdown_table, markdown_text, page, paragraph, picture_tag,
)
from conversation.saving import find_html
from evaluation.differences import NOTES as DIFFERENCE_NOTES
from evaluation.differences import difference_table
from evaluation.items import Said
from evaluation.records import write_text
from evaluation.references import NOTE
from evaluation.rubrics import BENCHMARKS
from evaluation.tables import OVERALL, published_notes, published_rows, summary, tables


class Column(NamedTuple):
    """A model of the report. answers: {item name: list of texts}; scores: {Said.id: verdicts}, or
    None if nobody judged."""
    name: str
    label: str                                                # tells training seeds apart
    answers: dict
    scores: dict

    def verdicts(self, item):
        """[{"score", "reason"}] of an item, one for each repeat."""
        if self.scores is None:
            return []
        return self.scores[Said(item, self.answers[item.name]).id]


def columns_of(models, answers, scores):
    """[Column] of [Weights], their answers by answer_all, and the judge's scores."""
    several_seeds = len({weights.name for weights in models}) < len(models)
    columns = []
    for weights, row in zip(models, answers, strict=True):
        label = f"{weights.name} ({weights.path})" if several_seeds else weights.name
        columns.append(Column(weights.name, label, row, scores))
    return columns


def rows_of(items, columns):
    """(rows, notes, scores): a Row for each name, with the scores of all its columns, what is
    missing, and the scores as {name: {benchmark: {number: samples}}}."""
    rows, notes, scores = [], [], {}
    for name in dict.fromkeys(column.name for column in columns):
        found = {}
        for item in items:
            samples = [verdict["score"] for column in columns if column.name == name
                       for verdict in column.verdicts(item)]
            found.setdefault(item.benchmark, {})[item.number] = samples
        rows.append(summary(name, found))
        scores[name] = found
        every = [score for benchmark in found.values() for samples in benchmark.values()
                 for score in samples]
        if None in every:
            notes.append(f"{name}: {every.count(None)} of {len(every)} scores are missing "
                         "(unjudged); its means are of the rest.")
    if any(value is not None for row in rows for value in row.spreads.values()):
        notes.append("±: the standard deviation of the averages, over training seeds and repeats "
                     "of the judge.")
    return rows, notes, scores


def rounds_in_html(questions, answers):
    """Each question, and below it the answer; a web page in it is shown as such."""
    parts = []
    for question, answer in zip(questions, answers, strict=True):
        parts += [paragraph(question, "faint"), paragraph(answer or "(no answer)")]
        document = find_html(answer)
        if document:
            parts.append(frame(document, question))
    return "".join(parts)


def verdict_in_html(verdict):
    score = "Unjudged" if verdict["score"] is None else verdict["score"]
    return paragraph(f"{score}: {verdict['reason']}", "score")


def item_card(item, columns):
    """An item in HTML: its picture, and side by side what each model said and its scores."""
    body = [picture_tag(open_image(item.file), 260, f"{item.benchmark}/{item.file.name}")]
    for column in columns:
        rounds = rounds_in_html(item.questions, column.answers[item.name])
        scores = "".join(map(verdict_in_html, column.verdicts(item)))
        body.append(f"<div>{paragraph(column.label, 'name')}{rounds}{scores}</div>")
    return (f'<div class="card" id="{item.benchmark}-{item.number}"><h3>{item.name}</h3>'
            f'<div class="side">{"".join(body)}</div></div>')


def averages_chart(rows, published):
    keys = [*BENCHMARKS, OVERALL]
    averages = {row.name: [row.averages[key] for key in keys] for row in rows + published}
    spreads = {row.name: [row.spreads[key] for key in keys] for row in rows}
    return bar_chart(keys, averages, "Averages", "score, 0 to 5", 5, spreads)


def write_report(out, items, models, answers, scores, facts, references=()):
    """Write out/report.md and out/report.html. Returns the tables for the terminal.

    models: [Weights]; answers: as answer_all returns them; scores: {Said.id: verdicts}, or None if
    nobody judged; facts: lines that say how the report was made; references: Rows that are no
    models.
    """
    columns, made, first, chart = columns_of(models, answers, scores), [], [], ""
    notes = ["Not judged; --judge says by whom."]
    if scores is not None:
        rows, notes, samples = rows_of(items, columns)
        notes += ["The published rows are of the paper's own pictures and judges. They stand "
                  "beside these models, but cannot be compared with them item by item.",
                  *published_notes()]
        published = [row._replace(name=f"{row.name} (published)") for row in published_rows()]
        *made, overall = tables([*rows, *references, *published])
        differences = difference_table(samples)
        first = [overall]
        if differences:
            first.append(differences)
            notes = [*DIFFERENCE_NOTES, *notes]
        if references:
            notes = [NOTE, *notes]
        chart = averages_chart(rows, published)
    names = dict.fromkeys(column.name for column in columns)
    title = f"{' and '.join(names)} on the paper's four benchmarks"
    write_text(out / "report.md", in_markdown(title, facts, first + made, notes))
    cards = [item_card(item, columns) for item in items]
    write_text(out / "report.html", in_html(title, facts, chart, first + made, notes, cards))
    return first


def in_markdown(title, facts, made, notes):
    """The report without its answers."""
    parts = [f"# {markdown_text(title)}", "\n".join(f"- {markdown_text(fact)}" for fact in facts)]
    for table in made:
        parts += [f"## {table.caption}", markdown_table(table.heading, table.lines)]
    parts.append("\n".join(f"- {markdown_text(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


def in_html(title, facts, chart, made, notes, cards):
    """The whole report. chart, cards: HTML; all else is text."""
    body = [paragraph("\n".join(facts), "faint"), chart]
    for table in made:
        body += [f"<h2>{table.caption}</h2>", html_table(table.heading, table.lines)]
    body += [*map(paragraph, notes), "<h2>Answers</h2>", *cards]
    return page(title, "\n".join(body))
