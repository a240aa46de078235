"""What a model answers in conversations about fresh paintings: `python -m gallery.questions`.

A talk about a new painting of a seen pair asks nine of the wordings of strange.ini, or of a file
written like it, and in round 7 the first of them again. After every fourth talk comes one about two
paintings; and a poem, a title and a web page are asked for. Every answer is judged by what the
painting shows:

- right or fair: it answers truly, in a word or two where that was asked for; or it says that it
  cannot know what no picture tells
- refused: it says that it cannot know, although the picture tells it
- off topic: it says something true, but not what was asked
- false or nonsense: it is not true of this painting, or no sentence of the grammar

A claim is what an answer may say: the name of a rule of phrases.ini, and rules for its slots.
"""
import itertools
import random
import re
from functools import cache
from pathlib import Path

from common.command_line import Progress, command_parser, markdown_table, number, run_command
from common.models import load, model_flags
from conversation.rounds import Conversation
from gallery import words
from gallery.painting import paint
from gallery.scenes import PALETTES, random_scenes

VERDICTS = ("right or fair", "refused", "off topic", "false or nonsense")
ROUNDS, AGAIN = 10, 7               # of a talk; the round that asks the first question again
DENIALS = ("missing", "absent", "none")
WHOLE = {"poem": r"(.+\n){3}.+\.", "title": r'.*"[^"]+"\.',     # what is written, to its end
         "page": r"```html\n<!doctype html>\n(.+\n)+```"}
ANY = "[a-z0-9,' -]+?"

# ---- The grammar read backwards, as regular expressions


def pattern(text, rules):
    """A regular expression for all that the text may become when it is filled by the rules. A slot
    without a rule may be anything."""
    pieces = re.split(r"{([a-z ]+)}", text)
    for i, piece in enumerate(pieces):
        if i % 2:
            options = [pattern(option, rules) for option in rules.get(piece, ())] or [ANY]
            pieces[i] = f"(?:{'|'.join(options)})"
        else:
            escaped = re.sub(r"\b([Aa])\\ ", r"\1n?\\ ", re.escape(piece))
            pieces[i] = escaped.replace(r"\(", "(?:").replace(r"\|", "|").replace(r"\)", ")")
    return "".join(pieces)


def is_one_of(text, forms, rules):
    """Whether the text is one of the forms, filled by the rules."""
    return any(re.fullmatch(pattern(form, rules), text.strip(), re.IGNORECASE) for form in forms)


def says(text, scene, told, slots):
    """Whether a text makes a claim about a scene, in plain talk or in the language of appreciation:
    as a sentence, or in a word or two. told: the name of a rule, or a text that ends with "."."""
    forms = ["{tell " + told + "}", "{short " + told + "}.", "{" + told + "}."]
    if told in ("description", "more", "again"):
        forms += ["{description}", "{description} {around}.", "{caption}."]
    forms = [told] if told.endswith(".") else forms
    for rules in (words.rules_of(scene, art) | slots for art in (False, True)):
        known = [form for form in forms if rules.keys() >= set(re.findall("{([a-z ]+)}", form))]
        if is_one_of(text, known, rules) or (told == "page" and is_page(text, scene, rules)):
            return True
    return False


def is_page(text, scene, rules):
    """Whether a text is a whole web page about a scene."""
    names = ("title", "title", "content", "heading", "making")
    found = re.findall("<(?:title|h1|p|h2)>(.+?)</", text)
    texts = dict.fromkeys(names, "") | dict(zip(names, found, strict=False))
    return text == words.PAGE.format(**texts, **PALETTES[scene.palette]) and all(
        is_one_of(texts[name], ["{page " + name + "}", "{page content with things}"], rules)
        for name in names)


# ---- What is true


@cache
def truths(scene):
    """The claims that are true of a scene, whatever was asked; denials are of anything."""
    rules, shorts = words.rules_of(scene), set()
    claims = {told: (told, {}) for told in DENIALS}
    for topic in words.TOPICS:
        for seed in range(60 if topic in words.ABOUT else 4):
            told, slots = words.asked_about(topic, scene, random.Random(seed), rules)
            if told not in DENIALS:
                claims[repr((told, slots))] = told, slots
            shorts.add(words.question(topic, scene, random.Random(seed))[2])
    return [*claims.values(), ("sure", {"last": shorts}), ("wrong", {"last": shorts})]


def contradicts(text, scene, claims):
    """Whether a text denies what is shown, "no cat" of a cat, or says yes for no, no for yes: "so
    yes", "but no dog"."""
    denied, rules = " ".join(re.findall(r"\bno ([a-z ]+)", text.lower())), words.rules_of(scene)
    people = ("person", "people")[:2 * words.amount("people", scene)]
    shown = (scene.subject, *scene.things, *people, *rules["sky part"], *rules["ground part"],
             *rules.get("also", ()))
    said = re.findall(r"\b(?:yes|no)\b(?=[.,])|(?<=, but )no\b", text.lower())
    return bool(words.mentioned(denied, shown)) or any(
        {*said, *words.PLAIN.get(f"short {told}", ())} == {"yes", "no"} for told, _ in claims)


def verdict(text, scene, claims):
    """One of VERDICTS on an answer, which should make one of the claims. Where the number of things
    is asked for, that of the subject is no other truth: "so one" of four birds is false."""
    if not contradicts(text, scene, claims):
        wrong = {"own number"} if {"number", "none"} & {told for told, _ in claims} else ()
        others = [claim for claim in truths(scene) if claim[0] not in wrong]
        for found, group in zip(VERDICTS, (claims, [("unknown", {})], others), strict=False):
            if any(says(text, scene, *claim) for claim in group):
                return found
    return VERDICTS[-1]


# ---- What is asked


def ask(key, wording, scene, rng, before):
    """(question, the claims that answer it). key: the words before the colon in strange.ini.
    before: the claims that the question before this one asked for, and the answer to it."""
    rules, claims = words.rules_of(scene), []
    drawn = {name: words.asked_about(name, scene, rng, rules) for name in key.split(", ")}
    question = words.fill(wording, rules | next(iter(drawn.values()))[1], rng)
    for name, claim in drawn.items():
        if name in words.FOLLOW_UPS:                          # the last answer, in a word or two
            for told, slots in before[0]:
                short = words.PLAIN.get(f"short {told}") or words.ART.get(f"short {told}")
                claims.append((name, slots | {"last": short or ("a {subject}",)}))
            claims += [(before[1], {})] if name == "again" else []
        elif name == "how many":
            claims += [claim for claim in truths(scene)
                       if claim[0] in ("number", "own number", "total")]
        elif name in words.PARTS:
            rows = (words.PLAIN, *words.PHRASES.values())
            parts = sum((row.get(f"{name} part", ()) for row in rows), ())
            hue = (rules["hues"][words.PARTS[name]],)
            claims.append(("part", {"is": ("is", "are"), "part": parts, "hue": hue}))
        elif name in DENIALS:                                 # of anything that the question names
            row = "|".join(re.findall(r"[a-z'-]+?(?=s?\b)", question.lower()))
            some = (f"({row})(s|)( ({row})(s|)|)( ({row})(s|)|)",)
            claims.append((name, {"x": some, "xs": some}))
        else:
            claims.append(claim)
    return question, claims


def talk(conversation, scene, asked, rng):
    """Ask (key, wording) pairs about the scene that a conversation shows, no follow-up first,
    and the first in round AGAIN too -> [(round, key, question, answer, verdict)]."""
    follow_ups = {key for key, _ in asked if {*key.split(", ")} & {*words.FOLLOW_UPS}}
    first, *others = sorted(asked, key=lambda pair: pair[0] in follow_ups)
    rng.shuffle(others)
    others.insert(AGAIN - 2, first)
    before, judged = ((), ""), []
    opening = ask(*first, scene, rng, before)
    for i, pair in enumerate([first, *others], start=1):
        question, claims = opening if pair is first else ask(*pair, scene, rng, before)
        text = "".join(conversation.answer(question))
        judged.append((i, pair[0], question, text, verdict(text, scene, claims)))
        before = before if pair[0] in follow_ups else (claims, text)
    return judged


def about_two(conversation, scenes, rng):
    """The same of two scenes, in the wordings of phrases.ini, without a round."""
    judged = []
    halves = [tuple(words.fill("{half}", words.rules_of(scene), rng) for _ in range(60))
              for scene in scenes]
    for topic in rng.sample(words.PAIR_TOPICS, 3):
        question, answer = words.pair_question(topic, scenes, rng)
        scene, claims = scenes[0], []
        if topic == "one":
            nth = answer.split()[1]                           # "The first shows ..."
            scene, claims = scenes[nth == "second"], [("one", {"nth": (nth,)})]
        elif topic == "both":
            claims = [("the first is {a}, the second {b}.", dict(zip("ab", halves, strict=True)))]
        for name in words.VALUES if topic == "which" else ():
            first, second = (words.kinds_of(name, one.attributes[name]) for one in scenes)
            claim = topic, {"first kind": first, "second kind": second}
            claims += [claim] if says(answer, scene, *claim) else []
        text = "".join(conversation.answer(question))
        judged.append((None, topic, question, text, verdict(text, scene, claims)))
    return judged


def written(conversation, topic, scene, rng):
    """The same of a poem, a title or a web page, asked for in the wordings of phrases.ini: right if
    it is whole and about the subject, whatever else it says."""
    question, _, _ = words.question(topic, scene, rng)
    text = "".join(conversation.answer(question))
    is_right = (re.fullmatch(WHOLE[topic], text.strip())
                and words.named(text)["subject"] == scene.subject)
    return None, f"{topic}: whole", question, text, VERDICTS[0 if is_right else -1]


def table(judged):
    """Shares of the verdicts, by rounds and by the first of a key's words, as a Markdown table."""
    groups = {"all rounds": [row for row in judged if row[0]],
              "round 1": [row for row in judged if row[0] == 1],
              f"the same in round {AGAIN}": [row for row in judged if row[0] == AGAIN]}
    for row in sorted(judged, key=lambda row: row[1]):
        groups.setdefault(row[1].partition(",")[0], []).append(row)
    lines = []
    for name, rows in groups.items():
        found = [row[4] for row in rows]
        shares = [f"{found.count(verdict) / len(found):.0%}" for verdict in VERDICTS]
        lines.append((name, *shares, len(found)))
    return markdown_table(("asked", *VERDICTS, "answers"), lines)


def main(args):
    model, rng, judged = load(args), random.Random("questions"), []
    groups = words.read_phrases(args.wordings).get("questions", {})
    wordings = [(key, wording) for key, row in groups.items() for wording in row]
    known = {*words.TOPICS, *words.FOLLOW_UPS, *words.PARTS, *words.PLAIN, "how many"} | {
        rule.removeprefix("tell ") for rule in words.PLAIN}
    if not set(", ".join(groups).split(", ")) <= known:
        raise ValueError(f"{args.wordings}: [questions] is empty or has keys beside "
                         f"{', '.join(sorted(known))}")
    asked = itertools.cycle(rng.sample(wordings, len(wordings)))
    scenes = random_scenes(args.pictures, "questions")
    progress = Progress("talking", len(scenes), "talks")

    def about(*scenes):
        conversation = Conversation(model, temperature=0)
        for scene in scenes:
            conversation.add_image(paint(scene))
        return conversation

    for i, scene in enumerate(scenes):
        some = list(itertools.islice(asked, ROUNDS - 1))
        judged += talk(about(scene), scene, some, rng)
        if i % 4 == 3:
            judged += about_two(about(scenes[i - 1], scene), (scenes[i - 1], scene), rng)
        judged += [written(about(scene), topic, scene, rng) for topic in WHOLE]
        progress.show(i + 1)
    print(table(judged))
    for i, key, question, text, found in judged if args.talks else ():
        print(f"\n{i or 'two'}. [{key}: {found}] {question}\n{text}")


if __name__ == "__main__":
    parser = command_parser("python -m gallery.questions", __doc__)
    model_flags(parser)
    parser.add_argument("--wordings", type=Path, metavar="FILE", help="default: strange.ini",
                        default=Path(__file__).with_name("strange.ini"))
    parser.add_argument("--pictures", type=number(int, 1, 1000), default=50,
                        help="fresh paintings (default: %(default)s)")
    parser.add_argument("--talks", action="store_true", help="print every question and answer")
    run_command(main, parser)
