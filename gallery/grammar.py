"""The sentences of the gallery: captions, descriptions, answers to questions, a web page.

A rule is a name and the texts that may stand for it. A {slot} in a text is filled by any text of
the rule of that name, here, in wordings.py or in phrases.py, until no slot is left; words.py does
that.
"""

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

    # A description and its parts
    "description": (
        "{content}. {making}. {colouring}. {effect}.",
        "{content}. {colouring}. {making}. {effect}.",
        "{making}. {content}. {colouring}. {effect}.",
        "{colouring}. {content}. {making}. {effect}.",
        "this {work} shows a {subject} {place}: {it} {stands}, and {detail}. {technique}. "
        "{colouring}. {effect}.",
        "this is a {mood} {work} of a {subject} {place}: {feeling}. the {subject} {stands}; "
        "{detail}. {technique}. {colouring}.",
        "a {mood} mood fills this {work} of a {subject}: {feeling}. {place}, the {subject} "
        "{stands}; {detail}. {technique}. {colouring}.",
        "in this {work} we see a {subject} {place}; {it} {stands}, and {detail}. {technique}. "
        "the {tone} colours of the {palette} palette, {colours}, make it {mood}: {feeling}."),
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

    # The things around the subject
    "around": (
        "one also sees {things}",
        "a second look finds {things}",
        "the artist has added {things}"),

    # Answers; "ask TOPIC", in wordings.py, has the questions
    "tell subject": (
        "the picture shows a {subject}. {it} {stands}, and {detail}.",
        "it is a {subject}: {detail}.",
        "I see a {subject} {place}; {it} {stands}."),
    "tell style": (
        "it is a {work}: {technique}.",
        "the style is {style}: {technique}.",
        "this is a {work}. one knows it by the {handling}."),
    "tell colours": (
        "{colouring}.",
        "the picture keeps to the {palette} palette: {colours}.",
        "I see {colours}. this is the {palette} palette, {tone}."),
    "tell mood": (
        "it feels {mood}: the colours are {tone}, the {handling} suit them, and {feeling}.",
        "the mood is {mood}: {feeling}. this comes from colours that are {tone}, and from "
        "{handling}.",
        "it is {mood}, because {handling} meet colours that are {tone}; {feeling}."),
    "tell composition": (
        "the {subject} is {place}, {space}.",
        "the artist placed the {subject} {place}, {space}.",
        "one finds the {subject} {place}, {space}."),
    "tell objects": (
        "I recognise {inventory}. the scene is set {setting}.",
        "this scene is set {setting}, with {inventory}.",
        "{setting} one sees {inventory}."),
    "tell figure": (
        "the {subject} feels {emotion}: {posture} show it. the viewer feels {mood}, for the "
        "colours are {tone}, and {feeling}.",
        "{posture}: the {subject} is full of {emotion}. the {handling} and colours that are "
        "{tone} leave the viewer {mood}; {feeling}.",
        "one reads {emotion} in the {subject}, because of this posture: {posture}. the viewer "
        "feels {mood}: {feeling}. this comes from {handling}, and from colours that are {tone}."),
    "tell nobody": (
        "no person is shown, only a {subject}. the viewer feels {mood}, for the colours are "
        "{tone}, and {feeling}.",
        "there is nobody here but a {subject}. the {handling} and colours that are {tone} leave "
        "the viewer {mood}; {feeling}."),
    "tell situation": (
        "it is a {mood} moment: the {subject} {stands}, and {feeling}.",
        "I think it is a {mood} situation. the {subject} {stands}; {feeling}."),
    "tell doing": (
        "the {subject} {doing}.",
        "I think that the {subject} {doing}. the {mood} colours agree with it."),
    "tell look": (
        "it is a {work} in the {palette} palette: {colours}. {technique}.",
        "the {palette} palette, {colours}, is {tone}. as a {work} it shows its {handling}."),
    "tell around": ("{around}.",),
    "tell alone": (
        "there is nothing else: the {subject} is alone.",
        "nothing else is shown, only the {subject}."),
    "tell where": ("the {x} {is} {spot}.", "one finds the {x} {spot}."),
    "tell absent": ("there {is} no {x} in the picture, only {inventory}.",),
    "tell none": ("none: there are no {xs} in the picture.", "none, I see no {xs} here."),
    "tell a single": ("there is one {x}.", "I see one {x}."),
    "tell number": ("there {is} {number} {xs}.", "I see {number} {xs}."),
    "tell total": ("there are {number} {xs}: {inventory}.",),
    "tell only": ("there is one of them, {inventory}.",),
    "tell present": ("yes, there {is} {any} in the picture.", "yes, I see {any}."),
    "tell missing": (
        "no, there {is} no {x} in the picture, only {inventory}.",
        "no, I see no {x}, only {inventory}."),
    "tell so": ("yes, it is {kind}.", "yes, I would say that it is {kind}."),
    "tell not so": ("no, it is {truth}.", "no, I would say that it is {truth}."),
    "tell why": (
        "because the colours are {tone} and the {handling} suit them: it feels {mood}, and "
        "{feeling}.",
        "because {handling} meet colours that are {tone}. so it is {mood}: {feeling}."),
    "tell title": (
        'I would call it "{title}".',
        'a good title is "{title}".',
        'my title is "{title}".'),
    "title": ("The {mood} {subject}", "A {mood} {subject}", "{subject} in {palette} colours"),
    "tell poem": ("{verse}\n{ending}",),
    "tell greeting": (
        "hello! ask me what the picture shows, how it is made, or what one feels.",
        "hello! I know the paintings of one gallery. ask me about this one."),
    "tell thanks": ("you are welcome.", "it was a pleasure."),
    "tell unknown": ("the picture does not say.", "I do not know: the picture does not say."),

    # The parts of a web page, see PAGE
    "page title": ("The {mood} {subject}", "A {mood} {subject}"),
    "page content": ("{content}.",),
    "page content with things": ("{content}. {around}.",),
    "page heading": ("A {work} in {palette} colours", "The {palette} palette in {style}"),
    "page making": ("{colouring}. {technique}; {feeling}.", "{technique}. {colouring}; {feeling}."),

    # Answers about two pictures. Each half is said of one of them.
    "half": (
        "a {mood} {work} of a {subject}",
        "a {work} of a {subject} in {palette} colours",
        "a {subject} {place} in {palette} colours",
        "a {mood} {work} of a {subject} {place} in {palette} colours"),
    "tell one": (
        "the {nth} shows a {subject} {place}: a {mood} {work} in {palette} colours.",
        "the {nth} is a {mood} {work} of a {subject} {place}, in {palette} colours."),
    "tell which": ("the {nth}, a {mood} {work} of a {subject} in {palette} colours.",),
}

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
