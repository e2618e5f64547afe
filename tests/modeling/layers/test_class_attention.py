import math

import pytest
import torch

from sed_d2.modeling.layers.class_attention import ClassAttention, LinearAttention


def test_linear_attention_by_hand():
    attention = LinearAttention(1, 1)
    for layer in (attention.q, attention.k, attention.v):
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x = torch.tensor([2.0, -1.0]).view(1, 2, 1)  # two tokens
    # k = elu(x) + 1 = 3 and 1/e; whatever q is, y = (3 * 2 - 1/e) / (3 + 1/e).
    expected = (6 - math.exp(-1)) / (3 + math.exp(-1))
    assert attention(x).flatten().tolist() == pytest.approx([expected, expected], rel=1e-5)


def test_heads_do_not_mix():
    """Each head is an attention of its channels."""
    torch.manual_seed(0)
    attention = LinearAttention(8, 2)
    for layer in (attention.q, attention.k, attention.v):
        layer.weight.data[:4, 4:] = layer.weight.data[4:, :4] = 0
    x = torch.randn(3, 5, 8)
    changed = torch.cat([x[..., :4], torch.randn(3, 5, 4)], dim=-1)
    torch.testing.assert_close(attention(x)[..., :4], attention(changed)[..., :4])
    assert not torch.allclose(attention(x)[..., 4:], attention(changed)[..., 4:])


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 10 cannot be split into 4 heads"):
        LinearAttention(10, 4)


def test_linear_attention_stays_finite_in_half_precision():
    attention = LinearAttention(8, 2).half()
    torch.nn.init.constant_(attention.q.bias, -20)  # elu(.) + 1 rounds to 0
    torch.nn.init.constant_(attention.k.bias, 300)  # the sum over 847 classes overflows float16
    y = attention(torch.randn(2, 847, 8).half())
    assert y.dtype == torch.float16 and torch.isfinite(y).all()


def test_class_attention_pools_and_restores_the_size():
    torch.manual_seed(0)
    layer = ClassAttention(8, 2)
    x = torch.randn(1, 8, 4, 6).expand(3, 8, 4, 6)  # three times the same class
    y = layer(x, 1, (2, 2))
    assert y.shape == x.shape
    torch.testing.assert_close(y[0], y[1])
    flat = torch.ones(3, 8, 4, 6)  # pooling and upsampling keep a constant map
    torch.testing.assert_close(layer(flat, 1, (2, 2)), layer(flat, 1, (1, 1)))


@pytest.mark.parametrize("pooling", [(1, 1), (2, 2)])
def test_only_the_classes_of_one_image_attend_to_each_other(pooling):
    torch.manual_seed(0)
    layer = ClassAttention(8, 2)
    x = torch.randn(6, 8, 4, 6)  # two images of three classes
    alone = torch.cat([layer(x[:3], 1, pooling), layer(x[3:], 1, pooling)])
    torch.testing.assert_close(layer(x, 2, pooling), alone)
    order = [2, 0, 1]
    torch.testing.assert_close(layer(x[:3][order], 1, pooling), alone[:3][order])
