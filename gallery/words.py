"""What the gallery says about a painted scene: captions, descriptions, answers to questions, a web page.

All of it but the page comes from one small grammar: a rule is a name and the texts that may stand for it; a {slot} in a
text is filled by any text of that rule, and so on until no slot is left. GRAMMAR holds for every scene, and each
attribute of a scene brings rules of its own. No text holds another value's word of the same kind (no "rose" but the
palette), so `named` reads a scene's attributes off any text about it, a model's included.
"""
import re

from gallery.scenes import MOODS, PALETTES, STYLES, SUBJECTS

# What stands in every picture of a subject. stands: what it does, and where; detail: a clause about its parts.
SUBJECT_RULES = {
    "mountain": {
        "stands": ("rises steeply to its peak", "lifts its slopes into the sky"),
        "detail": ("snow lies on the heights", "light falls on one of its sides")},
    "lighthouse": {
        "stands": ("stands on a rock above the water", "keeps watch above the water"),
        "detail": ("light and dark bands climb its tower", "a lamp crowns the banded tower")},
    "sailing boat": {
        "stands": ("glides over the water", "drifts across the water"),
        "detail": ("two full sails rise above the hull", "a small flag flies above its two sails")},
    "windmill": {
        "stands": ("stands on open land", "stands open to the wind"),
        "detail": ("four ribbed sails cross above a small door", "the sturdy tower narrows towards the sails")},
    "cottage": {
        "stands": ("stands on open land", "sits snugly on the land"),
        "detail": ("smoke curls up from its chimney", "small windows look out from under the roof")},
    "tree": {
        "stands": ("stands on open land", "spreads its branches over the land"),
        "detail": ("a dark trunk carries the round crown", "its leaves form a full, round crown")},
    "bridge": {
        "stands": ("spans the water", "carries its path over the water"),
        "detail": ("the deck bends in a gentle curve", "a low rail runs along the top")},
    "vase of flowers": {
        "stands": ("stands on a table", "rests on a table"),
        "detail": ("round blooms open above the narrow neck", "petals and leaves spread freely")},
    "cat": {
        "stands": ("sits upright and looks at us", "sits still and watches us"),
        "detail": ("two pointed ears frame the wide eyes", "a pale patch shines on the chest")},
    "castle": {
        "stands": ("stands on open land", "stands guard over the land"),
        "detail": ("two towers flank the keep with its flag", "a dark gate opens between two towers")},
}

# What one sees of a style. work: a picture in it; technique: a clause; handling: the same in two or three words.
STYLE_RULES = {
    "ink wash": {
        "work": ("ink wash", "ink wash painting"),
        "technique": ("a few brush lines hold pale, wet tones on bare paper",
                      "soft tones blur into the paper around a few dry lines"),
        "handling": ("pale, wet tones", "quick brush lines")},
    "pointillism": {
        "work": ("pointillism painting", "pointillism picture"),
        "technique": ("dots of pure colour meet and mix in the eye",
                      "countless dots flicker, and at a distance turn into forms"),
        "handling": ("small, lively dots", "dots of pure colour")},
    "stained glass": {
        "work": ("stained glass window", "stained glass panel"),
        "technique": ("black lead lines hold the pieces, and light glows through them",
                      "clear pieces fit like a puzzle, each set in black lead"),
        "handling": ("firm lead lines", "clear pieces in black lead")},
    "woodcut": {
        "work": ("woodcut", "woodcut print"),
        "technique": ("carved lines swell and narrow over flat colour, with firm edges",
                      "bold lines, cut with a knife, run in rows over flat colour"),
        "handling": ("firm carved lines", "bold cuts of the knife")},
    "oil": {
        "work": ("oil", "oil painting"),
        "technique": ("thick strokes follow the forms, and ridges of paint catch the light",
                      "rich paint lies in short strokes that one would like to touch"),
        "handling": ("thick, rich strokes", "short strokes of heavy paint")},
    "watercolour": {
        "work": ("watercolour", "watercolour painting"),
        "technique": ("clear washes run into each other and dry with darker edges",
                      "thin paint flows freely, and white paper shines at the borders"),
        "handling": ("clear, thin washes", "flowing washes")},
}

# colours: a palette's colours in words; tone: what they have in common.
PALETTE_RULES = {
    "ember": {"colours": ("amber, orange and brick red", "gold, orange and deep red"),
              "tone": ("warm and glowing", "rich and fiery")},
    "moonlight": {"colours": ("deep blue, navy and ivory", "dark blues with pale ivory"),
                  "tone": ("cool and hushed", "still and quiet")},
    "meadow": {"colours": ("pale green, leaf green and yellow", "spring greens with a touch of yellow"),
               "tone": ("fresh and bright", "clear and young")},
    "rose": {"colours": ("blush, deep pink and cream", "pink, mauve and pale cream"),
             "tone": ("warm and delicate", "soft and sweet")},
    "desert": {"colours": ("sand, copper and turquoise", "warm browns under pale turquoise"),
               "tone": ("dry and bright", "sunny and open")},
    "storm": {"colours": ("slate, silver and white", "greys from slate to silver"),
              "tone": ("cold and heavy", "cool and stern")},
}

# feeling: a clause that says what the mood does to the viewer.
MOOD_RULES = {
    "nostalgic": {"feeling": ("it recalls a day of long ago", "one thinks of places left behind")},
    "passionate": {"feeling": ("every part of it seems to burn", "nothing in it is timid")},
    "serene": {"feeling": ("nothing hurries here", "one breathes more slowly")},
    "dreamy": {"feeling": ("it floats between sleep and waking", "the world has lost its weight")},
    "mysterious": {"feeling": ("it hides more than it tells", "one wonders what waits in the shade")},
    "joyful": {"feeling": ("one cannot help smiling", "it seems to sing aloud")},
    "tender": {"feeling": ("it speaks in a low, loving voice", "all is treated with gentle care")},
    "solemn": {"feeling": ("it asks for silence", "it is as grave as a hymn")},
    "melancholy": {"feeling": ("something seems to be over", "it is lovely like a rainy evening")},
}

PLACE_RULES = {
    "in the centre": {"space": ("with the same room on both sides", "so that the eye goes straight to it")},
    "to the left": {"space": ("with more room on the right", "and the eye then wanders across")},
    "to the right": {"space": ("with more room on the left", "and the eye then wanders across")},
    "far away": {"space": ("small, with much room around it", "small in a wide space")},
}

GRAMMAR = {
    "caption": (
        "a {mood} {work} of a {subject} {place} in {palette} colours",
        "a {work} of a {subject} {place}, {mood} in {palette} colours",
        "{subject} {place}, a {mood} {work} in {palette} colours",
        "a {subject} {place}, {mood} {work} in {palette} tones",
        "{palette} colours give this {work} of a {subject} a {mood} mood",
        "in {palette} tones, a {mood} {work} of a {subject} {place}",
        "a {mood} {work} with {palette} colours, showing a {subject} {place}",
        "a {mood} scene with a {subject}, {work} in the {palette} palette",
        "{mood} and in {palette} colours, this {work} shows a {subject}",
        "{work} of a {subject} {place}, {palette} palette, {mood} mood"),

    "description": (
        "{content}. {making}. {colouring}. {effect}.",
        "{content}. {colouring}. {making}. {effect}.",
        "{making}. {content}. {colouring}. {effect}.",
        "{colouring}. {content}. {making}. {effect}.",
        "this {work} shows a {subject} {place}: it {stands}, and {detail}. {technique}. {colouring}. {effect}.",
        "this is a {mood} {work} of a {subject} {place}: {feeling}. the {subject} {stands}; {detail}. {technique}. "
        "{colouring}.",
        "a {mood} mood fills this {work} of a {subject}: {feeling}. {place}, the {subject} {stands}; {detail}. "
        "{technique}. {colouring}.",
        "in this {work} we see a {subject} {place}; it {stands}, and {detail}. {technique}. the {tone} colours of the "
        "{palette} palette, {colours}, make it {mood}: {feeling}."),
    "content": (
        "{place}, a {subject} {stands}; {detail}",
        "the picture shows a {subject} {place}: it {stands}, and {detail}",
        "we see a {subject} {place}; it {stands}, and {detail}"),
    "making": (
        "this is a fine {work}: {technique}",
        "in this careful {work}, {technique}",
        "the artist has used {style} well: {technique}"),
    "colouring": (
        "the {palette} palette is {tone}: {colours}",
        "the {palette} colours, {colours}, are {tone}",
        "{colours} make up the {palette} palette, {tone}"),
    "effect": (
        "the whole is beautifully {mood}: {feeling}",
        "its {mood} mood rewards a second look: {feeling}",
        "one leaves it in a {mood} mood, for {feeling}",
        "its {mood} forms stay in the mind: {feeling}"),

    "ask subject": (
        "What is in this picture?", "What does this painting show?", "What do you see?", "What is shown here?",
        "What is the subject of this image?", "What is this a painting of?", "What can you see in the image?"),
    "tell subject": (
        "the picture shows a {subject}. it {stands}, and {detail}.",
        "it is a {subject}: {detail}.",
        "I see a {subject} {place}; it {stands}."),
    "ask style": (
        "What style is this?", "Which technique did the artist use?", "How was this picture made?",
        "What kind of painting is this?", "In which style is it painted?", "What is the style of this image?"),
    "tell style": (
        "it is a {work}: {technique}.",
        "the style is {style}: {technique}.",
        "this is a {work}. one knows it by the {handling}."),
    "ask colours": (
        "What colours are used?", "Which colours do you see?", "Describe the palette.", "What are the main colours?",
        "What is the palette of this painting?", "Tell me about the colours."),
    "tell colours": (
        "{colouring}.",
        "the picture keeps to the {palette} palette: {colours}.",
        "I see {colours}. this is the {palette} palette, {tone}."),
    "ask mood": (
        "What is the mood?", "How does this picture make you feel?", "What feelings does this image evoke?",
        "What mood does this painting have, and why?", "What does the viewer feel?", "Describe the atmosphere.",
        "What emotions does the painting express?"),
    "tell mood": (
        "it feels {mood}: the colours are {tone}, the {handling} suit them, and {feeling}.",
        "the mood is {mood}: {feeling}. this comes from colours that are {tone}, and from {handling}.",
        "it is {mood}, because {handling} meet colours that are {tone}; {feeling}."),
    "ask composition": (
        "Where is the {subject}?", "Where in the picture is the {subject}?", "Describe the composition.",
        "How is the picture composed?", "Where does the main subject stand?"),
    "tell composition": (
        "the {subject} is {place}, {space}.",
        "the artist placed the {subject} {place}, {space}.",
        "one finds the {subject} {place}, {space}."),
    "ask page": (
        "Write a web page for this painting.", "Make a website about this picture.",
        "Can you write an HTML page for it?", "Create a web page in the colours of this painting.",
        "Write the HTML of a page that presents this image.", "Build a small web page for this picture."),
}

# About 150 tokens, so every mark counts. The framed picture is the <hr>: a sun goes down behind the ground.
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
<p>{sentence}</p>
```"""


def rules_of(scene):
    """All rules for a scene: name -> the texts that may stand for it."""
    return (GRAMMAR | SUBJECT_RULES[scene.subject] | STYLE_RULES[scene.style] | PALETTE_RULES[scene.palette]
            | MOOD_RULES[scene.mood] | PLACE_RULES[scene.composition]
            | {attribute: (value,) for attribute, value in scene.attributes.items()} | {"place": (scene.composition,)})


def expand(rule, scene, rng):
    """A text for the rule, every slot in it filled at random; "a" becomes "an" before a vowel."""
    rules = rules_of(scene)
    text = "{" + rule + "}"
    while slot := re.search(r"{([a-z ]+)}", text):
        text = text[:slot.start()] + rng.choice(rules[slot[1]]) + text[slot.end():]
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def sentences(text):
    """The text with a capital at the start of each sentence."""
    return re.sub(r"(?:^|(?<=[.?] ))[a-z]", lambda start: start[0].upper(), text)


def caption(scene, rng):
    """Stage 1: one lower-case phrase of 8 to 16 words that names subject, style, palette and mood."""
    return expand("caption", scene, rng)


def description(scene, rng):
    """Stage 2, the answer to "Describe this image in detail.": 3 or 4 sentences, 45 to 70 words, naming the same."""
    return sentences(expand("description", scene, rng))


def questions(scene, rng):
    """[(question, answer)]: one each about subject, style, colours, mood, composition, and the web page."""
    pairs = []
    for topic in ("subject", "style", "colours", "mood", "composition", "page"):
        question = expand(f"ask {topic}", scene, rng)
        if rng.random() < 0.15:                               # as typed in a hurry
            question = question.lower().rstrip(".?")
        answer = page(scene) if topic == "page" else sentences(expand(f"tell {topic}", scene, rng))
        pairs.append((question, answer))
    return pairs


def page(scene):
    """A web page for the painting, in the palette's own colours, as a fenced block of HTML."""
    sentence = f"A {scene.mood} {STYLE_RULES[scene.style]['work'][0]} of a {scene.subject} in {scene.palette} colours."
    return PAGE.format(title=scene.subject.capitalize(), sentence=sentence, **vars(PALETTES[scene.palette]))


def told(scene, rng):
    """The picture in 5 to 10 words, as stands between <Img> and </Img> where later its vectors stand.

    One time in five the mood is left out, so that a model learns to infer it from palette and style.
    """
    words = [scene.subject, scene.style, scene.palette, scene.composition]
    if rng.random() >= 0.2:
        words.append(scene.mood)
    return ", ".join(rng.sample(words, len(words)))


def named(text):
    """What a text names: attribute -> its one value in it (whole words, or a plural in s), None if none or several."""
    values_of = {"subject": SUBJECTS, "style": STYLES, "palette": tuple(PALETTES), "mood": MOODS}
    found = {}
    for attribute, values in values_of.items():
        hits = [value for value in values if re.search(rf"\b{value}s?\b", text, re.IGNORECASE)]
        found[attribute] = hits[0] if len(hits) == 1 else None
    return found
