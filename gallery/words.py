"""What the gallery says about a painted scene: captions, descriptions, answers, a web page.

All but the page comes from one small grammar: grammar.py has the rules that hold for every scene,
phrases.py those that each attribute of a scene adds. `named` goes the other way: it reads a scene's
attributes from any text about it, a model's included.
"""
import re

from artgpt4 import INSTRUCTIONS
from gallery.grammar import GRAMMAR, PAGE
from gallery.phrases import (FIGURE_RULES, MOOD_RULES, PALETTE_RULES, PLACE_RULES, SETTING_RULES,
                             STYLE_RULES, SUBJECT_RULES, THING_PHRASES)
from gallery.scenes import EMOTION_OF, FIGURES, MOODS, PALETTES, STYLES, SUBJECTS

# What questions are about, in this order; and the rounds of a long dialogue after its description.
TOPICS = ("subject", "style", "colours", "mood", "composition", "objects", "emotions", "situation",
          "doing", "look", "poem", "page")
DIALOGUE = ("situation", "doing", "look", "poem")

# ---- The grammar at work


def listed(phrases):
    """A list in words: "a castle, birds and a fence"."""
    *others, last = phrases
    return f"{', '.join(others)} and {last}" if others else last


def rules_of(scene):
    """All rules for a scene: name -> the texts that may stand for it."""
    things = [THING_PHRASES[thing] for thing in scene.things]
    rules = {"it": ("it",), "place": (scene.composition,)}
    rules |= {attribute: (value,) for attribute, value in scene.attributes.items()}
    rules |= {"inventory": (listed([f"a {scene.subject}", *things]),)}
    if things:
        rules |= {"things": (listed(things),)}
    if scene.subject in FIGURES:
        rules |= FIGURE_RULES[scene.subject]
        rules |= {"emotion": (EMOTION_OF[scene.subject],), "tell emotions": ("{tell figure}",)}
    else:
        rules |= {"tell emotions": ("{tell nobody}",)}
    return (GRAMMAR | SUBJECT_RULES[scene.subject] | STYLE_RULES[scene.style]
            | PALETTE_RULES[scene.palette] | MOOD_RULES[scene.mood]
            | PLACE_RULES[scene.composition] | SETTING_RULES[scene.setting] | rules)


def expand(rule, scene, rng):
    """A text for the rule, every slot in it filled at random; "a" becomes "an" before a vowel."""
    rules = rules_of(scene)
    text = "{" + rule + "}"
    while slot := re.search(r"{([a-z ]+)}", text):
        text = text[:slot.start()] + rng.choice(rules[slot[1]]) + text[slot.end():]
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def sentences(text):
    """The text with a capital letter at the start of each sentence."""
    return re.sub(r"(?:^|(?<=[.?] ))[a-z]", lambda start: start[0].upper(), text)


# ---- What is said of a scene


def caption(scene, rng):
    """Stage 1: one lower-case phrase of 8 to 16 words naming all attributes; then the things."""
    text = expand("caption", scene, rng)
    if scene.things:
        text += f", with {expand('things', scene, rng)}"
    return text


def description(scene, rng):
    """Stage 2, the answer to "Describe this image in detail.".

    3 or 4 sentences, 45 to 70 words, that name all attributes; one more sentence about the things.
    """
    text = expand("description", scene, rng)
    if scene.things:
        text += f" {expand('around', scene, rng)}."
    return sentences(text)


def answer(topic, scene, rng):
    """The answer to a question about one of TOPICS."""
    return page(scene) if topic == "page" else sentences(expand(f"tell {topic}", scene, rng))


def questions(scene, rng):
    """[(question, answer), ...]: one for every one of TOPICS."""
    pairs = []
    for topic in TOPICS:
        question = expand(f"ask {topic}", scene, rng)
        if rng.random() < 0.15:                               # as typed in a hurry
            question = question.lower().rstrip(".?")
        pairs.append((question, answer(topic, scene, rng)))
    return pairs


def dialogue(scene, rng):
    """[(question, answer), ...]: five rounds; a description, then those of DIALOGUE."""
    rounds = [(rng.choice(INSTRUCTIONS), description(scene, rng))]
    for topic in DIALOGUE:
        rounds.append((expand(f"ask {topic}", scene, rng), answer(topic, scene, rng)))
    return rounds


def page(scene):
    """A web page for the painting, in the palette's own colours, as a fenced block of HTML."""
    work = STYLE_RULES[scene.style]["work"][0]
    sentence = f"A {scene.mood} {work} of a {scene.subject} in {scene.palette} colours."
    title = scene.subject.capitalize()
    return PAGE.format(title=title, sentence=sentence, **vars(PALETTES[scene.palette]))


def told(scene, rng):
    """The picture in a few words, as they stand in pre-training where its vectors stand later.

    One time in five the mood is left out, so that a model learns to infer it from palette and
    style.
    """
    words = [scene.subject, scene.style, scene.palette, scene.composition, scene.setting,
             *scene.things]
    if rng.random() >= 0.2:
        words.append(scene.mood)
    return ", ".join(rng.sample(words, len(words)))


# ---- What a text names


def mentioned(text, values):
    """Those of `values` that a text mentions, as whole words or with a plural s."""
    return {value for value in values if re.search(rf"\b{value}s?\b", text, re.IGNORECASE)}


def named(text):
    """What a text names: attribute -> its one value in the text, None if none or several."""
    values_of = {"subject": SUBJECTS, "style": STYLES, "palette": tuple(PALETTES), "mood": MOODS}
    attributes = {}
    for attribute, values in values_of.items():
        found = mentioned(text, values)
        attributes[attribute] = found.pop() if len(found) == 1 else None
    return attributes
