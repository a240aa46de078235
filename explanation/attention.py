"""Attention weights: who looks where, and how much.

The model calls F.scaled_dot_product_attention, which returns what was found but not the weights.
Here they are computed once more, by the modules of the model itself:

    weights = softmax(q k^T / sqrt(d))        each row sums to 1;  weights @ v is what was found

Shapes: B images or sequences, T tokens, Q queries, P patches + 1, H heads, d width of a head.
"""
import torch

from artgpt4 import rotate, split_heads


def weights(q, k):
    """q (B, H, N, d), k (B, H, M, d) -> (B, H, N, M), float32."""
    scores = q.float() @ k.float().transpose(-1, -2)
    return (scores / q.shape[-1] ** 0.5).softmax(dim=-1)


def qformer_weights(attention, x, source):
    """What a QFormerAttention looks at: x (B, Q, D), source (B, P, D of the ViT) -> (B, H, Q, P).
    """
    q = split_heads(attention.query(x), attention.heads)
    k = split_heads(attention.key(source), attention.heads)
    return weights(q, k)


def last_token_weights(attention, qkv, cos, sin, cache):
    """What the last token looks at in a LlamaAttention that has just run -> (B, H, length + T).

    qkv: what attention.qkv gave, (B, T, ...); cos, sin: of the T positions; cache: it holds the
    keys of all tokens, but `length` is still without the T.
    """
    tokens = qkv.shape[1]
    q = qkv[:, -1:, :attention.widths[0]]
    q = rotate(split_heads(q, attention.heads), cos[-1:], sin[-1:])
    keys, _ = cache.layers[attention.layer]
    k = keys[:, :, :cache.length + tokens]
    k = torch.repeat_interleave(k, attention.heads // attention.kv_heads, dim=1)
    return weights(q, k)[:, :, 0]
