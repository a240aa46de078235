"""What the gallery says about a painted scene: captions, descriptions, answers, a web page.

All of it comes from one small grammar: grammar.py has the rules that hold for every scene,
wordings.py what people ask, phrases.py what each attribute of a scene adds. `named` goes the other
way: it reads a scene's attributes from any text about it, a model's included.
"""
import random
import re

from artgpt4 import INSTRUCTIONS
from gallery.grammar import GRAMMAR, PAGE
from gallery.phrases import (FIGURE_RULES, FOREIGN, MOOD_RULES, NUMBERS, PALETTE_RULES, PEOPLE,
                             PLACE_RULES, PLURALS, SETTING_RULES, STYLE_RULES, SUBJECT_RULES,
                             THING_NUMBERS, THING_PHRASES, THING_SPOTS)
from gallery.scenes import (EMOTION_OF, FIGURES, MOODS, PALETTES, STYLES, SUBJECTS, THINGS)
from gallery.wordings import WORDINGS

# What questions about one picture are about, in this order; and the rounds of a long dialogue after
# its description.
TOPICS = ("subject", "style", "colours", "mood", "composition", "objects", "emotions", "situation",
          "doing", "look", "poem", "page", "around", "spot", "count", "presence", "kind", "why",
          "title", "greeting", "thanks", "unknown")
DIALOGUE = ("situation", "doing", "look", "poem")

# What questions about two pictures are about.
PAIR_TOPICS = ("both", "which", "one")

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
    else:
        rules |= {"tell around": ("{tell alone}",)}
    if scene.subject in FIGURES:
        rules |= FIGURE_RULES[scene.subject]
        rules |= {"emotion": (EMOTION_OF[scene.subject],), "tell emotions": ("{tell figure}",)}
    else:
        rules |= {"tell emotions": ("{tell nobody}",)}
    return (GRAMMAR | WORDINGS | SUBJECT_RULES[scene.subject] | STYLE_RULES[scene.style]
            | PALETTE_RULES[scene.palette] | MOOD_RULES[scene.mood]
            | PLACE_RULES[scene.composition] | SETTING_RULES[scene.setting] | rules)


def fill(text, rules, rng):
    """The text, every slot in it filled at random; "a" becomes "an" before a vowel."""
    while slot := re.search(r"{([a-z ]+)}", text):
        text = text[:slot.start()] + rng.choice(rules[slot[1]]) + text[slot.end():]
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def expand(rule, scene, rng):
    """A text for the rule, about the scene."""
    return fill("{" + rule + "}", rules_of(scene), rng)


def sentences(text):
    """The text with a capital letter at the start of each sentence."""
    return re.sub(r"(?:^|(?<=[.?!] ))[a-z]", lambda start: start[0].upper(), text)


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


def page(scene):
    """A web page for the painting, in the palette's own colours, as a fenced block of HTML.

    The same scene has the same page.
    """
    rng = random.Random(repr(scene))
    content = "page content with things" if scene.things else "page content"
    rules = {"title": "page title", "content": content, "heading": "page heading",
             "making": "page making"}
    texts = {part: sentences(expand(rule, scene, rng)) for part, rule in rules.items()}
    return PAGE.format(**texts, **vars(PALETTES[scene.palette]))


def answer(topic, scene, rng):
    """The answer to a question about "description" or one of TOPICS that needs no name asked for.
    """
    if topic == "page":
        return page(scene)
    if topic == "description":
        return description(scene, rng)
    return sentences(expand(f"tell {topic}", scene, rng))


# ---- Questions that name something: is there a cat, how many birds, where is the balloon


def amount(name, scene):
    """How many of a subject, a thing, "person" or "people" the scene shows."""
    if name in ("person", "people"):
        return PEOPLE.get(scene.subject, 0)
    there = name == scene.subject or name in scene.things
    return THING_NUMBERS.get(name, 1) if there else 0


def shown_or_not(scene, rng, shown, others):
    """One of the names `shown` or, half the time, one of `others` that the scene has not."""
    missing = [name for name in others if amount(name, scene) == 0]
    return rng.choice(shown) if shown and rng.random() < 0.5 else rng.choice(missing)


def slots_of(name):
    """What a question about a name needs: the name, with article, in the plural, and its verb."""
    plural = name if name in PLURALS else f"{name}s"
    if name == "vase of flowers":
        plural = "vases of flowers"
    some, verb = (name, "are") if name in PLURALS else (f"a {name}", "is")
    return {"x": (name,), "any": (some,), "xs": (plural,), "is": (verb,)}


def about_presence(scene, rng):
    people = ("person", "people")
    shown = [scene.subject, *scene.things]
    if scene.subject in FIGURES:
        shown += people[:PEOPLE[scene.subject]]
    others = rng.choice((SUBJECTS, tuple(THINGS), FOREIGN + people))
    name = shown_or_not(scene, rng, shown, others)
    told = "{tell present}" if amount(name, scene) else "{tell missing}"
    return slots_of(name) | {"tell presence": (told,)}


def about_spot(scene, rng):
    name = shown_or_not(scene, rng, scene.things, tuple(THINGS))
    told = "{tell where}" if amount(name, scene) else "{tell absent}"
    return slots_of(name) | {"spot": (THING_SPOTS[name],), "tell spot": (told,)}


def about_count(scene, rng):
    if rng.random() < 0.2:
        number = 1 + len(scene.things)
        told = "{tell total}" if number > 1 else "{tell only}"
        return {"xs": (rng.choice(("things", "objects")),), "number": (NUMBERS[number],),
                "tell count": (told,)}
    shown = [*scene.things] or [scene.subject]
    if scene.subject in FIGURES:
        shown += ["people"] * len(shown)
    name = shown_or_not(scene, rng, shown, (*THINGS, *SUBJECTS, "people"))
    slots, number = slots_of(name), amount(name, scene)
    if number == 1:
        return slots | {"number": ("one",), "is": ("is",), "tell count": ("{tell a single}",)}
    slots |= {"number": (NUMBERS[number],), "is": ("are",)}
    return slots | {"tell count": ("{tell number}" if number else "{tell none}",)}


# Each attribute as one says it after "it is".
KINDS = {"subject": "a painting of a {value}", "palette": "in {value} colours", "mood": "{value}"}


def kind_of(attribute, value, rng):
    """What a picture with that value of an attribute is: "a woodcut", "in rose colours"."""
    if attribute == "style":
        return f"a {rng.choice(STYLE_RULES[value]['work'])}"
    return KINDS[attribute].format(value=value)


VALUES = {"subject": SUBJECTS, "style": STYLES, "palette": tuple(PALETTES), "mood": MOODS}


def about_kind(scene, rng):
    attribute = rng.choice(tuple(VALUES))
    truth = scene.attributes[attribute]
    if rng.random() < 0.5:
        return {"kind": (kind_of(attribute, truth, rng),), "tell kind": ("{tell so}",)}
    other = rng.choice([value for value in VALUES[attribute] if value != truth])
    return {"kind": (kind_of(attribute, other, rng),),
            "truth": (kind_of(attribute, truth, rng),), "tell kind": ("{tell not so}",)}


ABOUT = {"presence": about_presence, "count": about_count, "spot": about_spot, "kind": about_kind}


def question(topic, scene, rng, wordings=None):
    """(question, answer) about "description" or one of TOPICS.

    wordings: what to ask with instead of all that wordings.py has for the topic.
    """
    rules = rules_of(scene)
    if topic in ABOUT:
        rules |= ABOUT[topic](scene, rng)
    wordings = wordings or rules[f"ask {topic}"]
    asked = sentences(fill(rng.choice(wordings), rules, rng))
    if topic in ABOUT:
        return asked, sentences(fill("{tell " + topic + "}", rules, rng))
    return asked, answer(topic, scene, rng)


def in_a_hurry(text):
    """A question as some type it."""
    return text.lower().rstrip(".?!")


def questions(scene, rng):
    """[(question, answer), ...]: one for every one of TOPICS."""
    pairs = []
    for topic in TOPICS:
        asked, told = question(topic, scene, rng)
        pairs.append((in_a_hurry(asked) if rng.random() < 0.25 else asked, told))
    return pairs


def dialogue(scene, rng):
    """[(question, answer), ...]: five rounds; a description, then those of DIALOGUE."""
    rounds = [(rng.choice(INSTRUCTIONS), description(scene, rng))]
    return rounds + [question(topic, scene, rng) for topic in DIALOGUE]


# ---- Two pictures


def pair_question(topic, scenes, rng, wordings=None):
    """(question, answer) about two scenes, one of PAIR_TOPICS; wordings: see `question`."""
    rules = [rules_of(scene) | {"nth": (nth,)}
             for nth, scene in zip(("first", "second"), scenes, strict=True)]
    wordings = wordings or WORDINGS[f"ask {topic}"]
    if topic == "both":
        half = rng.choice(GRAMMAR["half"])
        first, second = (fill(half, own, rng) for own in rules)
        asked, told = fill(rng.choice(wordings), rules[0], rng), (
            f"the first is {first}, the second {second}.")
    elif topic == "one":
        own = rng.choice(rules)
        asked, told = (fill(rng.choice(texts), own, rng) for texts in (wordings, own["tell one"]))
    else:
        attribute = rng.choice(tuple(VALUES))
        value = rng.choice(scenes).attributes[attribute]
        if rng.random() < 0.15:
            value = rng.choice(VALUES[attribute])
        kind = {"kind": (kind_of(attribute, value, rng),)}
        matching = [own for own in rules if own[attribute] == (value,)]
        forms = ("neither of them.", "{tell which}", "both of them.")
        own = (matching or rules)[0]
        asked, told = (fill(text, own | kind, rng)
                       for text in (rng.choice(wordings), forms[len(matching)]))
    return sentences(asked), sentences(told)


# ---- What pre-training tells of a picture


def facts(scene, rng):
    """What a picture shows, fact by fact, as words: they stand where its vectors stand later.

    They are subject, place, things, setting, style, palette and, half of the time, mood: a model
    then learns to infer it from palette and style.
    """
    told = [scene.subject, scene.composition, listed(scene.things or ("alone",)), scene.setting,
            scene.style, scene.palette]
    return [*told, scene.mood] if rng.random() < 0.5 else told


# ---- What a text names


def mentioned(text, values):
    """Those of `values` that a text mentions, as whole words or with a plural s."""
    return {value for value in values if re.search(rf"\b{value}s?\b", text, re.IGNORECASE)}


def named(text):
    """What a text names: attribute -> its one value in the text, None if none or several."""
    attributes = {}
    for attribute, values in VALUES.items():
        found = mentioned(text, values)
        attributes[attribute] = found.pop() if len(found) == 1 else None
    return attributes
