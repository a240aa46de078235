"""Answers from a model, beyond artgpt4.py's one stream: penalties, and many answers at once."""
import torch


def ending_ids(model):
    """The tokens with which an answer can end: EOS, and every piece, or byte, with a "#"."""
    pieces = range(model.tokenizer.get_piece_size())
    with_hash = [i for i in pieces if "#" in model.tokenizer.decode([i])]
    return [model.tokenizer.eos_id(), *with_hash]


def penalties(model, repetition_penalty=1.0, min_new_tokens=0):
    """A function for ArtGPT4.generate's `adjust`, or None where nothing is to be adjusted.

    It takes logits (B, V) and the ids (B, n) of the answer so far. The logits of those ids are
    divided by the penalty (negative ones multiplied). Before min_new_tokens no answer can end.
    """
    if repetition_penalty == 1 and min_new_tokens == 0:
        return None
    endings = ending_ids(model)

    def adjust(logits, chosen):
        if repetition_penalty != 1:
            scores = logits.gather(1, chosen)
            less = torch.where(scores < 0, scores * repetition_penalty, scores / repetition_penalty)
            logits = logits.scatter(1, chosen, less)
        if chosen.shape[1] < min_new_tokens:
            logits[:, endings] = -torch.inf
        return logits
    return adjust


def answer_rows(model, embeds, **sampling):
    """Whole answers to B prompts of equal length, embeds (B, T, D) -> B lists of ids.

    sampling: see ArtGPT4.generate_ids.
    """
    rows = [[] for _ in embeds]
    running = set(range(len(rows)))
    for ids in model.generate_ids(embeds, **sampling):
        ids = ids.tolist()
        for i in running:
            rows[i].append(ids[i])
        running = {i for i in running if not model.has_ended(rows[i])}
        if not running:
            break
    return rows


def answers(model, embeds, **sampling):
    """The texts of answer_rows, B strings."""
    rows = answer_rows(model, embeds, **sampling)
    return [model.decode(row, whole=True).strip() for row in rows]
