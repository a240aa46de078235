"""What the gallery says about a painted scene: captions, descriptions, answers to questions, a web page.

All of it but the page comes from one small grammar: a rule is a name and the texts that may stand for it; a {slot} in a
text is filled by any text of that rule, and so on until no slot is left. GRAMMAR holds for every scene, and each
attribute of a scene brings rules of its own. No text holds another value's word of the same kind (no "rose" but the
palette), so `named` reads a scene's attributes off any text about it, a model's included.
"""
import re

from artgpt4 import INSTRUCTIONS
from gallery.scenes import EMOTION_OF, FIGURES, MOODS, PALETTES, STYLES, SUBJECTS

# What stands in every picture of a subject. stands: what it does, and where; detail: a clause about its parts; doing:
# what it does or is about to do; verse: the beginning of a poem.
SUBJECT_RULES = {
    "mountain": {
        "stands": ("rises steeply to its peak", "lifts its slopes into the sky"),
        "detail": ("snow lies on the heights", "light falls on one of its sides"),
        "doing": ("waits for the next snow, as it has always done", "keeps its place and lets the clouds pass by"),
        "verse": ("The mountain stands where eagles fly\nand writes its name across the sky,",)},
    "lighthouse": {
        "stands": ("stands on a rock above the water", "keeps watch above the water"),
        "detail": ("light and dark bands climb its tower", "a lamp crowns the banded tower"),
        "doing": ("sends its beam out and waits for ships", "is lighting the way home for late ships"),
        "verse": ("The lighthouse lifts its patient light\nand counts the ships that pass by night,",)},
    "sailing boat": {
        "stands": ("glides over the water", "drifts across the water"),
        "detail": ("two full sails rise above the hull", "a small flag flies above its two sails"),
        "doing": ("is sailing out before the wind", "catches the wind and heads for another shore"),
        "verse": ("A sailing boat with nothing planned\nleaves far behind the sleeping land,",)},
    "windmill": {
        "stands": ("stands on open land", "stands open to the wind"),
        "detail": ("four ribbed sails cross above a small door", "the sturdy tower narrows towards the sails"),
        "doing": ("is turning its sails to grind the corn", "waits for the next wind to grind the corn"),
        "verse": ("The windmill turns and turns again\nthrough years of sun and years of rain,",)},
    "cottage": {
        "stands": ("stands on open land", "sits snugly on the land"),
        "detail": ("smoke curls up from its chimney", "small windows look out from under the roof"),
        "doing": ("keeps its people warm by the fire", "is waiting for somebody to come home"),
        "verse": ("The cottage keeps its fire low\nfor everyone who has to go,",)},
    "tree": {
        "stands": ("stands on open land", "spreads its branches over the land"),
        "detail": ("a dark trunk carries the round crown", "its leaves form a full, round crown"),
        "doing": ("is growing quietly, ring by ring", "gives its shade and prepares its fruit"),
        "verse": ("The tree has neither haste nor pride\nand shade for all who rest beside,",)},
    "bridge": {
        "stands": ("spans the water", "carries its path over the water"),
        "detail": ("the deck bends in a gentle curve", "a low rail runs along the top"),
        "doing": ("carries travellers from one bank to the other", "is waiting for the next travellers to cross"),
        "verse": ("The bridge will ask of none his name\nand carries all of us the same,",)},
    "vase of flowers": {
        "stands": ("stands on a table", "rests on a table"),
        "detail": ("round blooms open above the narrow neck", "petals and leaves spread freely"),
        "doing": ("is opening its last buds", "shows its bloom and will soon drop petals"),
        "verse": ("A vase of flowers, cut today,\ngives all its summer days away,",)},
    "cat": {
        "stands": ("sits upright and looks at us", "sits still and watches us"),
        "detail": ("two pointed ears frame the wide eyes", "a pale patch shines on the chest"),
        "doing": ("keeps watch and may soon jump", "is listening, and prepares to jump"),
        "verse": ("The cat looks up, then looks away,\nand will not say what cats could say,",)},
    "castle": {
        "stands": ("stands on open land", "stands guard over the land"),
        "detail": ("two towers flank the keep with its flag", "a dark gate opens between two towers"),
        "doing": ("guards its gate against enemies", "is keeping its gate shut until the king returns"),
        "verse": ("The castle counts its kings of old\nand guards what never will be told,",)},
    "dancer": {
        "stands": ("leaps into the air", "dances over the open land"),
        "detail": ("both arms are thrown high", "one leg swings out under the skirt"),
        "doing": ("is leaping, and about to spin around", "dances on and prepares the next leap"),
        "verse": ("The dancer leaps, the ground lets go,\nthe sky bends down to say hello,",)},
    "mourner": {
        "stands": ("sits bent upon a stone", "sits alone upon a stone"),
        "detail": ("the head is bowed into the hand", "the bent back hides half of the face"),
        "doing": ("is weeping, and will not look up", "remembers somebody and holds back tears"),
        "verse": ("The mourner bows his heavy head\nfor every word he left unsaid,",)},
    "wanderer": {
        "stands": ("walks over the open land", "walks on with a staff"),
        "detail": ("a hat shades the face above a long coat", "a bundle hangs on the back"),
        "doing": ("is walking on to a distant place", "strides on and will walk until night"),
        "verse": ("The wanderer with staff and sack\ngoes on and on and looks not back,",)},
    "couple": {
        "stands": ("stands in a close embrace", "stands heart to heart"),
        "detail": ("a man and a woman hold each other", "her arm lies around his shoulder"),
        "doing": ("embraces, and is about to kiss", "holds still and prepares to say goodbye"),
        "verse": ("The couple hold what time would part,\nso close, with heart on beating heart,",)},
}

# How a figure's posture tells what it feels: a clause.
FIGURE_RULES = {
    "dancer": {"it": ("she",), "posture": (
        "raised arms and a kicking leg", "the arms in the air and the high leap")},
    "mourner": {"it": ("he",), "posture": (
        "a bowed head and a bent back", "the sunken head and the hidden face")},
    "wanderer": {"it": ("he",), "posture": (
        "long strides and a staff in the hand", "the steady walk and the heavy bundle")},
    "couple": {"it": ("it",), "posture": (
        "a tight embrace and faces close together", "two bodies and the arms that hold them")},
}

SETTING_RULES = {"land": {"setting": ("in open country",)}, "water": {"setting": ("at the waterside",)},
                 "room": {"setting": ("in a room",)}}

THING_PHRASES = {"birds": "birds", "balloon": "a balloon", "rainbow": "a rainbow", "firs": "firs", "fence": "a fence",
                 "rowboat": "a rowboat", "candle": "a candle", "apples": "apples"}

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

# feeling: a clause that says what the mood does to the viewer; ending: the second half of a poem.
MOOD_RULES = {
    "nostalgic": {"feeling": ("it recalls a day of long ago", "one thinks of places left behind"),
        "ending": ("and we, nostalgic, stop to gaze\nalong the road of other days.",)},
    "passionate": {"feeling": ("every part of it seems to burn", "nothing in it is timid"),
        "ending": ("in passionate and burning tones\nthat warm the very walls and stones.",)},
    "serene": {"feeling": ("nothing hurries here", "one breathes more slowly"),
        "ending": ("serene as water, cool and deep,\nthat hums a world of cares to sleep.",)},
    "dreamy": {"feeling": ("it floats between sleep and waking", "the world has lost its weight"),
        "ending": ("a dreamy hour, light as air,\nhalf here with us and half elsewhere.",)},
    "mysterious": {"feeling": ("it hides more than it tells", "one wonders what waits in the shade"),
        "ending": ("mysterious, it lets us guess\nand never answers no or yes.",)},
    "joyful": {"feeling": ("one cannot help smiling", "it seems to sing aloud"),
        "ending": ("a joyful hour, made to sing\nof every bright and simple thing.",)},
    "tender": {"feeling": ("it speaks in a low, loving voice", "all is treated with gentle care"),
        "ending": ("a tender light on all that lives,\nthat asks for little, and forgives.",)},
    "solemn": {"feeling": ("it asks for silence", "it is as grave as a hymn"),
        "ending": ("a solemn hour, grave and still,\nlike bells at dusk behind a hill.",)},
    "melancholy": {"feeling": ("something seems to be over", "it is lovely like a rainy evening"),
        "ending": ("and melancholy, soft as rain,\ntaps once upon the window pane.",)},
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
        "this {work} shows a {subject} {place}: {it} {stands}, and {detail}. {technique}. {colouring}. {effect}.",
        "this is a {mood} {work} of a {subject} {place}: {feeling}. the {subject} {stands}; {detail}. {technique}. "
        "{colouring}.",
        "a {mood} mood fills this {work} of a {subject}: {feeling}. {place}, the {subject} {stands}; {detail}. "
        "{technique}. {colouring}.",
        "in this {work} we see a {subject} {place}; {it} {stands}, and {detail}. {technique}. the {tone} colours of "
        "the {palette} palette, {colours}, make it {mood}: {feeling}."),
    "content": (
        "{place}, a {subject} {stands}; {detail}",
        "the picture shows a {subject} {place}: {it} {stands}, and {detail}",
        "we see a {subject} {place}; {it} {stands}, and {detail}"),
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

    "around": (
        "one also sees {things}",
        "a second look finds {things}",
        "the artist has added {things}"),

    "ask subject": (
        "What is in this picture?", "What does this painting show?", "What do you see?", "What is shown here?",
        "What is the subject of this image?", "What is this a painting of?", "What can you see in the image?"),
    "tell subject": (
        "the picture shows a {subject}. {it} {stands}, and {detail}.",
        "it is a {subject}: {detail}.",
        "I see a {subject} {place}; {it} {stands}."),
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
    "ask objects": (
        "Which objects and scenes do you recognise in this image?", "What objects are in this picture?",
        "List everything that you recognise.", "Name the objects in the image.", "Which things can be seen here?"),
    "tell objects": (
        "I recognise {inventory}. the scene is set {setting}.",
        "this scene is set {setting}, with {inventory}.",
        "{setting} one sees {inventory}."),
    "ask emotions": (
        "Analyze the emotions expressed by the individuals in the images as well as the emotions felt by the viewer "
        "observing them.", "What does the person in the picture feel, and what does the viewer feel?",
        "Which emotions do the people in this image show, and which does it cause?",
        "Analyze the emotions of the figure and of the viewer."),
    "tell figure": (
        "the {subject} feels {emotion}: {posture} show it. the viewer feels {mood}, for the colours are {tone}, "
        "and {feeling}.",
        "{posture}: the {subject} is full of {emotion}. the {handling} and colours that are {tone} leave the viewer "
        "{mood}; {feeling}.",
        "one reads {emotion} in the {subject}, because of this posture: {posture}. the viewer feels {mood}: {feeling}. "
        "this comes from {handling}, and from colours that are {tone}."),
    "tell nobody": (
        "no person is shown, only a {subject}. the viewer feels {mood}, for the colours are {tone}, and {feeling}.",
        "there is nobody here but a {subject}. the {handling} and colours that are {tone} leave the viewer {mood}; "
        "{feeling}."),
    "ask situation": (
        "What kind of situation do you think it is in?", "What is the situation in this picture?",
        "What is going on here?"),
    "tell situation": (
        "it is a {mood} moment: the {subject} {stands}, and {feeling}.",
        "I think it is a {mood} situation. the {subject} {stands}; {feeling}."),
    "ask doing": (
        "Can you tell me what it is doing or preparing to do?", "What is it doing?", "What will happen next?",
        "What is about to happen here?"),
    "tell doing": (
        "the {subject} {doing}.",
        "I think that the {subject} {doing}. the {mood} colours agree with it."),
    "ask look": (
        "Which colours does it have, and how was it painted?", "Describe the colours and the style.",
        "What can you say about its style and its colours?"),
    "tell look": (
        "it is a {work} in the {palette} palette: {colours}. {technique}.",
        "the {palette} palette, {colours}, is {tone}. as a {work} it shows its {handling}."),
    "ask poem": (
        "Write a short poem about it.", "Can you write a poem about this picture?",
        "Make a small poem of this painting.", "Write a few lines of verse about this image."),
    "tell poem": ("{verse}\n{ending}",),
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


# What questions are asked about, in this order; and the rounds of a long dialogue.
TOPICS = ("subject", "style", "colours", "mood", "composition", "objects", "emotions", "situation", "doing", "look",
          "poem", "page")
DIALOGUE = ("situation", "doing", "look", "poem")


def listed(phrases):
    """"a castle, birds and a fence"."""
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def rules_of(scene):
    """All rules for a scene: name -> the texts that may stand for it."""
    figure = scene.subject in FIGURES
    things = [THING_PHRASES[thing] for thing in scene.things]
    return (GRAMMAR | SUBJECT_RULES[scene.subject] | STYLE_RULES[scene.style] | PALETTE_RULES[scene.palette]
            | MOOD_RULES[scene.mood] | PLACE_RULES[scene.composition] | SETTING_RULES[scene.setting]
            | {"it": ("it",)} | FIGURE_RULES.get(scene.subject, {})
            | {attribute: (value,) for attribute, value in scene.attributes.items()} | {"place": (scene.composition,)}
            | {"emotion": (EMOTION_OF.get(scene.subject),), "things": (listed(things or [""]),),
               "inventory": (listed([f"a {scene.subject}", *things]),),
               "tell emotions": ("{tell figure}" if figure else "{tell nobody}",)})


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
    """Stage 1: one lower-case phrase of 8 to 16 words that names subject, style, palette and mood; then the things."""
    return expand("caption", scene, rng) + (f", with {expand('things', scene, rng)}" if scene.things else "")


def description(scene, rng):
    """Stage 2, the answer to "Describe this image in detail.": 3 or 4 sentences, 45 to 70 words, naming the same; one
    more sentence about the things."""
    text = expand("description", scene, rng) + (f" {expand('around', scene, rng)}." if scene.things else "")
    return sentences(text)


def answer(topic, scene, rng):
    """What a question about one of TOPICS is answered."""
    return page(scene) if topic == "page" else sentences(expand(f"tell {topic}", scene, rng))


def questions(scene, rng):
    """[(question, answer)]: one each about every one of TOPICS."""
    pairs = []
    for topic in TOPICS:
        question = expand(f"ask {topic}", scene, rng)
        if rng.random() < 0.15:                               # as typed in a hurry
            question = question.lower().rstrip(".?")
        pairs.append((question, answer(topic, scene, rng)))
    return pairs


def dialogue(scene, rng):
    """[(question, answer)]: five rounds; a description, then those of DIALOGUE."""
    return [(rng.choice(INSTRUCTIONS), description(scene, rng)),
            *((expand(f"ask {topic}", scene, rng), answer(topic, scene, rng)) for topic in DIALOGUE)]


def page(scene):
    """A web page for the painting, in the palette's own colours, as a fenced block of HTML."""
    sentence = f"A {scene.mood} {STYLE_RULES[scene.style]['work'][0]} of a {scene.subject} in {scene.palette} colours."
    return PAGE.format(title=scene.subject.capitalize(), sentence=sentence, **vars(PALETTES[scene.palette]))


def told(scene, rng):
    """The picture in a few words, as stands between <Img> and </Img> where later its vectors stand.

    One time in five the mood is left out, so that a model learns to infer it from palette and style.
    """
    words = [scene.subject, scene.style, scene.palette, scene.composition, scene.setting, *scene.things]
    if rng.random() >= 0.2:
        words.append(scene.mood)
    return ", ".join(rng.sample(words, len(words)))


def mentioned(text, values):
    """Those of `values` that a text mentions, as whole words, or a plural in s."""
    return {value for value in values if re.search(rf"\b{value}s?\b", text, re.IGNORECASE)}


def named(text):
    """What a text names: attribute -> its one value in it, None if none or several."""
    values_of = {"subject": SUBJECTS, "style": STYLES, "palette": tuple(PALETTES), "mood": MOODS}
    found = {attribute: mentioned(text, values) for attribute, values in values_of.items()}
    return {attribute: next(iter(values)) if len(values) == 1 else None for attribute, values in found.items()}
