"""A painting that nobody has seen: the model describes it, then the truth is revealed."""
from artgpt4 import INSTRUCTIONS
from gallery.painting import paint
from gallery.scenes import SEEN_PAIRS, UNSEEN_PAIRS, random_scenes
from gallery.words import listed, named

GREEN, RED = 32, 31


def surprise_scene(seed):
    """The scene of a seed; none of the training's are made from such seeds."""
    scene, = random_scenes(1, f"surprise {seed}", SEEN_PAIRS + UNSEEN_PAIRS)
    return scene


def verdict(scene, text):
    """[(mark, attribute, true value, what the text names)] of a text about a scene. The mark is
    True or False, or None where a text is not checked."""
    said = named(text)
    rows = [(said[attribute] == value, attribute, value, said[attribute])
            for attribute, value in scene.attributes.items()]
    rows.append((None, "place", scene.composition, None))
    if scene.things:
        rows.append((None, "things", listed(scene.things), None))
    return rows


def verdict_text(rows, colours):
    """The rows of verdict as lines, "right" in green and "wrong" in red where there are colours."""
    lines = []
    for mark, attribute, value, said in rows:
        word, colour = ("right", GREEN) if mark else ("wrong", RED)
        if mark is None:
            word = ""
        line = f"{word:<6}"
        if word and colours:
            line = f"\x1b[{colour}m{line}\x1b[0m"
        line += f"{attribute:<8} {value}"
        if mark is False:
            line += f"; it said {said}" if said else "; it named none, or several"
        lines.append(line)
    return "\n".join(lines)


def surprise(session, seed):
    """Paint the scene of a seed, show it, print the model's description, then the truth."""
    terminal = session.terminal
    session.conversation.set("seed", seed)
    scene = surprise_scene(seed)
    terminal.say(f"painting number {seed}, which nobody has seen", dim=True)
    image = paint(scene)
    terminal.show(image)
    session.add_image(image, f"painting {seed}")
    session.say(INSTRUCTIONS[0])

    answer = session.conversation.rounds[-1].answer if session.conversation.rounds else ""
    rows = verdict(scene, answer)
    marks = [mark for mark, *_ in rows if mark is not None]
    print(f"\nWhat it is, and whether it was said:\n"
          f"{verdict_text(rows, terminal.read and terminal.colours)}\n"
          f"{sum(marks)} of {len(marks)} right", flush=True)
    terminal.say(f"this one again: --surprise --seed {seed}", dim=True)
