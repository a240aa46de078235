"""The paper's four benchmarks in miniature: paintings whose truth is known, and rules that judge what is said of them.

`make` writes a folder laid out as the authors' is, with truth.json beside the pictures. RULES has one rule for each
benchmark, (scene, questions, answers) -> (score 0 to 5, reason): the words of its rubric, made countable. What is named
counts only if no other of its kind is, so that naming everything earns nothing.
"""
import json
import math
import re
from dataclasses import asdict
from pathlib import Path

from artgpt4 import INSTRUCTIONS
from common.files import written_beside
from gallery.painting import paint
from gallery.scenes import EMOTION_OF, FIGURES, MOODS, PALETTES, SEEN_PAIRS, STYLES, SUBJECTS, THINGS, UNSEEN_PAIRS
from gallery.scenes import Scene, random_scenes
from gallery.words import DIALOGUE, FIGURE_RULES, GRAMMAR, MOOD_RULES, PALETTE_RULES, SETTING_RULES, STYLE_RULES
from gallery.words import SUBJECT_RULES, mentioned, named

QUESTIONS = {"IDC": INSTRUCTIONS[0], "ISAC": GRAMMAR["ask emotions"][0], "ICRC": GRAMMAR["ask objects"][0],
             "MDIUC": [INSTRUCTIONS[0], *(GRAMMAR[f"ask {topic}"][0] for topic in DIALOGUE)]}

# ---- The folder


def held_out_scenes(name, count, subjects, things=0, alone=0.5):
    """`count` scenes of no training set, seen and unseen pairs alike, with `things` things or more, every subject about
    equally often."""
    pairs = [pair for pair in SEEN_PAIRS + UNSEEN_PAIRS if pair[0] in subjects]
    chosen = []
    for scene in random_scenes(1000, f"benchmark {name}", pairs, alone):
        often = sum(scene.subject == other.subject for other in chosen)
        if len(scene.things) >= things and often < math.ceil(count / len(subjects)) and len(chosen) < count:
            chosen.append(scene)
    return chosen


def scenes():
    """{("IDC", "1"): Scene, ...}: 10 IDC, 10 ISAC with figures, 5 ICRC with several objects, 2 MDIUC, one a figure."""
    others = [subject for subject in SUBJECTS if subject not in FIGURES]
    outdoors = [subject for subject in others if subject not in ("vase of flowers", "cat")]
    chosen = {"IDC": held_out_scenes("IDC", 10, others), "ISAC": held_out_scenes("ISAC", 10, FIGURES, alone=1),
              "ICRC": held_out_scenes("ICRC", 5, outdoors, things=2, alone=0),
              "MDIUC": held_out_scenes("MDIUC", 1, FIGURES) + held_out_scenes("MDIUC", 1, others)}
    return {(benchmark, str(number)): scene
            for benchmark, row in chosen.items() for number, scene in enumerate(row, start=1)}


def make(folder):
    """Write the benchmark: IDC/1.png ..., questions.json, and truth.json, the last of all; the same bytes each time."""
    folder, truths = Path(folder), {}
    for (benchmark, number), scene in scenes().items():
        with written_beside(folder / benchmark / f"{number}.png") as path:
            paint(scene).save(path, format="PNG")
        truths.setdefault(benchmark, {})[number] = asdict(scene)
    for name, content in (("questions.json", QUESTIONS), ("truth.json", truths)):
        with written_beside(folder / name) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def truth(folder):
    """{("IDC", "1"): Scene, ...} of a folder that `make` wrote. Raises ValueError when it is none."""
    file = Path(folder) / "truth.json"
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return {(benchmark, number): Scene(**scene | {"things": tuple(scene["things"])})
                for benchmark, items in rows.items() for number, scene in items.items()}
    except FileNotFoundError:
        raise ValueError(f"{folder}: no truth.json in it, so this is no gallery benchmark and its rules cannot judge "
                         "it; choose another judge") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not the truth of a gallery benchmark ({error!r}); make the folder anew") from None


# ---- What a text says


def words_of(text):
    return set(re.findall(r"[a-z]{3,}", text.lower())) - {"and", "the", "with", "that", "for", "its", "from", "one"}


def said(text, table, *rules):
    """The keys of a table of words.py of which the text says a clause: seven tenths of the clause's words are in it."""
    spoken = words_of(text)
    return {key for key, row in table.items() for rule in rules for clause in row[rule]
            if len(words_of(clause) & spoken) >= math.ceil(0.7 * len(words_of(clause)))}


def compared(scene, text, attributes):
    """({attribute: named rightly}, the same in words)."""
    values_of = {"subject": SUBJECTS, "style": STYLES, "palette": PALETTES, "mood": MOODS}
    found, right = named(text), {}
    words = []
    for attribute in attributes:
        true = scene.attributes[attribute]
        right[attribute] = found[attribute] == true
        several = ", ".join(sorted(mentioned(text, values_of[attribute])))
        words.append(f"{attribute} {true}" + ("" if right[attribute] else f" not named, but {several}" if several
                                              else " not named"))
    return right, "; ".join(words)


# ---- The rules


def idc(scene, questions, answers):
    """How complete the description is, and whether it appreciates.

    0 names nothing of the gallery at all; 1 not what the picture shows; 2 the subject, but not style and palette, or
    things that are not there; 3 subject, style and palette; 4 the mood too; 5 and as an artist speaks: by what means it
    is made and what it does to the viewer, no thing left out.
    """
    text = answers[0]
    right, reason = compared(scene, text, ("subject", "style", "palette", "mood"))
    things = mentioned(text, THINGS)
    if not mentioned(text, (*SUBJECTS, *STYLES, *PALETTES, *MOODS, *THINGS)):
        return 0, "nothing of a painting is named"
    if not right["subject"]:
        return 1, reason
    if things - set(scene.things):
        return 2, f"{reason}; not there: {', '.join(sorted(things - set(scene.things)))}"
    if not (right["style"] and right["palette"]):
        return 2, reason
    if not right["mood"]:
        return 3, reason
    as_an_artist = (said(text, STYLE_RULES, "technique", "handling") == {scene.style}
                    and said(text, MOOD_RULES, "feeling") == {scene.mood} and things == set(scene.things))
    return (5, f"{reason}; technique, effect and everything around told") if as_an_artist else (4, reason)


def isac(scene, questions, answers):
    """What the figure feels (its posture is the proof) and what the viewer feels (the colours are).

    0 neither is named rightly; 1 one is, nothing proves it; 2 one is, with its proof, but the other is wrong; 3 one is,
    with its proof, and the other is right without, or left open; 4 both, with their proofs; 5 and the artist's means.
    """
    text = answers[0]
    emotions, moods = mentioned(text, EMOTION_OF.values()), mentioned(text, MOODS)
    figures = mentioned(text, FIGURES)
    right = {"figure": emotions == {EMOTION_OF[scene.subject]} and figures <= {scene.subject},
             "viewer": moods == {scene.mood}}
    proof = {"figure": said(text, FIGURE_RULES, "posture") == {scene.subject},
             "viewer": said(text, PALETTE_RULES, "tone", "colours") == {scene.palette}}
    proven = [who for who in right if right[who] and proof[who]]
    wrong = bool(emotions) > right["figure"] or bool(moods) > right["viewer"]
    reason = "; ".join(f"{who} feels {true}: " + (("proven" if proof[who] else "no right proof") if right[who] else
                                                  f"said is {', '.join(sorted(found)) or 'nothing'}")
                       for who, true, found in (("figure", EMOTION_OF[scene.subject], emotions | figures),
                                                ("viewer", scene.mood, moods)))
    if not any(right.values()):
        return 0, reason
    if not proven:
        return 1, reason
    if len(proven) < 2:
        return (2 if wrong else 3), reason
    if said(text, STYLE_RULES, "technique", "handling") == {scene.style}:
        return 5, f"{reason}; the artist's means too"
    return 4, reason


def icrc(scene, questions, answers):
    """Which of the objects are recognised, and which are not there.

    0 none; 1 some, but as many wrong or left out; 2 most; 3 all, and one too many; 4 exactly all; 5 and the setting.
    """
    there, found = {scene.subject, *scene.things}, mentioned(answers[0], (*SUBJECTS, *THINGS))
    errors = len(there ^ found)
    reason = f"recognised {', '.join(sorted(there & found)) or 'nothing'}"
    for what, names in (("left out", there - found), ("not there", found - there)):
        reason += f"; {what}: {', '.join(sorted(names))}" * bool(names)
    if not there & found:
        return 0, reason
    if len(there & found) <= errors:
        return 1, reason
    if there <= found and errors <= 1:
        if errors:
            return 3, reason
        setting = said(answers[0], SETTING_RULES, "setting") == {scene.setting}
        return (5, f"{reason}; and the setting") if setting else (4, reason)
    return 2, reason


def mdiuc(scene, questions, answers):
    """Five rounds: a description, the situation, what it does, its look, a poem. See `questions` in QUESTIONS.

    0 none of the first four shows understanding; 1 one does, or an answer is empty or given twice; 2 two; 3 three;
    4 all four; 5 and the poem is one, and of this picture.
    """
    describing, situation, doing, look, poem = answers
    understood = {
        "description": all(compared(scene, describing, ("subject", "style", "palette"))[0].values()),
        "situation": named(situation)["mood"] == scene.mood and mentioned(situation, SUBJECTS) <= {scene.subject},
        "doing": said(doing, SUBJECT_RULES, "doing") == {scene.subject},
        "look": all(compared(scene, look, ("style", "palette"))[0].values())}
    count = sum(understood.values())
    reason = f"understood: {', '.join(what for what in understood if understood[what]) or 'nothing'}"
    if len({answer.strip().lower() for answer in answers} - {""}) < len(answers):
        return min(1, count), f"{reason}; an answer is empty or given twice"
    lines = [line for line in poem.splitlines() if line.strip()]
    if count == 4 and len(lines) > 1 and mentioned(poem, SUBJECTS) == {scene.subject} == said(
            poem, SUBJECT_RULES, "verse"):
        return 5, f"{reason}; and a poem about it"
    return count, reason


RULES = {"IDC": idc, "ISAC": isac, "ICRC": icrc, "MDIUC": mdiuc}
