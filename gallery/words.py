"""What the gallery says about a painted scene: captions, descriptions, questions, answers, a page.

All of it comes from one small grammar, the texts of phrases.ini. `named` goes the other way: it
reads a scene's attributes from any text about it, a model's included.
"""
import random
import re
from configparser import ConfigParser
from pathlib import Path

from artgpt4 import INSTRUCTIONS
from gallery.scenes import EMOTION_OF, MOODS, PALETTES, STYLES, SUBJECTS, THINGS

# What questions about one picture are about; the rounds of a long dialogue after its description;
# what questions about two pictures are about.
TOPICS = ("subject", "style", "colours", "mood", "composition", "objects", "emotions", "situation",
          "doing", "look", "poem", "page", "around", "spot", "count", "presence", "kind", "why",
          "title", "greeting", "thanks", "unknown")
DIALOGUE = ("situation", "doing", "look", "poem")
PAIR_TOPICS = ("both", "which", "one")


def read_phrases(file):
    """A file written as phrases.ini says -> {section: {rule: its texts}}."""
    parser = ConfigParser(delimiters=":", interpolation=None)
    parser.read_string(file.read_text(encoding="utf-8"))

    def texts(value):
        value = value.strip().replace("\\\n", "").replace(" / ", "\f")
        return tuple(text.replace("\f", "\n") for text in re.split(r"\n| \| ", value))
    return {section: {rule: texts(value) for rule, value in parser[section].items()}
            for section in parser.sections()}


PHRASES = read_phrases(Path(__file__).with_name("phrases.ini"))
RULES, WORDINGS = PHRASES.pop("every scene"), PHRASES.pop("questions")

# About 200 tokens, so every character counts. The framed picture is the <hr>: a sun goes down
# behind the ground.
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
PLURALS = ("birds", "firs", "apples", "people")               # names that are plural already

# What people ask for, and what no painting of the gallery shows.
FOREIGN = ("dog", "horse", "cow", "car", "train", "elephant")

# ---- The grammar at work


def listed(phrases):
    """A list in words: "a castle, birds and a fence"."""
    *others, last = phrases
    return f"{', '.join(others)} and {last}" if others else last


def some(name):
    """A subject or thing with its article: "a fence", "birds"."""
    return name if name in PLURALS else f"a {name}"


def rules_of(scene):
    """All rules for a scene: name -> the texts that may stand for it."""
    things = [some(thing) for thing in scene.things]
    rules = RULES | {"it": ("it",), "place": (scene.composition,),
                     "inventory": (listed([some(scene.subject), *things]),)}
    for value in (*scene.attributes.values(), scene.composition, scene.setting):
        rules |= PHRASES[value]
    rules |= {attribute: (value,) for attribute, value in scene.attributes.items()}
    if things:
        rules |= {"things": (listed(things),)}
    else:
        rules |= {"tell around": ("{tell alone}",)}
    if scene.subject in EMOTION_OF:
        rules |= {"emotion": (EMOTION_OF[scene.subject],), "tell emotions": ("{tell figure}",)}
    return {"tell emotions": ("{tell nobody}",)} | rules


def fill(text, rules, rng):
    """The text, every slot in it filled at random; "a" becomes "an" before a vowel."""
    while slot := re.search(r"{([a-z ]+)}", text):
        text = text[:slot.start()] + rng.choice(rules[slot[1]]) + text[slot.end():]
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def sentences(text):
    """The text with a capital letter at the start of each sentence."""
    return re.sub(r"(?:^|(?<=[.?!] ))[a-z]", lambda start: start[0].upper(), text)


# ---- What is said of a scene


def caption(scene, rng):
    """Stage 1: one lower-case phrase of 8 to 16 words naming all attributes; then the things."""
    text = fill("{caption}", rules_of(scene), rng)
    if scene.things:
        text += f", with {fill('{things}', rules_of(scene), rng)}"
    return text


def description(scene, rng):
    """Stage 2, the answer to "Describe this image in detail.".

    3 or 4 sentences, 45 to 70 words, that name all attributes; one more sentence about the things.
    """
    text = fill("{description}", rules_of(scene), rng)
    if scene.things:
        text += f" {fill('{around}', rules_of(scene), rng)}."
    return sentences(text)


def page(scene):
    """A web page for the painting, in the palette's own colours, as a fenced block of HTML. The
    same scene has the same page."""
    rng, rules = random.Random(repr(scene)), rules_of(scene)
    texts = {"title": "{page title}",
             "content": "{page content with things}" if scene.things else "{page content}",
             "heading": "{page heading}", "making": "{page making}"}
    texts = {part: sentences(fill(text, rules, rng)) for part, text in texts.items()}
    return PAGE.format(**texts, **vars(PALETTES[scene.palette]))


def answer(topic, scene, rng):
    """The answer to a question about "description" or one of TOPICS that names nothing."""
    if topic == "page":
        return page(scene)
    if topic == "description":
        return description(scene, rng)
    return sentences(fill("{tell " + topic + "}", rules_of(scene), rng))


# ---- Questions that name something: is there a cat, how many birds, where is the balloon


def amount(name, scene):
    """How many of a subject, a thing, "person" or "people" the scene shows."""
    if name in ("person", "people"):
        return PEOPLE.get(scene.subject, 0)
    there = name == scene.subject or name in scene.things
    return AMOUNTS.get(name, 1) if there else 0


def shown_or_not(scene, rng, shown, others):
    """One of the names `shown` or, half the time, one of `others` that the scene has not."""
    missing = [name for name in others if amount(name, scene) == 0]
    return rng.choice(shown) if shown and rng.random() < 0.5 else rng.choice(missing)


def slots_of(name):
    """What a question about a name needs: the name, with article, in the plural, and its verb."""
    plural = name if name in PLURALS else f"{name}s"
    if name == "vase of flowers":
        plural = "vases of flowers"
    return {"x": (name,), "any": (some(name),), "xs": (plural,),
            "is": ("are" if name in PLURALS else "is",)}


def about_presence(scene, rng):
    people, shown = ("person", "people"), [scene.subject, *scene.things]
    if scene.subject in PEOPLE:
        shown += people[:PEOPLE[scene.subject]]
    others = rng.choice((SUBJECTS, tuple(THINGS), FOREIGN + people))
    name = shown_or_not(scene, rng, shown, others)
    told = "{tell present}" if amount(name, scene) else "{tell missing}"
    return slots_of(name) | {"tell presence": (told,)}


def about_spot(scene, rng):
    name = shown_or_not(scene, rng, scene.things, tuple(THINGS))
    told = "{tell where}" if amount(name, scene) else "{tell absent}"
    return slots_of(name) | {"spot": (SPOTS[name],), "tell spot": (told,)}


def about_count(scene, rng):
    if rng.random() < 0.2:
        number = 1 + len(scene.things)
        told = "{tell total}" if number > 1 else "{tell only}"
        return {"xs": (rng.choice(("things", "objects")),), "number": (NUMBERS[number],),
                "tell count": (told,)}
    shown = [*scene.things] or [scene.subject]
    if scene.subject in PEOPLE:
        shown += ["people"] * len(shown)
    name = shown_or_not(scene, rng, shown, (*THINGS, *SUBJECTS, "people"))
    number = amount(name, scene)
    told = {0: "{tell none}", 1: "{tell a single}"}.get(number, "{tell number}")
    return slots_of(name) | {"number": (NUMBERS[number],), "is": ("is" if number == 1 else "are",),
                             "tell count": (told,)}


VALUES = {"subject": SUBJECTS, "style": STYLES, "palette": tuple(PALETTES), "mood": MOODS}


def kind_of(attribute, value, rng):
    """What a picture with that value of an attribute is: "a woodcut", "in rose colours"."""
    if attribute == "style":
        return f"a {rng.choice(PHRASES[value]['work'])}"
    return {"subject": f"a painting of a {value}", "palette": f"in {value} colours",
            "mood": value}[attribute]


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
    """(question, answer) about "description" or one of TOPICS. wordings: what to ask with instead
    of all that phrases.ini has for the topic."""
    rules = rules_of(scene)
    if topic in ABOUT:
        rules |= ABOUT[topic](scene, rng)
    asked = sentences(fill(rng.choice(wordings or WORDINGS[topic]), rules, rng))
    if topic in ABOUT:
        return asked, sentences(fill("{tell " + topic + "}", rules, rng))
    return asked, answer(topic, scene, rng)


def dialogue(scene, rng):
    """[(question, answer), ...]: five rounds; a description, then those of DIALOGUE."""
    rounds = [(rng.choice(INSTRUCTIONS), description(scene, rng))]
    return rounds + [question(topic, scene, rng) for topic in DIALOGUE]


def pair_question(topic, scenes, rng, wordings=None):
    """(question, answer) about two scenes, one of PAIR_TOPICS; wordings: see `question`."""
    first, second = (rules_of(scene) | {"nth": (nth,)}
                     for nth, scene in zip(("first", "second"), scenes, strict=True))
    wordings = wordings or WORDINGS[topic]
    if topic == "both":
        half = rng.choice(RULES["half"])
        told = f"the first is {fill(half, first, rng)}, the second {fill(half, second, rng)}."
        asked = fill(rng.choice(wordings), first, rng)
    elif topic == "one":
        own = rng.choice((first, second))
        asked, told = (fill(rng.choice(texts), own, rng) for texts in (wordings, own["tell one"]))
    else:
        attribute = rng.choice(tuple(VALUES))
        value = rng.choice(scenes).attributes[attribute]
        if rng.random() < 0.15:
            value = rng.choice(VALUES[attribute])
        kind = {"kind": (kind_of(attribute, value, rng),)}
        matching = [own for own in (first, second) if own[attribute] == (value,)]
        told = ("neither of them.", "{tell which}", "both of them.")[len(matching)]
        own = (matching or [first])[0]
        asked, told = (fill(text, own | kind, rng) for text in (rng.choice(wordings), told))
    return sentences(asked), sentences(told)


# ---- What a text names


def mentioned(text, values):
    """Those of `values` that a text mentions, as whole words or with a plural s."""
    return {value for value in values if re.search(rf"\b{value}s?\b", text, re.IGNORECASE)}


def named(text):
    """What a text names: attribute -> its one value in the text, None if none or several."""
    found = {attribute: mentioned(text, values) for attribute, values in VALUES.items()}
    return {attribute: values.pop() if len(values) == 1 else None
            for attribute, values in found.items()}
