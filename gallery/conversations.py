"""Conversations about one scene or two, of questions and answers from words.py."""
from artgpt4 import IMAGE_SLOT, chat_prompt
from gallery import words

# How often a question is about a topic: the harder ones more often.
OFTEN = {"description": 3, "presence": 4, "kind": 3, "count": 3, "spot": 2, "subject": 2, "page": 2,
         "unknown": 2}


def some_topics(count, rng):
    """`count` different topics."""
    weights = {topic: OFTEN.get(topic, 1) for topic in ("description", *words.TOPICS)}
    chosen = []
    for _ in range(count):
        topic = rng.choices(list(weights), list(weights.values()))[0]
        chosen.append(topic)
        del weights[topic]
    return chosen


def about_one(scene, rng, last=None, most=5):
    """Rounds about one scene: [([scene, if it comes with the question], question, answer), ...].

    last: the topic of the last round; None draws it. most: the greatest number of rounds.
    """
    if last is None and rng.random() < 0.1:
        rounds = words.dialogue(scene, rng)
    else:
        topics = some_topics(rng.randint(1, most), rng)
        if last is not None:
            topics[-1] = last
        rounds = [words.question(topic, scene, rng) for topic in topics]
    shown = [[scene]] + [[]] * (len(rounds) - 1)
    return [(new, *pair) for new, pair in zip(shown, rounds, strict=True)]


QUIZ = ("presence", "presence", "kind", "kind", "count", "spot")


def quiz(first, second, rng):
    """Rounds of questions that name something which is there or not, about one scene or two.

    A quarter asks which of two scenes is something. In another quarter the second scene comes
    later, and the questions from there on are about it.
    """
    scenes, form = (first, second), rng.random()
    if form < 0.25:
        rounds = [words.pair_question("which", scenes, rng) for _ in range(rng.randint(1, 5))]
        shown = [list(scenes)] + [[]] * (len(rounds) - 1)
    else:
        counts = (rng.randint(1, 4), rng.randint(1, 4)) if form < 0.5 else (rng.randint(1, 9),)
        rounds, shown = [], []
        for scene, count in zip(scenes, counts, strict=False):
            rounds += [words.question(topic, scene, rng) for topic in rng.choices(QUIZ, k=count)]
            shown += [[scene]] + [[]] * (count - 1)
    return [(new, *pair) for new, pair in zip(shown, rounds, strict=True)]


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
    is_about_pair = last is None or last in words.PAIR_TOPICS
    together = is_about_pair and rng.random() < 0.5
    if together:
        more = [topic if topic in words.PAIR_TOPICS else "one" for topic in more]
        rounds, new = [], list(scenes)
    else:
        [topic] = some_topics(1, rng)
        rounds, new = about_one(first, rng, topic, most=3), [second]
    for topic in more:
        if topic in words.PAIR_TOPICS:
            pair = words.pair_question(topic, scenes, rng)
        else:
            pair = words.question(topic, second, rng)
        rounds.append((new, *pair))
        new = []
    return rounds


def prompt_and_answer(rounds, rng, hurry=0.25):
    """The prompt of a conversation that ends with the question of its last round, and its answer.

    A share `hurry` of the questions is in lower case, without a full stop.
    """
    messages = []
    for new, question, answer in rounds:
        if rng.random() < hurry:
            question = words.in_a_hurry(question)
        messages += [" ".join([IMAGE_SLOT] * len(new) + [question]), answer]
    return chat_prompt(messages[:-1]), messages[-1]
