"""Conversations about one scene or two, of questions and answers from words.py.

A round is ([the scenes that come with the question], question, answer).
"""
from artgpt4 import IMAGE_SLOT, chat_prompt
from gallery import words

# How often a question is about a topic: the harder ones more often.
OFTEN = {"description": 3, "presence": 4, "kind": 3, "count": 3, "spot": 2, "subject": 2, "page": 2,
         "unknown": 2}
QUIZ = ("presence", "presence", "kind", "kind", "count", "spot")


def some_topics(count, rng):
    """`count` different topics."""
    weights = {topic: OFTEN.get(topic, 1) for topic in ("description", *words.TOPICS)}
    chosen = []
    for _ in range(count):
        chosen += rng.choices(list(weights), list(weights.values()))
        del weights[chosen[-1]]
    return chosen


def shown_with(scenes, pairs):
    """Rounds of (question, answer) pairs; the scenes come with the first of them."""
    return [([] if i else list(scenes), *pair) for i, pair in enumerate(pairs)]


def about_one(scene, rng, last=None, most=5):
    """Rounds about one scene. last: the topic of the last round; None draws it. most: the greatest
    number of rounds."""
    if last is None and rng.random() < 0.1:
        return shown_with([scene], words.dialogue(scene, rng))
    topics = some_topics(rng.randint(1, most), rng)
    if last is not None:
        topics[-1] = last
    return shown_with([scene], [words.question(topic, scene, rng) for topic in topics])


def quiz(first, second, rng):
    """Rounds of questions that name something which is there or not, about one scene or two.

    A quarter asks which of two scenes is something. In another quarter the second scene comes
    later, and the questions from there on are about it.
    """
    form = rng.random()
    if form < 0.25:
        count = rng.randint(1, 5)
        return shown_with((first, second), [words.pair_question("which", (first, second), rng)
                                            for _ in range(count)])
    counts = (rng.randint(1, 4), rng.randint(1, 4)) if form < 0.5 else (rng.randint(1, 9),)
    rounds = []
    for scene, count in zip((first, second), counts, strict=False):
        rounds += shown_with([scene], [words.question(topic, scene, rng)
                                       for topic in rng.choices(QUIZ, k=count)])
    return rounds


def about_two(first, second, rng, last=None):
    """Rounds about two scenes, which come together or one after the other; see about_one.

    A question that names neither is about the last scene that came. last: the topic of the last
    round; None draws it. If it is not one of words.PAIR_TOPICS, the second scene comes later, after
    one to three rounds about the first.
    """
    scenes = (first, second)
    topics = ("both", "which", "one", "one", *some_topics(4, rng))
    more = rng.choices(topics, k=rng.choice((1, 2)))
    if last is not None:
        more[-1] = last
    before, new = [], scenes
    if (last is None or last in words.PAIR_TOPICS) and rng.random() < 0.5:
        more = [topic if topic in words.PAIR_TOPICS else "one" for topic in more]
    else:
        [topic] = some_topics(1, rng)
        before, new = about_one(first, rng, topic, most=3), [second]
    return before + shown_with(new, [
        words.pair_question(topic, scenes, rng) if topic in words.PAIR_TOPICS
        else words.question(topic, second, rng) for topic in more])


def prompt_and_answer(rounds, rng, hurry=0.25):
    """The prompt of a conversation that ends with the question of its last round, and its answer.

    A share `hurry` of the questions is as some type them: in lower case, without a full stop.
    """
    messages = []
    for new, question, answer in rounds:
        if rng.random() < hurry:
            question = question.lower().rstrip(".?!")
        messages += [" ".join([IMAGE_SLOT] * len(new) + [question]), answer]
    return chat_prompt(messages[:-1]), messages[-1]
