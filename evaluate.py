"""The paper's four benchmarks: models answer, judges give scores from 0 to 5, a report compares.

    python evaluate.py                      the paper in miniature: paintings whose truth is known
    python evaluate.py FOLDER --weights A=weights/a B=weights/b --out RUN
    python evaluate.py FOLDER --weights W --out RUN --judge https://host/v1 --judge-model NAME
    python evaluate.py FOLDER --answers GPT-4=FILE --out RUN --judge manual
    python evaluate.py --published          the paper's tables, computed from their items

FOLDER/IDC, ISAC, ICRC and MDIUC hold numbered pictures. RUN keeps answers and scores; none is asked
for twice: after any interruption run the same command again. The report has all judges so far.
"""
import itertools
import json
from pathlib import Path

from common.command_line import Misuse, command_parser, number, run_command
from common.models import model_flags
from conversation.rounds import setting
from evaluation.answers import answer_all, named_models, read_items, written_answers
from evaluation.judges import Person, Rules, Server, answer_id, judge_all
from evaluation.report import in_markdown, published_tables, write_report
from gallery import benchmark as gallery


def main(args):
    if args.published:
        print("\n\n".join(map(in_markdown, published_tables())))
        return
    models = named_models(args)
    settings = dict(setting(*text.partition("=")[::2]) for text in args.set)
    if args.folder is None:
        args.folder, args.judge = Path("runs/gallery-benchmark"), args.judge or "gallery"
        gallery.make(args.folder)
    items = read_items(args.folder)
    written, judge = written_answers(args.answers, items), None
    if args.judge == "gallery":
        judge = Rules(args.folder)
    elif args.judge not in (None, "manual"):
        judge = Server(args)
    columns = answer_all(items, models, args, settings) + written
    groups = [(item, [column.answers[item.name]]) for item in items for column in columns]
    if args.judge == "manual":
        judge = Person(args.out / "scoring.csv", {
            answer_id(item, answers): (item, answers) for item, [answers] in groups})
    elif args.judge_together:
        groups = [(item, pair) for item in items for pair in itertools.permutations(
            [column.answers[item.name] for column in columns], 2)]
        if not groups:
            raise Misuse("--judge-together needs two models")
    if judge:
        judge_all(judge, groups, args.repeats, args.out / "scores.jsonl")
    print(write_report(args.out, args.folder, items, columns))
    print(f"\n{args.out / 'report.html'}: the answers, and what judges say of them")


def command_line():
    parser = command_parser("evaluate.py", __doc__, conflict_handler="resolve")
    parser.add_argument("folder", nargs="?", type=Path,
                        help="default: paintings, judged by rule, in runs/gallery-benchmark")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"), metavar="RUN",
                        help="default: %(default)s")
    parser.add_argument("--published", action="store_true",
                        help="print the paper's tables from their items and end")
    model_flags(parser)
    parser.add_argument("--weights", nargs="+", default=[], metavar="[NAME=]FOLDER",
                        help="a model each; a NAME given several times is one model, trained with "
                             "several seeds; default: ArtGPT-4 and MiniGPT-4 of weights/tiny")
    parser.add_argument("--adapter", nargs="+", default=[], metavar="[NAME=]FILE",
                        help="a model each, all for the one folder of --weights")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE",
                        help="how answers are drawn, as /set of chat.py; default: temperature=0 "
                             "seed=42")
    parser.add_argument("--answers", nargs="+", default=[], metavar="NAME=FILE",
                        help="answers from elsewhere, JSON lines as in RUN/answers.jsonl")
    parser.add_argument("--judge", metavar="URL|manual|gallery",
                        help="a server that speaks the OpenAI chat API (key: JUDGE_API_KEY or "
                             "OPENAI_API_KEY), a table to fill in, or rules, for paintings of the "
                             "gallery; default: none, only the answers")
    parser.add_argument("--judge-model", metavar="NAME", help="the server's model")
    parser.add_argument("--judge-options", type=json.loads, default={}, metavar="JSON",
                        help="more fields for the server, such as '{\"temperature\": 0}'")
    parser.add_argument("--judge-sees-image", action="store_true", help="send the picture along")
    parser.add_argument("--judge-together", action="store_true",
                        help="send the answers of two models at a time, each pair in both orders")
    parser.add_argument("--judge-timeout", type=number(float, 0.1, 3600), default=120,
                        metavar="SECONDS", help="for one whole reply; default: 120")
    parser.add_argument("--repeats", type=number(int, 1, 100), default=1, metavar="N",
                        help="ask the server N times about each answer; default: 1")
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
