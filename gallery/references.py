"""What the rules of gallery/benchmark.py give to texts whose worth is known beforehand.

A judge is only as good as its scores for such texts: the gallery's own true sentences (its
ceiling), true sentences about another painting (its floor), a list of all names, and true
statements in words that the gallery does not use.
"""
import random
import re

from gallery import words
from gallery.phrases import THING_PHRASES
from gallery.scenes import (EMOTION_OF, MOODS, PALETTES, SEEN_PAIRS, STYLES, SUBJECTS, THINGS,
                            UNSEEN_PAIRS, random_scenes)

SYNONYMS = {
    "mountain": "peak", "lighthouse": "beacon tower", "sailing boat": "yacht",
    "windmill": "mill with sails", "cottage": "little house", "tree": "oak", "bridge": "arched "
    "crossing", "vase of flowers": "bouquet", "cat": "kitty", "castle": "fortress",
    "dancer": "ballerina", "mourner": "weeping figure", "wanderer": "hiker", "couple": "two lovers",
    "birds": "gulls", "balloon": "airship", "rainbow": "coloured bow", "firs": "conifers",
    "fence": "palings", "rowboat": "dinghy", "candle": "taper", "apples": "fruit",
    "ink wash": "diluted black ink", "pointillism": "dotted colour",
    "stained glass": "leaded glass", "woodcut": "block print", "oil": "thick paint",
    "watercolour": "aquarelle",
    "ember": "glowing coal", "moonlight": "night", "meadow": "grass", "rose": "pink",
    "desert": "dune", "storm": "thunder", "nostalgic": "wistful", "passionate": "ardent",
    "serene": "calm", "dreamy": "unreal", "mysterious": "enigmatic", "joyful": "cheerful",
    "tender": "gentle", "solemn": "grave", "melancholy": "sad",
    "joy": "happiness", "grief": "sorrow", "longing": "yearning", "love": "affection",
}


def true_sentences(benchmark, scene, rng):
    """What the gallery itself says, the text that models are trained on."""
    if benchmark == "MDIUC":
        return [answer for _, answer in words.dialogue(scene, rng)]
    if benchmark == "IDC":
        return [words.description(scene, rng)]
    topic = {"ISAC": "emotions", "ICRC": "objects", "PAGES": "page"}[benchmark]
    return [words.answer(topic, scene, rng)]


def of_another_painting(benchmark, scene, rng):
    """The same about a painting of another subject."""
    pairs = [pair for pair in SEEN_PAIRS + UNSEEN_PAIRS if pair[0] != scene.subject]
    if benchmark == "ISAC":
        pairs = [pair for pair in pairs if pair[0] in EMOTION_OF]
    [other] = random_scenes(1, rng.random(), pairs)
    return true_sentences(benchmark, other, rng)


def everything(benchmark, scene, rng):
    """Every name that there is."""
    names = ", ".join((*SUBJECTS, *STYLES, *PALETTES, *MOODS, *THINGS, *EMOTION_OF.values()))
    if benchmark == "MDIUC":
        return [f"{i}. {names}" for i in range(1, 6)]
    return [f"<!doctype html><title>All</title>{names}" if benchmark == "PAGES" else names]


def in_other_words(benchmark, scene, rng):
    """True statements with the gallery's names, in sentences that it does not have."""
    subject, style, palette, mood = (scene.attributes[name]
                                     for name in ("subject", "style", "palette", "mood"))
    seen = words.listed([f"a {subject}", *(THING_PHRASES[thing] for thing in scene.things)])
    description = (f"What we have before us is {seen}, rendered as {style}; the palette is "
                   f"{palette}, and it strikes me as {mood}.")
    if benchmark == "ISAC":
        emotion = EMOTION_OF[subject]
        return [f"Judging by how the body is held, this is {emotion}. It makes me {mood}, which is "
                f"the doing of the {palette} colours."]
    if benchmark == "ICRC":
        return [f"I can make out {seen}."]
    if benchmark == "PAGES":
        return [f"<!doctype html><html><body><h1>{subject}</h1><p>{description}</p></body></html>"]
    if benchmark == "MDIUC":
        return [description, f"Something {mood} surrounds the {subject}.",
                f"I suppose that the {subject} will simply stay where we see it.",
                f"It is {style}, and {palette} gives the colours.",
                f"O {subject} that we came to see,\nhow {mood} you appear to me."]
    return [description]


def in_synonyms(benchmark, scene, rng):
    """The same true statements with other words for the names too."""
    names = sorted(SYNONYMS, key=len, reverse=True)
    pattern = re.compile(rf"\b({'|'.join(names)})\b")
    return [pattern.sub(lambda name: SYNONYMS[name[1]], text)
            for text in in_other_words(benchmark, scene, rng)]


REFERENCES = {
    "ceiling: the gallery's true sentences": true_sentences,
    "floor: true of another painting": of_another_painting,
    "everything named": everything,
    "true, in other sentences": in_other_words,
    "true, in synonyms": in_synonyms,
}


def reference_answers(truth):
    """{name: {(benchmark, number): answers}} for the Scenes of gallery.benchmark.truth."""
    return {name: {key: write(key[0], scene, random.Random(" ".join(key)))
                   for key, scene in truth.items()}
            for name, write in REFERENCES.items()}
