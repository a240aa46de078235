"""Conversations about one scene or two, of questions and answers from words.py, as people type.

A round is ([the scenes that come with the question], question, answer).
"""
import re

from artgpt4 import IMAGE_SLOT, chat_prompt
from gallery import words

# How often a question is about a topic: the harder ones more often.
OFTEN = {"description": 2, "presence": 6, "kind": 4, "count": 3, "spot": 2, "part": 2, "subject": 3,
         "around": 3, "composition": 2, "style": 2, "mood": 3, "unknown": 10, "poem": 2,
         "page": 1.2, "greeting": 2, "thanks": 2, "self": 2, "why": 2, "emotions": 2}
APPRECIATED = ("description", "why", "situation")              # what [art] has answers to
FORGOTTEN = ("unknown", "around", "greeting", "presence")      # what stage 2 would forget first
FOLLOWED, BRIEF = 0.2, 0.1          # shares of rounds: with a follow-up; that ask for a word or two
ECHOED = 0.1                        # of plain rounds: followed by words to be repeated
SHORTHAND = {
    "what is": ("what's", "whats"), "is not": ("isn't",), "you": ("u",),
    "do not": ("don't", "dont"), "cannot": ("can't", "cant"), "are": ("r",),
    r"colour(\w*)": (r"color\1",), "picture": ("pic",), "please": ("pls", "plz"),
    "that is": ("that's", "thats"), "it is": ("it's", "its"), "and": ("&", "n"),
    "I am": ("I'm", "im"), "who is": ("who's", "whos"), "there is": ("there's", "theres"),
    "where is": ("where's", "wheres"), "want to": ("wanna",), "going to": ("gonna",),
    "sort of": ("sorta",), "kind of": ("kinda",), "your": ("ur",), "what": ("wat", "wut"),
    "(?:have|has) got": ("got",)}
KNOWN = set(re.findall("[a-z]{2,}", " ".join(sum(
    (*words.WORDINGS.values(), *words.NAMES.values(), words.SUBJECTS, tuple(words.THINGS)), ()))))
LEXICON = sorted(KNOWN)
SMALL_WORDS = r"(?i)\b(?:is|are|was|the|a|an|of|do|does|did|you|it|this|that|in|me|i|to|for)\b ?"
# The words of the language of appreciation. The frozen side knows them, but in no sentence.
OF_ART = sorted({*words.EMOTION_OF.values(), *re.findall(r"\b[a-z]+\b(?!})", " ".join(
    " ".join(texts) for row in (words.ART, *words.PHRASES.values()) for texts in row.values()))})

# ---- As people type


def misspelled(text, rng):
    """The text with a letter inside a known word left out, doubled, changed or swapped."""
    places = [i for found in re.finditer(r"\b[a-z]{3,}\b", text) if found[0] in KNOWN
              for i in range(found.start() + 1, found.end() - 1)]
    if not places:
        return text
    i = rng.choice(places)
    a, b, rest = text[i], text[i + 1], text[i + 2:]
    return text[:i] + rng.choice((a, b, a + a + b, b + a, a + rng.choice("aeinrst"))) + rest


def typed(question, rng):
    """A question as somebody may type it: case, marks, shorthand, fillers, words left out or before
    it, and typos, each by its own chance."""
    for pattern, forms in SHORTHAND.items():
        if rng.random() < 0.12:
            question = re.sub(rf"\b{pattern}\b", rng.choice(forms), question, flags=re.IGNORECASE)
    if rng.random() < 0.06:
        question = re.sub(SMALL_WORDS, "", question) or question
    if rng.random() < 0.05:
        aside = " ".join(rng.sample(LEXICON, rng.randint(2, 9)))
        question = aside + rng.choice((", ", ". ", ": ", " - ", "? ")) + question
    if rng.random() < 0.15:
        before = words.fill("{before}", words.NAMES, rng)
        question = f"{before} {question[0].lower()}{question[1:]}"
    body = question.rstrip(".?!")
    mark = question[len(body):]
    if rng.random() < 0.12:
        body = f"{body} {rng.choice(words.NAMES['after'])}".replace(" ,", ",")
    for _ in range(rng.choice((0, 0, 0, 0, 0, 1, 1, 2))):
        body = misspelled(body, rng)
    if rng.random() < 0.35:
        mark = rng.choice(("", "", "", "?", "??", "!", ".", "...", " ?"))
    form = rng.random()
    if form < 0.35:
        body = body.lower()
    elif form < 0.41:
        body = body.upper()
    return body + mark


def echoed(word, rng):
    """A word, or what may stand in a caption that the frozen side could not write otherwise."""
    one, other = rng.sample(LEXICON, 2)
    blend = words.blend(one, other, rng)
    return rng.choice((word, word, word, word.capitalize(), f"{word}'s", f"{word},",
                       f"{word}-{word}", str(rng.randrange(2100)), words.no_word(rng), other, blend,
                       blend))


# ---- Rounds


def some_topics(count, rng):
    """`count` topics."""
    return rng.choices(words.TOPICS, [OFTEN.get(topic, 1) for topic in words.TOPICS], k=count)


def follow_up(scene, answer, short, rng, art):
    """(question, answer) after an answer, which in a word or two is `short`."""
    form = rng.choice(words.FOLLOW_UPS)
    rules = words.rules_of(scene, art) | {"last": (short,)}
    question = words.sentences(words.fill(rng.choice(words.WORDINGS[form]), rules, rng))
    if form == "again" and len(answer) < 200:
        return question, answer
    if form in ("again", "more"):
        return question, words.description(scene, rng, art)
    return question, words.sentences(words.fill("{tell " + form + "}", rules, rng))


def shown_with(scenes, pairs):
    """Rounds of (question, answer) pairs; the scenes come with the first of them."""
    return [([] if i else list(scenes), *pair) for i, pair in enumerate(pairs)]


def about_one(scene, rng, last=None, most=10, art=True):
    """Rounds about one scene, some with a follow-up or asked for in brief. last: the last topic;
    None draws it. most: the greatest number of topics. In one of ten the first rounds are
    forgotten, as when the context is full."""
    topics, rounds = some_topics(rng.randint(1, most), rng), []
    if last is not None:
        topics[-1] = last
    for topic in topics:
        question, answer, short = words.question(topic, scene, rng, art)
        if rng.random() < BRIEF and topic not in ("poem", "page", "unknown", "greeting", "thanks"):
            body = question.rstrip("?.")
            asked = words.fill("{brief}", words.NAMES | {"asked": (body,)}, rng)
            question = words.sentences(asked) + question[len(body):]
            answer = words.sentences(short) + "."
        rounds.append((question, answer))
        if rng.random() < FOLLOWED:
            rounds.append(follow_up(scene, answer, short, rng, art))
        if not art and rng.random() < ECHOED:
            said = " ".join(echoed(word, rng) for word in rng.sample(OF_ART, rng.randint(1, 8)))
            rounds.append((f"{rng.choice(('Say', 'Repeat', 'Write'))}: {said}", said))
    if rng.random() < 0.1:
        rounds = rounds[rng.randrange(len(rounds)):]
    return shown_with([scene], rounds)


def about_two(first, second, rng, art=True):
    """Rounds about two scenes, which come together or, always if the last topic is not one of
    words.PAIR_TOPICS, the second after some rounds about the first. A question that names neither
    is about the last scene that came."""
    scenes = (first, second)
    more = rng.choices(("both", "which", "which", "one", *some_topics(4, rng)), k=rng.randint(1, 4))
    before, new = [], scenes
    if more[-1] in words.PAIR_TOPICS and rng.random() < 0.5:
        more = [topic if topic in words.PAIR_TOPICS else "one" for topic in more]
    else:
        before, new = about_one(first, rng, most=3, art=art), [second]
    return before + shown_with(new, [
        words.pair_question(topic, scenes, rng, art) if topic in words.PAIR_TOPICS
        else words.question(topic, second, rng, art)[:2] for topic in more])


def prompt_and_answer(rounds, rng):
    """The prompt that ends with the question of the last round, as typed; and the answer to it."""
    messages = []
    for new, question, answer in rounds:
        messages += [" ".join([IMAGE_SLOT] * len(new) + [typed(question, rng)]), answer]
    return chat_prompt(messages[:-1]), messages[-1]
