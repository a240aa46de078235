"""Which topics an answer may belong to: the grammar read backwards, as regular expressions.

An answer belongs to a topic if the rules of grammar.py and phrases.py can produce it, whatever
scene each of its parts is true of. An answer that belongs to none is broken.
"""
import re
from functools import cache

from gallery.grammar import GRAMMAR, PAGE
from gallery.phrases import (FIGURE_RULES, FOREIGN, MOOD_RULES, NUMBERS, PALETTE_RULES,
                             PLACE_RULES, SETTING_RULES, STYLE_RULES, SUBJECT_RULES, THING_PHRASES,
                             THING_SPOTS)
from gallery.scenes import COMPOSITIONS, EMOTION_OF, MOODS, PALETTES, STYLES, SUBJECTS, THINGS
from gallery.words import slots_of

COLOUR = "#[0-9a-f]{6}"


def all_rules():
    """Rule -> the texts that may stand for it in any scene, as words.rules_of has them for one."""
    rules = {name: list(texts) for name, texts in GRAMMAR.items()}
    for table in (SUBJECT_RULES, FIGURE_RULES, STYLE_RULES, PALETTE_RULES, MOOD_RULES, PLACE_RULES,
                  SETTING_RULES):
        for row in table.values():
            for name, texts in row.items():
                rules.setdefault(name, []).extend(texts)
    works = [f"a {work}" for row in STYLE_RULES.values() for work in row["work"]]
    kinds = [*works, *MOODS, "a painting of a {subject}", "in {palette} colours"]
    names = [slots_of(name) for name in (*SUBJECTS, *THINGS, *FOREIGN, "person", "people")]
    for slot in ("x", "any", "xs"):
        rules[slot] = [name[slot][0] for name in names]
    parts = {"title": "page title", "content": "page text", "heading": "page heading",
             "making": "page making"}
    parts = {part: "{" + rule + "}" for part, rule in parts.items()}
    hues = dict.fromkeys(("sky", "ground", "main", "accent", "dark"), "{hue}")
    return rules | {
        "it": ["it", "he", "she"], "place": COMPOSITIONS, "subject": SUBJECTS, "style": STYLES,
        "palette": list(PALETTES), "mood": MOODS, "emotion": list(EMOTION_OF.values()),
        "is": ["is", "are"], "number": NUMBERS, "spot": list(THING_SPOTS.values()),
        "kind": kinds, "truth": kinds, "nth": ["first", "second"],
        "xs": [*rules["xs"], "things", "objects"],
        "tell description": ["{description}.", "{description}. {around}."],
        "description": [text.removesuffix(".") for text in rules["description"]],
        "tell around": ["{around}.", "{tell alone}"],
        "tell emotions": ["{tell figure}", "{tell nobody}"],
        "tell spot": ["{tell where}", "{tell absent}"],
        "tell count": ["{tell total}", "{tell only}", "{tell a single}", "{tell number}",
                       "{tell none}"],
        "tell presence": ["{tell present}", "{tell missing}"],
        "tell kind": ["{tell so}", "{tell not so}"],
        "tell both": ["the first is {half}, the second {half}."],
        "tell which": [*rules["tell which"], "both of them.", "neither of them."],
        "page text": [*rules["page content"], *rules["page content with things"]],
        "tell page": [PAGE.format(**parts, **hues)]}


def pattern(rule, rules):
    """A regular expression for all texts of a rule."""
    if rule == "hue":
        return COLOUR
    if rule in ("things", "inventory"):
        phrases = list(THING_PHRASES.values())
        if rule == "inventory":
            phrases += [f"a {subject}" for subject in SUBJECTS]
        name = "|".join(re.sub("^a ", "an? ", phrase) for phrase in phrases)
        return f"(?:{name})(?:, (?:{name}))*(?: and (?:{name}))?"
    texts = []
    for text in rules[rule]:
        pieces = re.split(r"{([a-z ]+)}", text)
        for i, piece in enumerate(pieces):
            if i % 2:
                pieces[i] = f"(?:{pattern(piece, rules)})"
            else:
                pieces[i] = re.sub(r"\b([Aa])\\ ", r"\1n?\\ ", re.escape(piece))
        texts.append("".join(pieces))
    return "|".join(texts)


@cache
def expression(topic):
    return re.compile(pattern(f"tell {topic}", all_rules()), re.IGNORECASE)


def belongs(text, topic):
    """Whether the grammar can produce the text as an answer about the topic."""
    return expression(topic).fullmatch(text.strip()) is not None


def is_broken(text, topics):
    """Whether the grammar cannot produce the text as an answer about any of the topics."""
    return not any(belongs(text, topic) for topic in topics)
