"""What the gallery says about a painted scene: captions, descriptions, questions, answers, a page.

All of it comes from one small grammar, the texts of phrases.ini, in two registers: plain talk, and
with art=True the language of appreciation. `named` goes the other way: it reads a scene's
attributes from any text about it, a model's included.
"""
import random
import re
from configparser import ConfigParser
from pathlib import Path

from gallery.scenes import EMOTION_OF, MOODS, PALETTES, STYLES, SUBJECTS, THINGS

PAIR_TOPICS = ("both", "which", "one")
FOLLOW_UPS = ("sure", "wrong", "shorter", "again", "more")


def read_phrases(file):
    """A file written as phrases.ini says -> {section: {rule: its texts}}."""
    parser = ConfigParser(delimiters=":", interpolation=None)
    parser.read_string(file.read_text(encoding="utf-8"))

    def texts(value):
        joined = " ".join(re.sub(r"(?<! )\|\n", "|", value).split()).replace(" / ", "\n")
        return tuple(joined.split(" | "))
    return {section: {rule: texts(value) for rule, value in parser[section].items()}
            for section in parser.sections()}


PHRASES = read_phrases(Path(__file__).with_name("phrases.ini"))
PLAIN, ART, WORDINGS = (PHRASES.pop(name) for name in ("plain", "art", "questions"))
NAMES = PHRASES.pop("names")
TOPICS = tuple(topic for topic in WORDINGS if topic not in (*FOLLOW_UPS, *PAIR_TOPICS))

# About 200 tokens, so every character counts. The <hr> is the picture: a sun goes down in a frame.
PAGE = """```html
<!doctype html>
<title>{title}</title>
<style>
body{{background:{dark};color:{accent};margin:30px 30%}}
hr{{border:20px solid {main};padding:30%;
background:linear-gradient(#0000 60%,{ground} 60%),radial-gradient(circle,{accent} 30%,{sky} 60%)}}
</style>
<hr>
<h1>{title}</h1>
<p>{content}</p>
<h2>{heading}</h2>
<p>{making}</p>
```"""

# Where a thing is, in every picture that shows it, and how many of it there are.
SPOTS = {"birds": "in the sky", "balloon": "in the sky", "rainbow": "in the sky",
         "firs": "beside the {subject}", "fence": "in the foreground", "rowboat": "on the water",
         "candle": "beside the {subject}", "apples": "beside the {subject}"}
AMOUNTS = {"birds": 4, "firs": 2, "apples": 4}                # of all others one
PEOPLE = {"dancer": 1, "mourner": 1, "wanderer": 1, "couple": 2}
NUMBERS = ("no", "one", "two", "three", "four")
PLURALS = {"birds": "birds", "firs": "firs", "apples": "apples", "people": "people",
           "vase of flowers": "vases of flowers"}             # of all others with an s
PARTS = {"sky": 0, "ground": 1, "dark": 3}      # of a picture: which of its hues each has
VALUES = {"subject": SUBJECTS, "style": STYLES, "palette": tuple(PALETTES), "mood": MOODS}

# ---- The grammar at work


def listed(phrases):
    """A list in words: "a castle, birds and a fence"."""
    *others, last = phrases
    return f"{', '.join(others)} and {last}" if others else last


def some(name):
    """A name with its article: "a fence", "birds"."""
    return name if PLURALS.get(name) == name else f"a {name}"


def rules_of(scene, art=False):
    """All rules for a scene: name -> the texts that may stand for it."""
    rules = NAMES | PLAIN
    if art:
        rules |= ART
    things = [some(thing) for thing in scene.things]
    rules |= {"it": ("it",), "place": (scene.composition,), "things": (listed(things or ["none"]),),
              "with": (", with {things}" if things else "",),
              "inventory": (listed([some(scene.subject), *things]),)}
    for value in (*scene.attributes.values(), scene.composition, scene.setting):
        rules |= PHRASES[value]
    if scene.subject in EMOTION_OF:
        rules |= {"emotion": (EMOTION_OF[scene.subject],)}
    return rules | {attribute: (value,) for attribute, value in scene.attributes.items()}


def fill(text, rules, rng):
    """The text with one of (these|those) words, and every {slot} filled, at random; "a" becomes
    "an" before a vowel."""
    while place := re.search(r"{([a-z ]+)}|\(([^()]*\|[^()]*)\)", text):
        options = rules[place[1]] if place[1] else place[2].split("|")
        text = text[:place.start()] + rng.choice(options) + text[place.end():]
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def sentences(text):
    """The text with a capital letter at the start of each sentence."""
    return re.sub(r"(?:^|(?<=[.?!] ))[a-z]", lambda start: start[0].upper(), text)


# ---- What is said of a scene


def caption(scene, rng):
    """Stage 1: one lower-case phrase that names subject, style and palette; then the things."""
    return fill("{caption}{with}", rules_of(scene), rng)


def description(scene, rng, art=True):
    """Stage 2, the answer to "Describe this image in detail.": sentences that name all attributes
    (without art all but the mood) and the things."""
    text = "{description} {around}." if scene.things else "{description}"
    return sentences(fill(text, rules_of(scene, art), rng))


def page(scene, art=True):
    """A web page in the palette's own colours, a fenced block of HTML; one scene has one page."""
    rng, rules = random.Random(repr(scene)), rules_of(scene, art)
    texts = {"title": "{page title}",
             "content": "{page content with things}" if scene.things else "{page content}",
             "heading": "{page heading}", "making": "{page making}"}
    texts = {part: sentences(fill(text, rules, rng)) for part, text in texts.items()}
    return PAGE.format(**texts, **PALETTES[scene.palette])


# ---- Questions that name something: is there a cat, how many birds, where is the balloon


def amount(name, scene):
    """How many of a subject, a thing, "person" or "people" the scene shows."""
    if name in ("person", "people"):
        return PEOPLE.get(scene.subject, 0)
    return AMOUNTS.get(name, 1) if name in (scene.subject, *scene.things) else 0


def absent(scene, rng, unknown=0.5):
    """A name of what the scene does not show: one of the gallery's, or with the share `unknown` one
    that it does not have, which may be no word at all."""
    if rng.random() < unknown:
        name = rng.choice(NAMES["foreign"]) if rng.random() < 0.6 else no_word(rng)
        return name if rng.random() < 0.8 else f"{rng.choice(NAMES['adjective'])} {name}"
    names = (*SUBJECTS, *3 * tuple(THINGS), "person", "people")     # most often a thing
    return rng.choice([name for name in names if amount(name, scene) == 0])


def blend(one, other, rng):
    """The start of one word and the end of another: so nearly any piece of a word occurs."""
    return one[:rng.randint(1, len(one))] + other[rng.randint(1, len(other) - 1):]


def no_word(rng):
    """Some syllables, or a blend."""
    if rng.random() < 0.5:
        return blend(*rng.sample(NAMES["foreign"], 2), rng)
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2)) + (
        rng.choice(("", "n", "r", "x", "lo", "st")))


def salad(rng):
    """What no one understands: syllables, letters of other scripts, or known words at random."""
    form, count = rng.random(), rng.randint(1, 6)
    if form < 0.3:
        first = rng.choice((0xC0, 0x391, 0x410, 0x5D0, 0x627, 0x905, 0x3042, 0x4E00, 0x1F600))
        return " ".join("".join(chr(first + rng.randrange(60)) for _ in range(rng.randint(1, 4)))
                        for _ in range(min(count, 3)))
    if form < 0.5:
        texts = [text for name in ("noun", "foreign", "number", "adjective", "tongue", "after")
                 for text in NAMES[name]]
        return " ".join(rng.sample(texts, count + 2))
    return " ".join(no_word(rng) for _ in range(count))


def slots_of(name):
    """What a question about a name needs: the name, with article, in the plural, and its verb."""
    plural = PLURALS.get(name, f"{name}s")
    many = plural == name
    return {"x": (name,), "any": (some(name),), "xs": (plural,), "is": ("are" if many else "is",),
            "that": ("they" if many else "it",)}


def about_presence(scene, rng, rules):
    """also: the subject, by its own name or another; present: a thing; missing: no such."""
    people, form = ("person", "people")[:PEOPLE.get(scene.subject, 0)], rng.random()
    if form < 0.08 and "also" in rules:
        return "also", slots_of(rng.choice(rules["also"]))
    if form < 0.45:
        name = rng.choice((scene.subject, *scene.things, *people))
        return "present" if name in scene.things else "also", slots_of(name)
    return "missing", slots_of(absent(scene, rng))


def about_spot(scene, rng, rules):
    if scene.things and rng.random() < 0.6:
        name = rng.choice(scene.things)
        return "spot", slots_of(name) | {"spot": (SPOTS[name],)}
    return "absent", slots_of(absent(scene, rng))


def about_part(scene, rng, rules):
    if rng.random() < 0.2:
        slots = slots_of(absent(scene, rng))
        return "absent", slots | {"part": slots["x"]}
    part = rng.choice(tuple(PARTS))
    name = rng.choice(rules[f"{part} part"])
    return "part", {"part": (name,), "hue": (rules["hues"][PARTS[part]],),
                    "is": ("are" if name.endswith("s") else "is",)}


def about_count(scene, rng, rules):
    if rng.random() < 0.2:
        number = NUMBERS[1 + len(scene.things)]
        return "total", {"xs": (rng.choice(("things", "objects")),), "number": (number,)}
    name = absent(scene, rng, unknown=0.4)
    if rng.random() < 0.6:
        people = ["people"] if scene.subject in PEOPLE else []
        name = rng.choice([scene.subject, *scene.things, *people])
    number, slots = amount(name, scene), slots_of(name)
    slots |= {"number": (NUMBERS[number],)}
    if number == 1:
        slots |= {"xs": slots["x"], "asked xs": slots["xs"]}
    told = "number" if name in scene.things else "own number"
    return told if number else "none", slots


def kinds_of(attribute, value):
    """What a picture of that value is, in all wordings: ("a woodcut", "a woodcut print")."""
    if attribute == "style":
        return tuple(some(work) for work in PHRASES[value]["work"])
    return ({"subject": f"a painting of a {value}", "palette": f"in {value} colours",
             "mood": value}[attribute],)


def about_kind(scene, rng, rules):
    """Whether it is of a kind, its own in every second question: the answer says which it is."""
    attribute, form = rng.choice(tuple(VALUES)), rng.random()
    value = scene.attributes[attribute]
    truth = kinds_of(attribute, value)
    kinds = kinds_of(attribute, rng.choice([one for one in VALUES[attribute] if one != value]))
    if form < 0.5:
        kinds = truth
    elif form < 0.65:
        kinds = rules.get(f"foreign {attribute}", truth)
    return "kind", {"kind": kinds, "truth": truth}


ABOUT = {"presence": about_presence, "count": about_count, "spot": about_spot, "part": about_part,
         "kind": about_kind}


def asked_about(topic, scene, rng, rules):
    """What a question about a topic asks for -> (the rule that answers it, rules for its slots)."""
    if topic in ABOUT:
        return ABOUT[topic](scene, rng, rules)
    if topic == "around" and not scene.things:
        return "alone", {}
    if topic == "body":
        return "part", {"part": ("{subject}",), "hue": (rules["hues"][2],), "is": ("is",)}
    if topic == "emotions":
        return ("figure" if scene.subject in EMOTION_OF else "nobody"), {}
    if topic == "unknown":
        return topic, {"salad": (salad(rng),)}
    return topic, {}


def ask(wordings, rules, rng):
    """A question from one of the wordings."""
    rules = rules | {"xs": rules.get("asked xs", rules.get("xs"))}
    return sentences(fill(rng.choice(wordings), rules, rng))


def question(topic, scene, rng, art=True):
    """(question, answer, the answer in a word or two) about one of TOPICS."""
    rules = rules_of(scene, art)
    told, slots = asked_about(topic, scene, rng, rules)
    rules |= slots | {name: (fill("{" + name + "}", rules, rng),) for name in ("colours", "title")}
    asked = ask(WORDINGS[topic], rules, rng)
    short = rules.get(f"short {told}") or rules.get(f"short {topic}") or ("a {subject}",)
    short = fill(rng.choice(short), rules, rng)
    if topic == "description":
        return asked, description(scene, rng, art), short
    if topic == "page":
        return asked, page(scene, art), short
    return asked, sentences(fill("{tell " + told + "}", rules, rng)), short


def pair_question(topic, scenes, rng, art=True):
    """(question, answer) about two scenes, one of PAIR_TOPICS; see `question`."""
    first, second = (rules_of(scene, art) | {"nth": (nth,)}
                     for nth, scene in zip(("first", "second"), scenes, strict=True))
    own, told = rng.choice((first, second)), "{tell one}"
    if topic == "both":
        half = rng.choice(PLAIN["half"])
        told = f"the first is {fill(half, first, rng)}, the second {fill(half, second, rng)}."
    elif topic == "which":                                    # the answer says what each of them is
        attribute, told = rng.choice(tuple(VALUES)), "{tell which}"
        values = [scene.attributes[attribute] for scene in scenes]
        asked = rng.choice((*values, rng.choice(VALUES[attribute])))      # neither's, perhaps
        kinds = [kinds_of(attribute, value) for value in (asked, *values)]
        own = own | dict(zip(("kind", "first kind", "second kind"), kinds, strict=True))
    return ask(WORDINGS[topic], own, rng), sentences(fill(told, own, rng))


# ---- What a text names


def mentioned(text, values):
    """Those of `values` that a text mentions, as whole words or with a plural s."""
    return {value for value in values if re.search(rf"\b{value}s?\b", text, re.IGNORECASE)}


def named(text):
    """What a text names: attribute -> its one value in the text, None if none or several."""
    found = {attribute: mentioned(text, values) for attribute, values in VALUES.items()}
    return {attribute: values.pop() if len(values) == 1 else None
            for attribute, values in found.items()}
