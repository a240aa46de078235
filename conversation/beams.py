"""Beam search: the likeliest whole answer instead of the likeliest next token.

The released code answers by sampling or with beams; this is the search of transformers' generate,
with early stopping once as many answers as there are beams have ended.
"""
import torch

from artgpt4 import KVCache
from common.answering import penalties


def select(cache, rows):
    """A new cache with some rows of a cache's batch. rows: their indices, which may repeat."""
    chosen = KVCache()
    chosen.length = cache.length
    chosen.layers = {layer: stored[:, rows] for layer, stored in cache.layers.items()}
    return chosen


def reorder(cache, rows, start):
    """Put rows[i] of a cache's batch in place of each row i, from token `start` on: before it all
    rows are the same."""
    for stored in cache.layers.values():
        answers = stored[:, :, :, start:cache.length]
        answers.copy_(answers[:, rows])                       # indexing makes a copy first


def next_logits(model, embeds, cache):
    """Logits (B, V) of the token after embeds (B, T, D)."""
    return model.llama.logits(model.llama.hidden(embeds, cache, first=-1)[:, 0])


@torch.inference_mode()
def beam_search(model, embeds, beams, max_new_tokens=300, repetition_penalty=1.0, min_new_tokens=0,
                cache=None, length_penalty=1.0):
    """The ids of the likeliest answer that a search with `beams` beams finds.

    The score of an answer is its log-probability / length ** length_penalty. The search keeps the
    best `beams` unfinished answers. It ends when as many finished ones score at least as well as
    the best unfinished one does so far.

    embeds: the prompt, (1, T, D). cache: a KVCache of the text before embeds; afterwards it holds
    embeds too, but not the answer. repetition_penalty, min_new_tokens: as for a single answer.
    """
    cache = KVCache() if cache is None else cache
    adjust = penalties(model, repetition_penalty, min_new_tokens)
    rows = [[]]                                               # the unfinished answers
    scores = torch.zeros(1, device=embeds.device)             # their log-probabilities
    finished = []                                             # (score, answer)
    prompt_length = cache.length + embeds.shape[1]
    for length in range(1, max_new_tokens + 1):
        chosen = torch.tensor(rows, dtype=torch.long, device=embeds.device)
        logits = next_logits(model, embeds, cache)
        if adjust is not None:
            logits = adjust(logits, chosen)
        totals = scores[:, None] + logits.log_softmax(dim=-1)                # (beams, V)
        best, places = totals.flatten().topk(2 * beams)                # half of them may end here

        unfinished = []
        for rank, (score, place) in enumerate(zip(best.tolist(), places.tolist(), strict=True)):
            parent, token = divmod(place, logits.shape[1])
            row = rows[parent] + [token]
            if not model.has_ended(row):
                unfinished.append((score, parent, row))
            elif rank < beams:
                finished.append((score / length ** length_penalty, row))
        unfinished = unfinished[:beams]
        if not unfinished:
            break

        best_unfinished = unfinished[0][0] / length ** length_penalty
        if sum(score >= best_unfinished for score, _ in finished) >= beams:
            break
        totals, parents, rows = zip(*unfinished, strict=True)
        scores = torch.tensor(totals, device=embeds.device)
        if length == 1 or len(parents) != len(embeds):
            cache = select(cache, list(parents))              # the one that was given stays
        else:
            reorder(cache, list(parents), prompt_length)
        last = torch.tensor(rows, device=embeds.device)[:, -1:]
        embeds = model.llama.embed(last)
    finished += [(score / length ** length_penalty, row) for score, _, row in unfinished]
    _, answer = max(finished)
    return answer
