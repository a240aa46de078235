"""gallery/attention.py: the probabilities are those with which the model attends."""
import torch

from artgpt4 import QFormer, QFormerConfig, join_heads, split_heads
from gallery.attention import probabilities, watched

CONFIG = QFormerConfig(width=8, layers=3, heads=2, mlp_width=16, queries=4)


def a_qformer():
    torch.manual_seed(0)
    qformer = QFormer(CONFIG, image_width=6)
    torch.nn.init.normal_(qformer.queries)
    return qformer, torch.randn(2, 5, 6)


def test_watching_does_not_change_the_queries():
    qformer, patches = a_qformer()
    queries, attention = watched(qformer, patches)
    assert torch.equal(queries, qformer(patches))
    assert attention.shape == (2, 4, 5)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 4))


def test_the_last_cross_attention_is_watched():
    qformer, patches = a_qformer()
    before = watched(qformer, patches)[1]
    with torch.no_grad():
        qformer.layers[0].cross_attn.key.weight.mul_(0)        # changes what the last one is given
        qformer.layers[2].cross_attn.key.weight.mul_(0)
        qformer.layers[2].cross_attn.key.bias.mul_(0)
    after = watched(qformer, patches)[1]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, torch.full((2, 4, 5), 1 / 5))


def test_values_mixed_by_the_probabilities_give_the_models_output():
    qformer, patches = a_qformer()
    layer = qformer.layers[0].cross_attn
    layer.heads = 1                                 # the mean over heads is then the head
    x = torch.randn(2, 4, 8)
    mixed = probabilities(layer, x, patches)[:, None] @ split_heads(layer.value(patches), 1)
    torch.testing.assert_close(layer.norm(x + layer.out(join_heads(mixed))), layer(x, patches))
