import copy

import pytest
import torch

from sed_d2.modeling.fast.class_attention import add_attention_, class_attention_, fuse_qkv
from sed_d2.modeling.layers.class_attention import ClassAttention, LinearAttention


def add_(attention: LinearAttention, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Compute ``x += attention(y)`` in place."""
    add_attention_(x, y, fuse_qkv(attention), attention.num_heads, attention.eps)
    return x


@pytest.mark.parametrize("dim, heads", [(8, 2), (32, 4), (64, 4), (64, 2), (48, 3), (16, 16)])
@torch.no_grad()
def test_attention_in_place_is_the_plain_attention(dim, heads):
    torch.manual_seed(0)
    attention = LinearAttention(dim, heads)
    y = 3 * torch.randn(5, 9, dim)  # nine classes at five positions
    x = torch.randn(5, 9, dim)
    expected = x + attention(y)
    torch.testing.assert_close(add_(attention, x, y), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_survives_half_precision():
    attention = LinearAttention(8, 2).half()
    torch.nn.init.constant_(attention.q.bias, -20)  # elu(.) + 1 rounds to 0
    torch.nn.init.constant_(attention.k.bias, 300)
    y = add_(attention, torch.zeros(2, 847, 8).half(), torch.randn(2, 847, 8).half())
    assert y.dtype == torch.float16 and torch.isfinite(y).all()


@torch.no_grad()
def test_attention_of_many_classes_in_half_precision():
    """With small weights of v and 2,000 classes no summand underflows."""
    torch.manual_seed(0)
    attention = LinearAttention(16, 2)
    attention.v.weight.mul_(0.02)
    y = torch.randn(2, 2000, 16)
    exact = add_(attention, torch.zeros_like(y), y)
    half = add_(attention.half(), torch.zeros_like(y).half(), y.half())
    assert (half.float() - exact).std() < 1.5e-3 * exact.std()


@pytest.mark.parametrize("pooling", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("chunk", [1, 1000, 10**6])
@torch.no_grad()
def test_class_attention_in_place_is_the_plain_layer(pooling, chunk):
    torch.manual_seed(0)
    layer = ClassAttention(8, 2)
    x = torch.randn(7, 8, 4, 5).contiguous(memory_format=torch.channels_last)
    expected = layer(x, 1, pooling)
    class_attention_(layer, fuse_qkv(layer.attention), x, pooling, chunk)
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_fusing_leaves_the_layer_alone():
    attention = LinearAttention(8, 2)
    before = copy.deepcopy(attention.state_dict())
    add_(attention, torch.randn(5, 9, 8), torch.randn(5, 9, 8))
    for name, value in attention.state_dict().items():
        assert torch.equal(value, before[name]), name
