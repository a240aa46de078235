"""Answers in the layout of the authors' evaluation folder, where two models share a text.

    FOLDER/IDC/1.jpg, 2.webp ...     FOLDER/IDC/Answer.txt: "1.", then "A:..." and "M:...", "2." ...
    FOLDER/MDIUC/1.jpg ...           FOLDER/MDIUC/Answer1.txt: a question, then "A:..." and "M:...",
                                     the next question ...

A letter stands for a model, in the released files A for ArtGPT-4 and M for MiniGPT-4.
"""
import re
import sys
from collections import Counter


def text_of(file):
    """The text of a file. Raises ValueError, naming it, if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ValueError(f"{file}: cannot be read ({reason})") from None


def by_letter(text):
    """(what stands before the first letter, {letter: its text}) of "A:..." and "M:..."."""
    before, *parts = re.split(r"^([A-Z])[ \t]*:", text, flags=re.MULTILINE)
    return before.strip(), dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))


def numbered_answers(file):
    """{number of a picture: {letter: answer}} of an Answer.txt."""
    _, *parts = re.split(r"^[ \t]*(\d+)\.[ \t]*$", text_of(file), flags=re.MULTILINE)
    blocks = zip(parts[::2], parts[1::2], strict=True)
    found = {int(number): by_letter(block)[1] for number, block in blocks}
    if not found:
        raise ValueError(f'{file}: no answers in it; expected are lines such as "1." and below '
                         'them "A:..." and "M:..."')
    return found


def rounds(file):
    """[(question, {letter: answer})] of an Answer1.txt: a question is the line before a round's
    first letter."""
    first, found = None, []
    for line in text_of(file).splitlines():
        letter = line[:1] if re.match(r"[A-Z][ \t]*:", line) else ""
        first = first or letter
        if letter and letter == first:
            before = found[-1] if found else []
            while before and not before[-1].strip():
                before.pop()
            question = before.pop() if before else ""
            found.append([question])
        if not found:
            found.append([])
        found[-1].append(line)
    dialogue = []
    for question, *lines in found[1:]:
        dialogue.append((question.strip(), by_letter("\n".join(lines))[1]))
    if not dialogue or not all(question for question, _ in dialogue):
        raise ValueError(f'{file}: no dialogue in it; expected are questions and below each '
                         '"A:..." and "M:..."')
    return dialogue


def dialogue_questions(folder, number):
    """The questions of MDIUC/AnswerN.txt, a tuple; None without such a file."""
    file = folder / "MDIUC" / f"Answer{number}.txt"
    return tuple(question for question, _ in rounds(file)) if file.is_file() else None


def answer_of(letter, answers, usual, where):
    """A letter's answer among {letter: answer}.

    usual: the letters of the whole file. One that is not usual stands for the one that is missing:
    the released Answer1.txt has a B where it means M. Raises ValueError if there is no answer.
    """
    missing, odd = usual - answers.keys(), answers.keys() - usual
    if letter not in answers and missing == {letter} and len(odd) == 1:
        [found] = odd
        print(f"{where}: {found} is taken for {letter}", file=sys.stderr)
        return answers[found]
    if not answers.get(letter):
        raise ValueError(f"{where}: no answer of {letter!r}, found {', '.join(answers) or 'none'}")
    return answers[letter]


def usual_letters(blocks):
    """The letters that more than half of [{letter: answer}] have."""
    counts = Counter(letter for answers in blocks for letter in answers)
    return {letter for letter, count in counts.items() if 2 * count > len(blocks)}


def released_answers(folder, letter):
    """{(benchmark, number): (questions or None, answers)} of one letter in a folder.

    Raises ValueError, naming file and place, for what is not in the layout above.
    """
    found = {}
    for file in sorted(folder.glob("*/Answer*.txt")):
        benchmark, number = file.parent.name, file.stem.removeprefix("Answer")
        if number.isdecimal():
            dialogue = rounds(file)
            usual = usual_letters([answers for _, answers in dialogue])
            texts = [answer_of(letter, answers, usual, f"{file}, round {i}")
                     for i, (_, answers) in enumerate(dialogue, start=1)]
            questions = tuple(question for question, _ in dialogue)
            found[benchmark, int(number)] = questions, texts
        elif not number:
            blocks = numbered_answers(file)
            usual = usual_letters(blocks.values())
            for number, answers in blocks.items():
                text = answer_of(letter, answers, usual, f"{file}, picture {number}")
                found[benchmark, number] = None, [text]
    if not found:
        raise ValueError(f"{folder}: no answers; expected are IDC/Answer.txt, MDIUC/Answer1.txt "
                         "and others")
    return found
