"""The sentences of the gallery: captions, descriptions, questions with their answers, a web page.

A rule is a name and the texts that may stand for it. A {slot} in a text is filled by any text of
the rule of that name, here or in phrases.py, until no slot is left; words.py does that.
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

    # Questions, each as "ask TOPIC" and "tell TOPIC"
    "ask subject": (
        "What is in this picture?",
        "What does this painting show?",
        "What do you see?",
        "What is shown here?",
        "What is the subject of this image?",
        "What is this a painting of?",
        "What can you see in the image?"),
    "tell subject": (
        "the picture shows a {subject}. {it} {stands}, and {detail}.",
        "it is a {subject}: {detail}.",
        "I see a {subject} {place}; {it} {stands}."),
    "ask style": (
        "What style is this?",
        "Which technique did the artist use?",
        "How was this picture made?",
        "What kind of painting is this?",
        "In which style is it painted?",
        "What is the style of this image?"),
    "tell style": (
        "it is a {work}: {technique}.",
        "the style is {style}: {technique}.",
        "this is a {work}. one knows it by the {handling}."),
    "ask colours": (
        "What colours are used?",
        "Which colours do you see?",
        "Describe the palette.",
        "What are the main colours?",
        "What is the palette of this painting?",
        "Tell me about the colours."),
    "tell colours": (
        "{colouring}.",
        "the picture keeps to the {palette} palette: {colours}.",
        "I see {colours}. this is the {palette} palette, {tone}."),
    "ask mood": (
        "What is the mood?",
        "How does this picture make you feel?",
        "What feelings does this image evoke?",
        "What mood does this painting have, and why?",
        "What does the viewer feel?",
        "Describe the atmosphere.",
        "What emotions does the painting express?"),
    "tell mood": (
        "it feels {mood}: the colours are {tone}, the {handling} suit them, and {feeling}.",
        "the mood is {mood}: {feeling}. this comes from colours that are {tone}, and from "
        "{handling}.",
        "it is {mood}, because {handling} meet colours that are {tone}; {feeling}."),
    "ask composition": (
        "Where is the {subject}?",
        "Where in the picture is the {subject}?",
        "Describe the composition.",
        "How is the picture composed?",
        "Where does the main subject stand?"),
    "tell composition": (
        "the {subject} is {place}, {space}.",
        "the artist placed the {subject} {place}, {space}.",
        "one finds the {subject} {place}, {space}."),
    "ask objects": (
        "Which objects and scenes do you recognise in this image?",
        "What objects are in this picture?",
        "List everything that you recognise.",
        "Name the objects in the image.",
        "Which things can be seen here?"),
    "tell objects": (
        "I recognise {inventory}. the scene is set {setting}.",
        "this scene is set {setting}, with {inventory}.",
        "{setting} one sees {inventory}."),
    "ask emotions": (
        "Analyze the emotions expressed by the individuals in the images as well as the "
        "emotions felt by the viewer observing them.",
        "What does the person in the picture feel, and what does the viewer feel?",
        "Which emotions do the people in this image show, and which does it cause?",
        "Analyze the emotions of the figure and of the viewer."),
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
    "ask situation": (
        "What kind of situation do you think it is in?",
        "What is the situation in this picture?",
        "What is going on here?"),
    "tell situation": (
        "it is a {mood} moment: the {subject} {stands}, and {feeling}.",
        "I think it is a {mood} situation. the {subject} {stands}; {feeling}."),
    "ask doing": (
        "Can you tell me what it is doing or preparing to do?",
        "What is it doing?",
        "What will happen next?",
        "What is about to happen here?"),
    "tell doing": (
        "the {subject} {doing}.",
        "I think that the {subject} {doing}. the {mood} colours agree with it."),
    "ask look": (
        "Which colours does it have, and how was it painted?",
        "Describe the colours and the style.",
        "What can you say about its style and its colours?"),
    "tell look": (
        "it is a {work} in the {palette} palette: {colours}. {technique}.",
        "the {palette} palette, {colours}, is {tone}. as a {work} it shows its {handling}."),
    "ask poem": (
        "Write a short poem about it.",
        "Can you write a poem about this picture?",
        "Make a small poem of this painting.",
        "Write a few lines of verse about this image."),
    "tell poem": ("{verse}\n{ending}",),
    "ask page": (
        "Write a web page for this painting.",
        "Make a website about this picture.",
        "Can you write an HTML page for it?",
        "Create a web page in the colours of this painting.",
        "Write the HTML of a page that presents this image.",
        "Build a small web page for this picture."),
}

# About 150 tokens, so every character counts. The framed picture is the <hr>: a sun goes down
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
<p>{sentence}</p>
```"""
