"""What a model answers in conversations about fresh paintings: `python -m gallery.questions`.

Each talk is about a new painting of a seen pair and has ten rounds, each of another topic. The
wordings are those of held_out.ini, or of a file written like it, typed
with the noise of conversations.py. Every answer is judged by what the painting shows:

- right: it answers the question truly, or says that it cannot know what no picture tells
- refused: it says that it cannot know, although the picture tells it
- off topic: it says something true, but of another topic
- false: it says what is true of other paintings only
- nonsense: the grammar cannot produce it, or it contradicts itself
"""
import argparse
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from artgpt4 import IMAGE_SLOT, chat_prompt, preprocess
from common.command_line import Progress, number, run_command
from common.models import answers, load, model_flags
from gallery import words
from gallery.album import painted
from gallery.conversations import typed
from gallery.scenes import COMPOSITIONS, EMOTION_OF, SUBJECTS, THINGS, random_scenes

VERDICTS = ("right", "refused", "off topic", "false", "nonsense")
ROUNDS = ((1, 1), (2, 4), (5, 7), (8, 10))                    # of a talk, counted together
ANY = "[a-z0-9,' -]+?"

# ---- The grammar read backwards, as regular expressions


def pattern(text, rules):
    """A regular expression for all that the text may become when it is filled by the rules. A slot
    without a rule may be anything."""
    pieces = re.split(r"{([a-z ]+)}", text)
    for i, piece in enumerate(pieces):
        if i % 2:
            options = [pattern(option, rules) for option in rules.get(piece, ())]
            pieces[i] = f"(?:{'|'.join(options) or ANY})"
        else:
            escaped = re.sub(r"\b([Aa])\\ ", r"\1n?\\ ", re.escape(piece))
            pieces[i] = escaped.replace(r"\(", "(?:").replace(r"\|", "|").replace(r"\)", ")")
    return "".join(pieces)


def is_one_of(text, forms, rules):
    """Whether the text is one of the forms, filled by the rules."""
    return any(re.fullmatch(pattern(form, rules), text.strip(), re.IGNORECASE) for form in forms)


def forms_of(told, topic, rules):
    """How an answer may stand that the rule `told` gives: as a sentence, or in a word or two."""
    short = ["{" + name + "}." for name in (f"short {told}", f"short {topic}") if name in rules]
    if topic == "description":
        return ["{description}", "{description} {around}.", "{caption}.", *short]
    return ["{tell " + told + "}", *short]


def in_both_registers(scene, slots):
    """The rules of a scene in plain talk and in the language of appreciation."""
    for art in (False, True):
        yield words.rules_of(scene, art) | slots


@cache
def open_rules(scene):
    """What makes true answers to questions about names true, whatever was asked."""
    kinds = [f"a {work}" for work in words.PHRASES[scene.style]["work"]]
    kinds += [scene.mood, f"a painting of a {scene.subject}", f"in {scene.palette} colours"]
    shown = [words.some(name) for name in (scene.subject, *scene.things)]
    return {"any": shown, "kind": kinds, "truth": kinds, "is": ("is", "are"),
            "hue": words.PHRASES[scene.palette]["hues"]}


@cache
def any_rules():
    """Rule -> the texts that may stand for it in any scene."""
    rules = {name: texts + words.ART.get(name, ()) for name, texts in words.PLAIN.items()}
    rules = words.NAMES | words.ART | rules
    for row in words.PHRASES.values():
        for name, texts in row.items():
            rules[name] = rules.get(name, ()) + texts
    names = "|".join(re.sub("^a ", "", words.some(name)) for name in (*SUBJECTS, *THINGS))
    return rules | words.VALUES | {
        "it": ("it", "he", "she"), "place": COMPOSITIONS, "emotion": tuple(EMOTION_OF.values()),
        "is": ("is", "are"),
        "nth": ("first", "second"), "last": (), "things": (), "inventory": (), "number": (),
        "spot": tuple(words.SPOTS.values()), "names": (names,)}


TOLD = ("alone", "absent", "none", "number", "total", "present", "also", "missing", "so", "not so",
        "spot", "figure", "nobody", "sure", "wrong", "one", "which")
ALL_FORMS = tuple("{tell " + topic + "}" for topic in (*words.TOPICS, *TOLD)
                  if f"tell {topic}" in words.PLAIN) + (
    "{description}", "{description} {around}.", "{caption}.", "both of them.", "neither of them.",
    "the first is {half}, the second {half}.")


def contradicts_itself(text):
    """Whether it denies a thing and then shows it: "no cat, only a cat"."""
    denied = re.search(r"\bno (\w+)\b.*\bonly\b(.*)", text, re.IGNORECASE)
    return bool(denied) and re.search(rf"\b{denied[1]}\b", denied[2]) is not None


def verdict(text, scene, topic, told, slots):
    """One of VERDICTS on an answer to a question that words.asked_about made."""
    registers = list(in_both_registers(scene, slots))
    if contradicts_itself(text):
        return "nonsense"
    if topic == "page":
        right = text in (words.page(scene, art=False), words.page(scene))
    else:
        right = any(is_one_of(text, forms_of(told, topic, rules), rules) for rules in registers)
    if right:
        return "right"
    if is_one_of(text, ["{tell unknown}"], registers[0]):
        return "refused"
    loose = list(in_both_registers(scene, open_rules(scene)))
    if any(is_one_of(text, ALL_FORMS, rules) for rules in loose) or text == words.page(scene):
        return "off topic"
    if "<title>" in text or is_one_of(text, ALL_FORMS, any_rules()):
        return "false"
    return "nonsense"


# ---- Asking


@torch.inference_mode()
def talk(model, scene, image, held_out, rng, rounds=10):
    """Ask about a scene in a running conversation -> [(round, topic, question, answer, verdict)].
    image (1, Q, D): its vectors."""
    topics = [topic for topic in held_out if topic not in words.PAIR_TOPICS]
    messages, judged = [], []
    for i, topic in enumerate(rng.choices(topics, k=rounds), start=1):
        rules = words.rules_of(scene)
        told, slots = words.asked_about(topic, scene, rng, rules)
        question = typed(words.ask(held_out[topic], rules | slots, rng), rng)
        messages.append(question)
        while len(ids := prompt_ids(model, messages)) + 220 > model.config.context:
            messages = messages[2:]                           # the oldest round is forgotten
        embeds = model.embed_ids(ids, image)
        [text] = answers(model, embeds, 220, temperature=0)
        messages.append(text)
        judged.append((i, topic, question, text, verdict(text, scene, topic, told, slots)))
    return judged


def prompt_ids(model, messages):
    return model.prompt_ids(chat_prompt([f"{IMAGE_SLOT} {messages[0]}", *messages[1:]]))


def table(judged):
    """Shares of the verdicts by rounds and topics, as a Markdown table."""
    groups = {"all": judged}
    groups |= {f"round {low}" if low == high else f"rounds {low} to {high}":
               [row for row in judged if low <= row[0] <= high] for low, high in ROUNDS}
    groups |= {topic: [row for row in judged if row[1] == topic]
               for topic in dict.fromkeys(row[1] for row in judged)}
    lines = [f"| asked | {' | '.join(VERDICTS)} | answers |", "|---" * 7 + "|"]
    for name, rows in groups.items():
        counts = Counter(row[4] for row in rows)
        shares = [f"{counts[verdict] / max(1, len(rows)):.0%}" for verdict in VERDICTS]
        lines.append(f"| {name} | {' | '.join(shares)} | {len(rows)} |")
    return "\n".join(lines)


def main(args):
    model, rng = load(args), random.Random("questions")
    held_out = words.read_phrases(args.wordings)["questions"]
    scenes = random_scenes(args.pictures, "questions")
    progress, judged = Progress("talking", len(scenes), "talks"), []
    for i, (scene, painting) in enumerate(zip(scenes, painted(scenes), strict=True), start=1):
        pixels = preprocess(Image.fromarray(painting), model.config.image_size)
        with torch.inference_mode():
            image = model.encode_image(pixels[None])
        judged += talk(model, scene, image, held_out, rng)
        progress.show(i)
    print(table(judged))
    if args.talks:
        for number, topic, question, text, found in judged:
            print(f"\n{number}. [{topic}: {found}] {question}\n{text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gallery.questions",
                                     description=__doc__.partition("\n")[0])
    model_flags(parser)
    parser.add_argument("--wordings", type=Path, metavar="FILE",
                        default=Path(__file__).with_name("held_out.ini"),
                        help="what is asked, by topic; default: gallery/held_out.ini")
    parser.add_argument("--pictures", type=number(int, 1, 1000), default=40,
                        help="fresh paintings (default: %(default)s)")
    parser.add_argument("--talks", action="store_true", help="print every question and answer")
    run_command(main, parser)
