"""Judges that are programs: a server's model, each answer by itself or together, and the gallery's
rules.

A judge does not learn which model said what. It gives a whole number from 0 to 5 and a reason. A
reply that leaves room for doubt is never guessed at: the server is asked again, and after REPLIES
unusable replies the answer stays unjudged.
"""
import random
from collections import Counter

from common.progress import Progress
from evaluation.records import append_record, read_records
from evaluation.verdicts import LETTERS
from gallery import benchmark as gallery


def by_server(judge, said, repeats, seed, file, ask_again=False):
    """{id: a verdict for each of `repeats`}, asked in random order; none is asked for twice.

    said: {id: Said}. `file` keeps the verdicts; those that are there already are taken from it.
    ask_again: ask once more about those that stayed unjudged.
    """
    fields = ("judge", "answer", "repeat", "score", "reason", "replies")
    known = {}
    for record in read_records(file, fields):
        was_paid_for = record["replies"] and not ask_again
        if record["judge"] == judge.name and (record["score"] is not None or was_paid_for):
            known[record["answer"], record["repeat"]] = record
    wanted = [(id, repeat) for repeat in range(repeats) for id in sorted(said)]
    done = sum(key in known for key in wanted)
    progress = Progress("scores", len(wanted), "answers", before=done)
    for id, repeat in random.Random(seed).sample(wanted, len(wanted)):
        if (id, repeat) in known:
            continue
        item, answers = said[id]
        record = {"judge": judge.name, "answer": id, "repeat": repeat} | judge(item, answers)
        append_record(file, record)
        known[id, repeat] = record
        done += 1
        progress.show(done)
    return {id: [known[id, repeat] for repeat in range(repeats)] for id in said}


def by_server_together(judge, said, repeats, seed, file, ask_again=False):
    """The same, but the judge sees all models' answers to an item at once, under letters.

    Which letter a model has is drawn for every item and repeat. `file` keeps a record for every
    request; other answers beside an answer are another request.
    """
    groups = {}                                               # item name -> [id]
    for id in sorted(said):
        groups.setdefault(said[id].item.name, []).append(id)
    known = {}
    for record in read_records(file, ("judge", "answers", "repeat", "verdicts", "replies")):
        judged = [verdict["score"] is not None for verdict in record["verdicts"].values()]
        was_paid_for = record["replies"] and not ask_again
        if record["judge"] == judge.name and (all(judged) or was_paid_for):
            known[tuple(sorted(record["verdicts"])), record["repeat"]] = record["verdicts"]
    wanted = [(name, repeat) for repeat in range(repeats) for name in groups]
    done = sum((tuple(groups[name]), repeat) in known for name, repeat in wanted)
    progress = Progress("scores", len(wanted), "items", before=done)
    for name, repeat in random.Random(seed).sample(wanted, len(wanted)):
        ids = tuple(groups[name])
        if (ids, repeat) in known:
            continue
        order = random.Random(f"{seed} {name} {repeat}").sample(ids, len(ids))
        letters = dict(zip(LETTERS, order, strict=False))
        shown = {letter: said[id].answers for letter, id in letters.items()}
        found, replies = judge.together(said[ids[0]].item, shown)
        verdicts = {letters[letter]: verdict for letter, verdict in found.items()}
        append_record(file, {"judge": judge.name, "answers": letters, "repeat": repeat,
                             "verdicts": verdicts, "replies": replies})
        known[ids, repeat] = verdicts
        done += 1
        progress.show(done)
    return {id: [known[tuple(groups[entry.item.name]), repeat][id] for repeat in range(repeats)]
            for id, entry in said.items()}


def unjudged(scores):
    """A line on the verdicts without a score: their number and the commonest reason; "" if none.

    scores: {id: verdicts}.
    """
    every = [verdict for verdicts in scores.values() for verdict in verdicts]
    reasons = Counter(verdict["reason"] for verdict in every if verdict["score"] is None)
    if not reasons:
        return ""
    [(reason, _)] = reasons.most_common(1)
    return (f"{reasons.total()} of {len(every)} answers are unjudged, most often because: {reason} "
            "(--ask-again asks for them once more)")


# ---- The gallery's rules


def by_rule(said, truth):
    """{id: [verdict]} by the gallery's rules. truth: what gallery.benchmark.truth returns.

    Raises ValueError for a picture or a question that is not the gallery's.
    """
    scores = {}
    for id, (item, answers) in said.items():
        key, own = (item.benchmark, str(item.number)), gallery.QUESTIONS[item.benchmark]
        own = (own,) if isinstance(own, str) else tuple(own)
        if key not in truth or item.questions != own:
            raise ValueError(f"{item.file}: the gallery's rules judge its own pictures and "
                             "questions alone; choose another judge")
        score, reason = gallery.RULES[item.benchmark](truth[key], item.questions, answers)
        scores[id] = [{"score": score, "reason": reason}]
    return scores
