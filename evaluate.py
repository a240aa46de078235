"""The paper's four benchmarks: models answer, a judge gives 0 to 5, and a report has the paper's tables.

    python evaluate.py                                     the paper in miniature: paintings whose truth is known
    python evaluate.py FOLDER --weights W --out RUN        answers alone, into RUN/answers.jsonl and RUN/report.html
    python evaluate.py FOLDER --weights W --out RUN --judge https://host/v1 --judge-model NAME
    python evaluate.py FOLDER --weights W --out RUN --judge manual        a table to fill in; run it again when it is
    python evaluate.py --published                         the paper's tables, computed from their items

FOLDER/IDC, ISAC, ICRC and MDIUC hold numbered pictures; FOLDER/questions.json may bring other questions. What has been
answered or judged is never asked again: after a stop of any kind, run the same command.
"""
import argparse
import json
import os
import statistics
import sys
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from common.loading import device, load_model
from common.command_line import number, run_command
from common.files import open_image, weight_files
from common.progress import Progress
from conversation.rounds import SETTINGS, Conversation, plain
from gallery import benchmark as gallery
from evaluation.judges import (RUBRICS, Said, ServerJudge, append_record, by_hand, by_rule, by_server, digest, read_records,
                    rounds_in_html, write_text)
from common.page import bar_chart, html_table, markdown_table, markdown_text, page, paragraph, picture_tag

HERE = Path(__file__).resolve().parent
BENCHMARKS = tuple(RUBRICS)                                   # IDC, ISAC, ICRC, MDIUC
OVERALL = "overall"                                           # the mean of the four, 25 % each
# MDIUC: the first three rounds are the paper's, as is ISAC's question; the others are in their manner.
QUESTIONS = {
    "IDC": "Please describe this image in detail, and say what there is to appreciate in it.",
    "ISAC": "Analyze the emotions expressed by the individuals in the images as well as the emotions felt by the "
            "viewer observing them.",
    "ICRC": "Which objects and scenes do you recognise in this image? Name all of them.",
    "MDIUC": ("Could you please describe the diagram?", "What kind of situation do you think it is in?",
              "Can you tell me what it is doing or preparing to do?", "What feeling does it give you, and why?",
              "Can you write a short poem about it?"),
}
# The scores of the paper's tables 1 to 3, item by item, and the averages as it prints them.
PUBLISHED = {
    "GPT-4": {"IDC": (4, 4, 4, 4, 4, 3, 4, 5, 4, 5), "ISAC": (3, 4, 3, 3, 3, 3, 3, 3, 3, 3), "ICRC": (3, 3, 3, 3, 3),
              "MDIUC": (4, 4)},
    "MiniGPT-4": {"IDC": (2, 3, 3, 1, 2, 2, 4, 3, 3, 3), "ISAC": (2, 3, 2, 3, 2, 2, 2, 2, 3, 2),
                  "ICRC": (1, 2, 2, 2, 2), "MDIUC": (3, 2)},
    "ArtGPT-4": {"IDC": (4, 4, 3, 4, 4, 3, 4, 5, 3, 4), "ISAC": (3, 3, 1, 3, 3, 3, 3, 3, 3, 3), "ICRC": (3, 4, 2, 3, 3),
                 "MDIUC": (4, 4)},
}
PRINTED = {"GPT-4": (4.1, 3.1, 3, 4, 3.55), "MiniGPT-4": (2.6, 2.3, 1.8, 2.5, 2.35), "ArtGPT-4": (3.8, 2.8, 3, 4, 3.4)}
PRINTED_DISTANCES = (0.25, 0.15)                              # of ArtGPT-4 to GPT-4, each in one place of the paper

# ---- The benchmark folder


class Item(NamedTuple):
    """A picture and what is asked about it, one question or the rounds of a dialogue."""
    benchmark: str
    number: int
    file: Path
    questions: tuple
    checksum: int                                             # of the picture's bytes

    @property
    def name(self):
        return f"{self.benchmark} {self.number}"


def numbered_pictures(folder):
    """{number: file} of the pictures 1.jpg, 2.webp ... in a folder; other files are ignored. Raises ValueError for a
    number that is there twice and for a picture that cannot be read."""
    found = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not (file.stem.isascii() and file.stem.isdigit() and file.is_file()):
            continue
        known = Image.registered_extensions().get(file.suffix.lower()) in Image.OPEN
        try:
            open_image(file)
        except ValueError:
            if known:
                raise
            continue                                          # notes, 1.txt for example
        if int(file.stem) in found:
            raise ValueError(f"{file}: picture {int(file.stem)} is there twice, as {found[int(file.stem)].name} too")
        found[int(file.stem)] = file
    return dict(sorted(found.items()))


def read_questions(folder, pictures):
    """{benchmark: {number: rounds}} by the defaults and the folder's questions.json, where a benchmark has a question,
    a list of rounds, or one of both for each number. Raises ValueError that names the place."""
    file = folder / "questions.json"
    try:
        given = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(given, dict) or given.keys() - RUBRICS.keys():
        raise ValueError(f"{file}: an object with the names {', '.join(BENCHMARKS)} is expected, found "
                         f"{', '.join(sorted(given))[:100] if isinstance(given, dict) else type(given).__name__}")
    questions = {}
    for benchmark, numbers in pictures.items():
        value = given.get(benchmark, {})
        each = value if isinstance(value, dict) else dict.fromkeys(map(str, numbers), value)
        if unknown := each.keys() - set(map(str, numbers)):
            raise ValueError(f"{file}: {benchmark} has no picture {min(unknown)!r}")
        questions[benchmark] = {}
        for n in numbers:
            rounds = each.get(str(n), QUESTIONS[benchmark])
            rounds = (rounds,) if isinstance(rounds, str) else rounds
            if not isinstance(rounds, list | tuple) or not rounds or not all(
                    isinstance(text, str) and plain(text) for text in rounds):
                raise ValueError(f"{file}: {benchmark} {n} is no question and no list of questions")
            questions[benchmark][n] = tuple(rounds)
    return questions


def read_items(folder):
    """All items of a benchmark folder, in order. Raises ValueError when it is none."""
    pictures = {benchmark: numbered_pictures(folder / benchmark) for benchmark in BENCHMARKS}
    if not any(pictures.values()):
        raise ValueError(f"{folder}: no benchmark folder; expected are numbered pictures in {', '.join(BENCHMARKS)}, "
                         f"such as {folder / 'IDC' / '1.jpg'}")
    for benchmark in BENCHMARKS:
        if not pictures[benchmark]:
            print(f"{folder / benchmark}: no numbered pictures, so there is no overall score", file=sys.stderr)
    questions = read_questions(folder, pictures)
    return [Item(benchmark, number, file, questions[benchmark][number], zlib.crc32(file.read_bytes()))
            for benchmark, files in pictures.items() for number, file in files.items()]


# ---- Answers


class Weights(NamedTuple):
    """A model of the tables: `path` is a weights folder, or an adapter for the weights in `folder`."""
    name: str
    path: Path
    folder: Path

    def load(self, args):
        adapter = None if self.path == self.folder else self.path
        return load_model(argparse.Namespace(**vars(args) | {"weights": self.folder, "adapter": adapter}))

    def version(self):
        """What tells these weights from others: of each file the size, and a checksum of how it begins and ends."""
        found = []
        for file in (self.folder / "config.json", *weight_files(self.folder, self.path == self.folder), self.path):
            if file.is_file():
                with open(file, "rb") as stream:
                    begin = stream.read(1 << 20)
                    stream.seek(max(0, file.stat().st_size - (1 << 20)))
                    found.append((file.stat().st_size, zlib.crc32(begin), zlib.crc32(stream.read())))
        return found


def named_weights(texts, base):
    """[Weights] of what --weights says: NAME=PATH or PATH. A NAME given several times is one model, trained with
    several seeds. Raises ValueError for a path that is not there, and for two models of one name by accident."""
    found = []
    for text in texts:
        name, _, path = text.partition("=") if "=" in text and not Path(text).exists() else ("", "", text)
        path = Path(path)
        if path.name == "minigpt4.safetensors" and not path.exists():
            raise ValueError(f"{path}: no such file; train it: python train.py --stage 1 --mode minigpt4 --out "
                             "runs/mini1, then python train.py --stage 2 --mode minigpt4 --init "
                             "runs/mini1/adapter.safetensors --out runs/mini2, and copy runs/mini2/adapter.safetensors "
                             "to it")
        if not path.exists():
            raise ValueError(f"{path}: no such weights folder or adapter file")
        own = path if path.is_dir() else path.resolve().parent
        folder = own if (own / "config.json").is_file() or path.is_dir() else base
        default = path.resolve().name if path.is_dir() else path.stem if path.stem != "adapter" else own.name
        if any(path == other.path or not name and default == other.name for other in found):
            raise ValueError(f"--weights {text}: {default} is there already; give each a name, NAME=PATH")
        found.append(Weights(name.strip() or default, path, folder))
    return found


def dialogue(model, item, settings):
    """What the model says to an item's questions, a list; each round sees those before it."""
    talk, answers = Conversation(model, **settings), []
    talk.add_image(open_image(item.file))
    for i, question in enumerate(item.questions):
        talk.set("seed", zlib.crc32(f"{settings['seed']} {item.name} {i}".encode()))    # whatever was asked before
        answers.append("".join(talk.answer(question)))
    return answers


def answer_all(items, models, args, file):
    """[{item name: answers} for each of models], from the file or asked now and added to it, one item at a time."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    loaded = [args.int8, args.vision_int8, args.dtype]
    known = {record["id"]: record["answers"] for record in read_records(file, ("id", "answers"))}
    ids = [{item.name: digest(weights.version(), loaded, settings, item.name, item.questions, item.checksum)
            for item in items} for weights in models]
    wanted = {id for row in ids for id in row.values()}
    done = len(wanted & known.keys())
    progress = Progress("answers", len(wanted), "items", before=done)
    for weights, row in zip(models, ids, strict=True):
        todo = [item for item in items if row[item.name] not in known]
        model = weights.load(args) if todo else None          # one model at a time is in memory
        for item in todo:
            answers = known[row[item.name]] = dialogue(model, item, settings)
            append_record(file, {"id": row[item.name], "model": weights.name, "weights": str(weights.path),
                                 "benchmark": item.benchmark, "number": item.number, "picture": item.file.name,
                                 "questions": item.questions, "answers": answers})
            done += 1
            progress.show(done, f"{weights.name}, {item.name}")
    return [{name: known[id] for name, id in row.items()} for row in ids]


# ---- Tables


class Row(NamedTuple):
    """A model in the tables. items: {benchmark: {number: mean score or None}}; averages, spreads (the standard
    deviation over training seeds and repeats): {benchmark or OVERALL: value or None}."""
    name: str
    items: dict
    averages: dict
    spreads: dict


def mean(values):
    """The mean of the values that are not None; None without any."""
    values = [value for value in values if value is not None]
    return statistics.fmean(values) if values else None


def averages_of(items):
    averages = {benchmark: mean(items.get(benchmark, {}).values()) for benchmark in BENCHMARKS}
    return averages | {OVERALL: None if None in averages.values() else mean(averages.values())}


def summary(name, scores):
    """Row of scores {benchmark: {number: [a score or None for each training seed and repeat]}}."""
    items = {benchmark: {n: mean(row) for n, row in rows.items()} for benchmark, rows in scores.items()}
    samples = len(next(iter(next(iter(scores.values())).values())))
    each = [averages_of({benchmark: {n: row[i] for n, row in rows.items()} for benchmark, rows in scores.items()})
            for i in range(samples)]
    spreads = {}
    for key in (*BENCHMARKS, OVERALL):
        values = [averages[key] for averages in each if averages[key] is not None]
        spreads[key] = statistics.stdev(values) if len(values) > 1 else None
    return Row(name, items, averages_of(items), spreads)


def published_rows():
    return [summary(name, {benchmark: {n: [score] for n, score in enumerate(scores, start=1)}
                           for benchmark, scores in benchmarks.items()}) for name, benchmarks in PUBLISHED.items()]


def published_notes():
    """Where the paper's print differs from what its own items give."""
    rows, notes = {row.name: row for row in published_rows()}, []
    for name, row in rows.items():
        for key, printed in zip((*BENCHMARKS, OVERALL), PRINTED[name], strict=True):
            if abs(printed - row.averages[key]) > 0.005:
                notes.append(f"The paper prints {printed:.2f} for {name}, {key}; its items give "
                             f"{row.averages[key]:.2f}.")
    distance = rows["GPT-4"].averages[OVERALL] - rows["ArtGPT-4"].averages[OVERALL]
    printed = " and ".join(f"{value:.2f}" for value in PRINTED_DISTANCES)
    return [*notes, f"As ArtGPT-4's distance to GPT-4 the paper prints both {printed}; its items give {distance:.2f}."]


def item_text(score):
    return "–" if score is None else f"{round(score, 2):g}"


def average_text(row, key):
    if row.averages[key] is None:
        return "–"
    return f"{row.averages[key]:.2f}" + (f" ± {row.spreads[key]:.2f}" if row.spreads[key] is not None else "")


def tables(rows):
    """[(caption, heading, lines)]: the paper's tables 1 to 3, and the overall scores."""
    found = []
    for i, benchmarks in enumerate((("IDC",), ("ISAC",), ("ICRC", "MDIUC")), start=1):
        heading, lines = ["model"], [[row.name] for row in rows]
        for benchmark in benchmarks:
            numbers = sorted({n for row in rows for n in row.items.get(benchmark, ())})
            prefix = f"{benchmark} " if len(benchmarks) > 1 else ""
            heading += [f"{prefix}{n}" for n in numbers] + [f"{prefix}average"]
            for row, line in zip(rows, lines, strict=True):
                items = row.items.get(benchmark, {})
                line += ["" if n not in items else item_text(items[n]) for n in numbers]
                line.append(average_text(row, benchmark))
        names = " and ".join(f"{RUBRICS[benchmark][0]} ({benchmark})" for benchmark in benchmarks)
        found.append((f"Table {i}: {names}", heading, lines))
    lines = [[row.name, *(average_text(row, key) for key in (*BENCHMARKS, OVERALL))] for row in rows]
    return [*found, ("Overall: the mean of the four, 25 % each", ["model", *BENCHMARKS, OVERALL], lines)]


# ---- Report


def item_card(item, columns):
    """An item in HTML: its picture, and side by side what each model said and got. columns: [(name, answers,
    verdicts)]."""
    body = []
    for name, answers, verdicts in columns:
        scores = [paragraph(f"{'Unjudged' if verdict['score'] is None else verdict['score']}: {verdict['reason']}",
                            "score") for verdict in verdicts]
        body.append(f"<div>{paragraph(name, 'name')}{rounds_in_html(item.questions, answers)}{''.join(scores)}</div>")
    picture = picture_tag(open_image(item.file), 260, f"{item.benchmark}/{item.file.name}")
    return (f'<div class="card" id="{item.benchmark}-{item.number}"><h3>{item.name}</h3><div class="side">{picture}'
            f'{"".join(body)}</div></div>')


def write_report(out, items, models, answers, scores, facts):
    """out/report.md and out/report.html. answers: as of answer_all; scores: {Said.id: verdicts} or None; facts: lines
    that say how it was made. Returns the tables."""
    names = list(dict.fromkeys(weights.name for weights in models))
    labels = [f"{weights.name} ({weights.path})" if len(names) < len(models) else weights.name for weights in models]
    ids = [{item.name: Said(item, row[item.name]).id for item in items} for row in answers]
    rows, notes = [], [] if scores else ["Not judged; --judge says by whom."]
    for name in names if scores else ():
        own = [row for weights, row in zip(models, ids, strict=True) if weights.name == name]
        found = {}
        for item in items:
            samples = [verdict["score"] for row in own for verdict in scores[row[item.name]]]
            found.setdefault(item.benchmark, {})[item.number] = samples
        rows.append(summary(name, found))
        every = [score for benchmark in found.values() for samples in benchmark.values() for score in samples]
        if missing := every.count(None):
            notes.append(f"{name}: {missing} of {len(every)} scores are missing (unjudged); its means are of the rest.")
    title = f"{' and '.join(names)} on the paper's four benchmarks"
    markdown = [f"# {markdown_text(title)}", "\n".join(f"- {markdown_text(fact)}" for fact in facts)]
    body, made = [paragraph("\n".join(facts), "faint")], []
    if scores:
        if any(value is not None for row in rows for value in row.spreads.values()):
            notes.append("±: the standard deviation of the averages, over training seeds and repeats of the judge.")
        notes += ["The published rows are of the paper's own pictures and judges: beside them, not to be compared item "
                  "by item.", *published_notes()]
        published = [row._replace(name=f"{row.name} (published)") for row in published_rows()]
        made = tables(rows + published)
        averages = {row.name: list(row.averages.values()) for row in rows + published}
        spreads = {row.name: list(row.spreads.values()) for row in rows}
        body.append(bar_chart([*BENCHMARKS, OVERALL], averages, "Averages", "score, 0 to 5", 5, spreads))
    for caption, heading, lines in made[-1:] + made[:-1]:
        markdown += [f"## {caption}", markdown_table(heading, lines)]
        body += [f"<h2>{caption}</h2>", html_table(heading, lines)]
    markdown += ["\n".join(f"- {markdown_text(note)}" for note in notes)]
    body += [*map(paragraph, notes), "<h2>Answers</h2>"]
    for item in items:
        body.append(item_card(item, [
            (label, row[item.name], scores[Said(item, row[item.name]).id] if scores else [])
            for label, row in zip(labels, answers, strict=True)]))
    for name, text in (("report.md", "\n\n".join(markdown) + "\n"), ("report.html", page(title, "\n".join(body)))):
        write_text(out / name, text)
    return made


def print_tables(made, notes=()):
    for caption, heading, lines in made:
        print(f"{caption}\n\n{markdown_table(heading, lines)}\n")
    for note in notes:
        print(note)


def main(args):
    if args.published:
        print_tables(tables(published_rows()), published_notes())
        return
    warnings.filterwarnings("ignore", module="PIL")
    folder, judge = args.folder or Path("runs/gallery-benchmark"), args.judge
    tiny = HERE / "weights" / "tiny"
    default = [f"ArtGPT-4={tiny}", f"MiniGPT-4={tiny / 'minigpt4.safetensors'}"]
    models = named_weights(args.weights or default, args.base)
    if not args.folder:
        gallery.make(folder)
        judge = judge or "gallery"
    items = read_items(folder)
    truth = gallery.truth(folder) if judge == "gallery" else None
    server = None
    if judge not in (None, "gallery", "manual"):
        if not args.judge_model:
            raise ValueError("--judge URL needs --judge-model NAME, a model that the server knows")
        server = ServerJudge(judge, args.judge_model, args.judge_sees_image, args.judge_timeout, args.judge_options)
    args.out.mkdir(parents=True, exist_ok=True)
    answers = answer_all(items, models, args, args.out / "answers.jsonl")
    said = {entry.id: entry for row in answers for entry in (Said(item, row[item.name]) for item in items)}
    scores = (by_server(server, said, args.repeats, args.seed, args.out / "scores.jsonl") if server else
              by_rule(said, truth) if truth else by_hand(said, args.seed, args.out / "scoring.csv") if judge else None)
    facts = [f"Benchmark: {folder}, {len(items)} items",
             f"Models: {', '.join(f'{weights.name} ({os.path.relpath(weights.path)})' for weights in models)}",
             f"Answers: {', '.join(f'{name} {getattr(args, name)}' for name in SETTINGS)}".replace("_", " "),
             f"Judge: {server.name if server else judge or 'none'}" + f", {args.repeats} times" * bool(server)]
    made = write_report(args.out, items, models, answers, scores, facts)
    print_tables(made[-1:])
    print(f"{args.out / 'report.html'}: the answers, their scores and the paper's tables (report.md: the tables)")


def json_object(text):
    """An argparse type: a JSON object."""
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    except (ValueError, RecursionError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no JSON object such as '{{\"temperature\": 0}}'")


def command_line():
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="a benchmark folder; default: the gallery's, painted in "
                                                             "runs/gallery-benchmark and judged by rule")
    parser.add_argument("--weights", nargs="+", action="extend", metavar="[NAME=]PATH",
                        help="weights folders, or adapter files for one; a NAME given several times is one model, "
                             "trained with several seeds; default: ArtGPT-4 and MiniGPT-4 of weights/tiny")
    parser.add_argument("--base", type=Path, default=HERE / "weights" / "tiny", metavar="FOLDER",
                        help="the weights folder of adapter files that lie in none; default: weights/tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"), metavar="RUN", help="default: %(default)s")
    parser.add_argument("--published", action="store_true", help="print the paper's tables from their items and end")
    answers = parser.add_argument_group("answers")
    for name, (kind, default, what) in SETTINGS.items():
        default = {"temperature": 0.0, "seed": 42}.get(name, default)       # so that a score depends on no draw
        answers.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default,
                             help=f"{what}; default: {default}", metavar="N" if isinstance(default, int) else "X")
    answers.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    answers.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")
    answers.add_argument("--int8", action="store_true", help="the language model's matrices in int8")
    answers.add_argument("--vision-int8", action="store_true", help="the image encoder's matrices in int8")
    judge = parser.add_argument_group("judge")
    judge.add_argument("--judge", metavar="URL|manual|gallery",
                       help="a server that speaks the OpenAI chat API (key: JUDGE_API_KEY or OPENAI_API_KEY), a table "
                            "to fill in, or the gallery's rules for its own paintings; default: none, answers alone")
    judge.add_argument("--judge-model", metavar="NAME", help="the server's model")
    judge.add_argument("--judge-sees-image", action="store_true", help="send the picture along")
    judge.add_argument("--judge-timeout", type=number(float, 0.1, 3600), default=120.0, metavar="SECONDS",
                       help="for one reply; default: 120")
    judge.add_argument("--judge-options", type=json_object, metavar="JSON",
                       help="more of the API's fields, '{\"temperature\": 0}' for example")
    judge.add_argument("--repeats", type=number(int, 1, 100), default=1, metavar="N",
                       help="score every answer N times; the tables then have a spread; default: 1")
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
