"""Attention weights, which the model itself never keeps: recorded while it computes."""
import contextlib
from unittest import mock

import torch
import torch.nn.functional as F


@contextlib.contextmanager
def recorded_attention():
    """Within the block, collect the weights (B, H, T, S) of every attention that is computed, in
    order: a list. They are what it gives where the values are the rows of the identity."""
    weights, attend = [], F.scaled_dot_product_attention

    def record(q, k, v, mask=None, **options):
        identity = torch.eye(k.shape[2], device=k.device).expand(*k.shape[:2], -1, -1)
        weights.append(attend(q.float(), k.float(), identity, mask, **options))
        return attend(q, k, v, mask, **options)

    with mock.patch.object(F, "scaled_dot_product_attention", record):
        yield weights


def watched(qformer, patches):
    """patches (N, P, D of the ViT), after ln_vision -> the queries (N, Q, D), and where they look
    in the last layer that sees the image, (N, Q, P), the mean over its heads."""
    with recorded_attention() as weights:
        queries = qformer(patches)
    return queries, weights[1::3][-1].mean(dim=1)             # of two layers: self, cross, self
