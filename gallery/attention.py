"""Where the queries of a Q-Former look.

The model's fused attention does not return its probabilities, so they are computed again here.
"""


def probabilities(attention, x, source):
    """softmax(q k / sqrt(d)) of a QFormerAttention, mean over its heads.

    x (B, Q, D), source (B, P, Dv) -> (B, Q, P); each row has the sum 1.
    """
    q = attention.query(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2)      # (B, H, Q, d)
    k = attention.key(source).unflatten(-1, (attention.heads, -1)).transpose(1, 2)   # (B, H, P, d)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.softmax(dim=-1).mean(dim=1)


def watched(qformer, patches):
    """The forward pass of a QFormer, with the attention of its last cross-attention layer.

    patches (B, P, Dv), after ln_vision -> (queries (B, Q, D), probabilities (B, Q, P)).
    """
    last = [layer.cross_attn for layer in qformer.layers if layer.cross_attn is not None][-1]
    inputs = []
    hook = last.register_forward_pre_hook(lambda module, given: inputs.extend(given))
    queries = qformer(patches)
    hook.remove()
    return queries, probabilities(last, *inputs)
