"""The paper's four benchmarks: models answer, a judge gives scores from 0 to 5, a report has the
paper's tables.

    python evaluate.py                      the paper in miniature: paintings whose truth is known
    python evaluate.py FOLDER --weights W --out RUN
                                            only the answers, in RUN/answers.jsonl and report.html
    python evaluate.py FOLDER --weights W --out RUN --judge https://host/v1 --judge-model NAME
    python evaluate.py FOLDER --weights W --out RUN --judge manual
                                            a table to fill in; then run the same command again
    python evaluate.py FOLDER --answers GPT-4=FILE --out RUN --judge ...
                                            answers that no model here wrote
    python evaluate.py --published          the paper's tables, computed from their items

FOLDER/IDC, ISAC, ICRC and MDIUC hold numbered pictures, and PAGES those for which a web page is to
be written. FOLDER/questions.json may replace the questions. Answers and scores are kept in RUN and
never asked for twice: after an interruption of any kind, run the same command again.
"""
from common.start import start_command

if __name__ == "__main__":
    start_command()                                           # before the slow imports

import argparse
import json
import os
import warnings
from functools import partial
from pathlib import Path

from common.command_line import Misuse, number, run_command
from common.files import read_json
from common.page import markdown_table
from evaluation.answers import (
    Weights, add_answer_flags, answer_all, answer_settings, named_weights,
)
from evaluation.items import Said, read_items
from evaluation.judges import by_rule, by_server, by_server_together, unjudged
from evaluation.person import by_hand
from evaluation.records import locked
from evaluation.references import reference_rows
from evaluation.report import write_report
from evaluation.server import ServerJudge
from evaluation.tables import published_notes, published_rows, tables
from evaluation.written import named_answers
from gallery import benchmark as gallery

HERE = Path(__file__).resolve().parent
GALLERY_FOLDER = Path("runs/gallery-benchmark")


def choose_judge(args, folder):
    """(name, judge): what the report calls it, and a function {id: Said} -> {id: verdicts} or None.

    Raises ValueError if --judge is not complete, before any model is asked.
    """
    if args.judge is None:
        return "none", None
    if args.judge == "manual":
        return "manual", partial(by_hand, seed=args.seed, file=args.out / "scoring.csv")
    if args.judge == "gallery":
        return "gallery", partial(by_rule, truth=gallery.truth(folder))
    if not args.judge_model:
        raise Misuse("--judge URL needs --judge-model NAME, a model that the server knows")
    server = ServerJudge(args.judge, args.judge_model, args.judge_sees_image, args.judge_timeout,
                         args.judge_options)
    ask, file, how = by_server, "scores.jsonl", ""
    if args.judge_together:
        ask, file, how = by_server_together, "scores-together.jsonl", ", all models at once"
    judge = partial(ask, server, repeats=args.repeats, seed=args.seed, file=args.out / file,
                    ask_again=args.ask_again)
    return f"{server.name}, {args.repeats} times{how}", judge


def main(args):
    if args.published:
        print_tables(tables(published_rows()))
        print(*published_notes(), sep="\n")
        return
    warnings.filterwarnings("ignore", module="PIL")
    weights = args.weights or ([] if args.answers else default_weights())
    models = named_weights(weights, args.base)
    folder = args.folder
    if folder is None:
        folder = GALLERY_FOLDER
        gallery.make(folder, pages=2)
        args.judge = args.judge or "gallery"
    items = read_items(folder)
    sources, rows = named_answers(args.answers, items, [model.name for model in models])
    judge_name, judge = choose_judge(args, folder)
    with locked(args.out):
        answers = answer_all(items, models, args, args.out / "answers.jsonl") + rows
        models += sources
        scores = None
        if judge:
            said = [Said(item, row[item.name]) for row in answers for item in items]
            scores = judge({entry.id: entry for entry in said})
        facts = report_facts(args, folder, items, models, judge_name)
        references = ()
        if args.judge == "gallery":
            references = reference_rows(items, gallery.truth(folder))
        made = write_report(args.out, items, models, answers, scores, facts, references)
    print_tables(made)
    print(f"{args.out / 'report.html'}: the answers, their scores and the paper's tables "
          "(report.md: the tables)")
    if judge and args.judge != "manual":
        report_unjudged(scores)


def report_unjudged(scores):
    """Print how many answers stayed unjudged, and why. Raises ValueError if all did."""
    line = unjudged(scores)
    if all(verdict["score"] is None for verdicts in scores.values() for verdict in verdicts):
        raise ValueError(f"no scores: {line}")
    if line:
        print(line)


def default_weights():
    """The --weights of the shipped pair."""
    tiny = HERE / "weights" / "tiny"
    return [f"ArtGPT-4={tiny}", f"MiniGPT-4={tiny / 'minigpt4.safetensors'}"]


def knowledge(models):
    """{name: what a model's weights folder says that it knows, a sentence}, where it says so."""
    found = {}
    for model in models:
        if isinstance(model, Weights):
            about = read_json(model.folder / "config.json").get("about", {})
            if isinstance(about, dict) and about.get("knows"):
                found[model.name] = str(about["knows"])
    return found


def report_facts(args, folder, items, models, judge_name):
    """Lines that say how a report was made."""
    paths = [f"{weights.name} ({os.path.relpath(weights.path)})" for weights in models]
    settings = [f"{name.replace('_', ' ')} {value}"
                for name, value in answer_settings(args).items()]
    return [f"Benchmark: {folder}, {len(items)} items",
            f"Models: {', '.join(paths)}",
            *(f"{name} knows: {sentence}" for name, sentence in knowledge(models).items()),
            f"Answers: {', '.join(settings)}",
            f"Judge: {judge_name}"]


def print_tables(made):
    for table in made:
        print(f"{table.caption}\n\n{markdown_table(table.heading, table.lines)}\n")


# ---- The command


def json_object(text):
    """An argparse type: a JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no JSON object such as '{{\"temperature\": 0}}'")
    return found


def command_line():
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path,
                        help="a benchmark folder; default: the gallery's, painted in "
                             f"{GALLERY_FOLDER} and judged by rule")
    parser.add_argument("--weights", nargs="+", action="extend", metavar="[NAME=]PATH",
                        help="weights folders, or adapter files for one; a NAME given several "
                             "times is one model, trained with several seeds; default: ArtGPT-4 "
                             "and MiniGPT-4 of weights/tiny")
    parser.add_argument("--answers", nargs="+", action="extend", default=[], metavar="NAME=FILE",
                        help="answers from elsewhere: JSON lines, or NAME=FOLDER:LETTER for the "
                             "authors' evaluation folder; see docs/evaluation.md")
    parser.add_argument("--base", type=Path, default=HERE / "weights" / "tiny", metavar="FOLDER",
                        help="the weights folder of adapter files that do not lie in one; "
                             "default: weights/tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"), metavar="RUN",
                        help="default: %(default)s")
    parser.add_argument("--published", action="store_true",
                        help="print the paper's tables from their items and end")
    add_answer_flags(parser)
    add_judge_flags(parser)
    return parser


def add_judge_flags(parser):
    group = parser.add_argument_group("judge")
    group.add_argument("--judge", metavar="URL|manual|gallery",
                       help="a server that speaks the OpenAI chat API (key: JUDGE_API_KEY or "
                            "OPENAI_API_KEY), a table to fill in, or the gallery's rules for its "
                            "own paintings; default: none, only the answers")
    group.add_argument("--judge-model", metavar="NAME", help="the server's model")
    group.add_argument("--judge-sees-image", action="store_true", help="send the picture along")
    group.add_argument("--judge-together", action="store_true",
                       help="show the server all models' answers to an item at once, under "
                            "letters in random order, as the paper's authors did")
    group.add_argument("--judge-timeout", type=number(float, 0.1, 3600), default=120.0,
                       metavar="SECONDS", help="for one whole exchange; default: 120")
    group.add_argument("--judge-options", type=json_object, metavar="JSON",
                       help="more fields of the API, for example '{\"temperature\": 0}'")
    group.add_argument("--ask-again", action="store_true",
                       help="ask the server once more about answers that stayed unjudged")
    group.add_argument("--repeats", type=number(int, 1, 100), default=1, metavar="N",
                       help="score every answer N times; the tables then have a spread; "
                            "default: 1")


if __name__ == "__main__":
    run_command(main, command_line())
