"""Attention weights, which the model itself never keeps: recorded while it computes."""
import contextlib
from unittest.mock import patch

import torch
import torch.nn.functional as F


@contextlib.contextmanager
def recorded_attention():
    """Within the block, collect the weights (B, H, T, S) of every attention that is computed, in
    order: a list. Keys of grouped queries are repeated, a causal mask is applied."""
    weights = []

    def record(q, k, v, mask=None, is_causal=False, enable_gqa=False):
        if enable_gqa:
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
            v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5
        if is_causal:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights.append(scores.softmax(dim=-1))
        return (weights[-1] @ v.float()).to(v.dtype)

    with patch.object(F, "scaled_dot_product_attention", record):
        yield weights


def watched(qformer, patches):
    """patches (N, P, D of the ViT), after ln_vision -> the queries (N, Q, D), and where they look
    in the last layer that sees the image, (N, Q, P), the mean over its heads."""
    with recorded_attention() as weights:
        queries = qformer(patches)
    return queries, weights[1::3][-1].mean(dim=1)             # of two layers: self, cross, self
