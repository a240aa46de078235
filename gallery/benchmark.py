"""The paper's four benchmarks in miniature: paintings whose truth is known, and rules that judge.

    python -m gallery.benchmark FOLDER --items 100, then python evaluate.py FOLDER --judge gallery

`make` writes a folder laid out as the authors' is, with truth.json beside the pictures.

RULES has one rule for each benchmark: (scene, answers) -> (score 0 to 5, reason). It is
the benchmark's rubric with its words made countable. A name counts only if the text affirms it and
no other name of its kind, so naming everything earns nothing, nor does "this is no windmill".
"""
import math
import re
from dataclasses import asdict
from pathlib import Path

from artgpt4 import INSTRUCTIONS, errors_naming
from common.command_line import command_parser, number, run_command
from common.files import read_json, write_json, written_beside
from gallery.painting import paint
from gallery.scenes import (EMOTION_OF, FIGURES, MOODS, SEEN_PAIRS, SUBJECTS, THINGS,
                            UNSEEN_PAIRS, Scene, random_scenes)
from gallery.words import PHRASES, mentioned, named

QUESTIONS = {
    "IDC": INSTRUCTIONS[0],
    "ISAC": "Analyze the emotions expressed by the individuals in the images as well as the "
            "emotions felt by the viewer observing them.",
    "ICRC": "Which objects and scenes do you recognise in this image?",
    "MDIUC": [INSTRUCTIONS[0], "What kind of situation do you think it is in?",
              "Can you tell me what it is doing or preparing to do?",
              "Which colours does it have, and how was it painted?",
              "Write a short poem about it."]}
SHAPE = {"IDC": 10, "ISAC": 10, "ICRC": 5, "MDIUC": 2}        # items of the paper's benchmarks

# ---- The folder

def held_out_scenes(name, count, subjects, things=0, alone=0.5):
    """`count` scenes that no training set has, each subject about equally often, from seen and
    unseen pairs alike, with at least `things` things; `alone`: see random_scenes."""
    pairs = [pair for pair in SEEN_PAIRS + UNSEEN_PAIRS if pair[0] in subjects]
    left = dict.fromkeys(subjects, math.ceil(count / len(subjects)))
    chosen = []
    for scene in random_scenes(max(1000, 10 * count), f"benchmark {name}", pairs, alone):
        if len(scene.things) >= things and left[scene.subject] > 0 and len(chosen) < count:
            left[scene.subject] -= 1
            chosen.append(scene)
    return chosen


def scenes(items=27):
    """{("IDC", "1"): Scene, ...} of about so many items, in the shape of the paper's, which has 27:
    10 IDC, 10 ISAC with figures, 5 ICRC with several objects, and 2 MDIUC, half of them figures."""
    others = [subject for subject in SUBJECTS if subject not in FIGURES]
    outdoors = [subject for subject in others if subject not in ("vase of flowers", "cat")]
    total = sum(SHAPE.values())
    counts = {name: max(1, round(items * share / total)) for name, share in SHAPE.items()}
    half = counts["MDIUC"] // 2
    chosen = {"IDC": held_out_scenes("IDC", counts["IDC"], others),
              "ISAC": held_out_scenes("ISAC", counts["ISAC"], FIGURES, alone=1),
              "ICRC": held_out_scenes("ICRC", counts["ICRC"], outdoors, things=2, alone=0),
              "MDIUC": [*held_out_scenes("MDIUC", half, FIGURES),
                        *held_out_scenes("MDIUC", counts["MDIUC"] - half, others)]}
    return {(benchmark, str(number)): scene
            for benchmark, row in chosen.items() for number, scene in enumerate(row, start=1)}


def make(folder, items=27):
    """Write the benchmark: IDC/1.png ..., questions.json and, last of all, truth.json. The bytes
    are the same each time. Pictures of another benchmark that was made there are removed."""
    folder, truths = Path(folder), {}
    chosen = scenes(items)
    if (folder / "truth.json").is_file():
        for benchmark, number in truth(folder).keys() - chosen.keys():
            (folder / benchmark / f"{number}.png").unlink(missing_ok=True)
    for (benchmark, number), scene in chosen.items():
        with written_beside(folder / benchmark / f"{number}.png") as path:
            paint(scene).save(path, format="PNG")
        truths.setdefault(benchmark, {})[number] = asdict(scene)
    write_json(QUESTIONS, folder / "questions.json")
    write_json(truths, folder / "truth.json")


def truth(folder):
    """{("IDC", "1"): Scene, ...} of a folder that `make` wrote. Raises ValueError for any other."""
    file = Path(folder) / "truth.json"
    rows = read_json(file)                                    # names it if there is none
    with errors_naming(f"{file}: not the truth of a gallery benchmark; make it again"):
        found = {(benchmark, number): Scene(**scene | {"things": tuple(scene["things"])})
                 for benchmark, items in rows.items() for number, scene in items.items()}
        figures = {scene.subject for (name, _), scene in found.items() if name == "ISAC"}
        if not figures <= set(FIGURES):
            raise ValueError("a picture of ISAC shows no figure")
    return found


# ---- What a text says

DENIALS = re.compile(
    r"\b(?:no|not|nor|never|neither|without|lacks?|lacking|hardly|(?:nothing|anything) (?:like|but)"
    r"|far from|rather than|instead of|absence of|cannot|\w+n['’]t)\b"
    r"(?!\s+(?:only|just|merely|doubt|question)\b).*?(?=[.,:;!?\n]|\bbut\b|$)",
    re.IGNORECASE | re.DOTALL)


def affirmed(text):
    """The text without what it denies, as "no windmill", to the end of the clause."""
    return DENIALS.sub(" ", text)


def words_of(text):
    """The words of a text that carry meaning."""
    common = {"and", "the", "with", "that", "for", "its", "from", "one"}
    return set(re.findall(r"[a-z]{3,}", text.lower())) - common


def said(text, *rules):
    """The values in phrases.ini of whose rules a text says a clause: seven tenths of its words."""
    spoken, values = words_of(text), set()
    for value, row in PHRASES.items():
        for clause in sum((row.get(rule, ()) for rule in rules), ()):
            wanted = words_of(clause)
            if len(wanted & spoken) >= math.ceil(0.7 * len(wanted)):
                values.add(value)
    return values


def compared(scene, text, *attributes):
    """({attribute: whether the text names it rightly}, the same in words)."""
    found = named(affirmed(text))
    right = {name: found[name] == scene.attributes[name] for name in attributes}
    return right, "; ".join(f"{name} {scene.attributes[name]}{'' if is_named else ' not named'}"
                            for name, is_named in right.items())


# ---- The rules

def idc(scene, answers):
    """How complete the description is, and whether it appreciates the painting.

    0 nothing of the gallery is named, or several names of every kind
    1 another subject is named, or none
    2 the subject is named, but not style and palette; or things that are not there are
    3 subject, style and palette
    4 the mood too
    5 as an artist speaks: how it is made and what it does to the viewer, with nothing left out
    """
    text = answers[0]
    right, reason = compared(scene, text, "subject", "style", "palette", "mood")
    things = mentioned(affirmed(text), THINGS)
    wrong = things - set(scene.things)
    if not any(named(affirmed(text)).values()) and (wrong or not things):
        return 0, "nothing of a painting is named, or several names of every kind"
    if not right["subject"]:
        return 1, reason
    if wrong:
        return 2, f"{reason}; not there: {', '.join(sorted(wrong))}"
    if not (right["style"] and right["palette"]):
        return 2, reason
    if not right["mood"]:
        return 3, reason
    tells_means = said(text, "technique") == {scene.style}
    if tells_means and said(text, "feeling") == {scene.mood} and things == set(scene.things):
        return 5, f"{reason}; technique, effect and everything around are told"
    return 4, reason


def isac(scene, answers):
    """What the figure feels, proven by its posture, and what the viewer feels, by the colours.

    0 neither is named rightly
    1 one is, but without a proof
    2 one is, with its proof, but the other is wrong
    3 one is, with its proof; the other is right without a proof, or left open
    4 both, with their proofs
    5 and the artist's means
    """
    text, names, emotion = answers[0], affirmed(answers[0]), EMOTION_OF[scene.subject]
    emotions, moods = mentioned(names, EMOTION_OF.values()), mentioned(names, MOODS)
    states = []
    for found, is_right, is_proven in (
            (emotions, emotions == {emotion} and mentioned(names, FIGURES) <= {scene.subject},
             said(text, "posture") == {scene.subject}),
            (moods, moods == {scene.mood}, said(text, "tone", "colours") == {scene.palette})):
        if is_right:
            states.append("proven" if is_proven else "not proven")
        else:
            states.append("wrong" if found else "left open")
    reason = f"figure feels {emotion}: {states[0]}; viewer feels {scene.mood}: {states[1]}"
    if states == ["proven", "proven"]:
        means = said(text, "technique") == {scene.style}
        return (5, f"{reason}; the artist's means too") if means else (4, reason)
    if "proven" in states:
        return (2 if "wrong" in states else 3), reason
    return (1 if "not proven" in states else 0), reason


def icrc(scene, answers):
    """Which objects are recognised, and whether any are named that are not there.

    0 none, or thrice as many are named that are not there
    1 some, but at least as many are wrong or left out
    2 most
    3 all, and one too many
    4 exactly all
    5 and the setting
    """
    there = {scene.subject, *scene.things}
    found = mentioned(affirmed(answers[0]), (*SUBJECTS, *THINGS))
    recognised, errors = there & found, len(there ^ found)
    reason = f"recognised {', '.join(sorted(recognised)) or 'nothing'}"
    for what, names in (("left out", there - found), ("not there", found - there)):
        if names:
            reason += f"; {what}: {', '.join(sorted(names))}"
    if not recognised or len(found - there) >= 3 * len(recognised):
        return 0, reason
    if len(recognised) <= errors:
        return 1, reason
    if there == found:
        if said(answers[0], "setting") == {scene.setting}:
            return 5, f"{reason}; and the setting"
        return 4, reason
    return (3 if there < found and errors == 1 else 2), reason


def mdiuc(scene, answers):
    """Five rounds: a description, the situation, what it does, its look, a poem; see QUESTIONS.

    0 none of the first four shows understanding
    1 one does; or an answer is empty or given twice
    2 two
    3 three
    4 all four
    5 and the poem is one, about this picture
    """
    describing, situation, doing, look, poem = answers
    understood = {
        "description": all(compared(scene, describing, "subject", "style", "palette")[0].values()),
        "situation": (named(affirmed(situation))["mood"] == scene.mood
                      and mentioned(affirmed(situation), SUBJECTS) <= {scene.subject}),
        "doing": said(doing, "doing") == {scene.subject},
        "look": all(compared(scene, look, "style", "palette")[0].values())}
    count = sum(understood.values())
    parts = [part for part, is_understood in understood.items() if is_understood]
    reason = f"understood: {', '.join(parts) or 'nothing'}"
    if len({answer.strip().lower() for answer in answers} - {""}) < len(answers):
        return min(1, count), f"{reason}; an answer is empty or given twice"
    of_this = (mentioned(poem, SUBJECTS) == {scene.subject}
               and said(poem, "verse") == {scene.subject})
    if count == 4 and len(poem.split("\n")) > 1 and of_this:
        return 5, f"{reason}; and a poem about it"
    return count, reason


RULES = {"IDC": idc, "ISAC": isac, "ICRC": icrc, "MDIUC": mdiuc}


def main(args):
    make(args.folder, args.items)
    print(f"wrote {args.folder}: {len(truth(args.folder))} items; judge answers to them with "
          f"python evaluate.py {args.folder} --judge gallery")


if __name__ == "__main__":
    parser = command_parser("python -m gallery.benchmark", __doc__)
    parser.add_argument("folder", type=Path, help="the benchmark folder to make")
    parser.add_argument("--items", type=number(int, 4, 10_000), default=27, metavar="N",
                        help="about so many pictures, in the paper's shape; default: 27")
    run_command(main, parser)
