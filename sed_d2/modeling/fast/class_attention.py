"""Class attention in place, a few positions at a time."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.class_attention import ClassAttention, LinearAttention
from .linear import add_mlp_, linear


class FusedQKV(NamedTuple):
    """q, k and v as one linear layer.

    q and k come in units of ln 2, because torch's exp2 takes a third of the time of exp in float32.
    Each head of v has one more output, which is always 1: its product is the normaliser.
    """

    weight: Tensor
    bias: Tensor


def fuse_qkv(layer: LinearAttention) -> FusedQKV:
    """Fold the three projections of a layer into one."""
    dim, heads = layer.v.in_features, layer.num_heads
    v_weight = F.pad(layer.v.weight.view(heads, -1, dim), (0, 0, 0, 1)).flatten(0, 1)
    v_bias = F.pad(layer.v.bias.view(heads, -1), (0, 1), value=1.0).flatten()
    return FusedQKV(
        torch.cat([layer.q.weight / math.log(2), layer.k.weight / math.log(2), v_weight]),
        torch.cat([layer.q.bias / math.log(2), layer.k.bias / math.log(2), v_bias]),
    )


def add_attention_(x: Tensor, y: Tensor, qkv_layer: FusedQKV, num_heads: int, eps: float) -> None:
    """Compute ``x += LinearAttention.forward(y)``.

    Args:
        x: (S, T, C), contiguous.
        y: (S, T, C), contiguous.
        qkv_layer: see :func:`fuse_qkv`.
        num_heads: of the attention.
        eps: of the attention.
    """
    positions, tokens, dim = y.shape
    width = dim // num_heads
    qkv = linear(y.flatten(0, 1), *qkv_layer).view(positions, tokens, -1)
    qk, v = qkv.tensor_split([2 * dim], dim=-1)
    # elu(x) + 1 = exp(min(x, 0)) + max(x, 0), and exp(x) = 2^(x / ln 2)
    qk = qk.clamp(max=0).exp2_().add_(qk.clamp_min_(0), alpha=math.log(2))
    # Narrow heads share a product, and the products of one head's k with another's v are masked:
    # one product of 32 columns takes less time than four of 8.
    heads = math.gcd(num_heads, max(1, 32 // width))
    off_diagonal = torch.block_diag(*[y.new_ones(width, width + 1)] * heads) == 0
    groups = zip(
        *(z.split(heads * width, dim=-1) for z in qk.chunk(2, dim=-1)),
        v.split(heads * (width + 1), dim=-1),
        x.view(positions, tokens, num_heads, width).split(heads, dim=2),
        strict=True,
    )
    ignored = y.new_empty(1)
    for q, k, head_v, head_x in groups:
        # Means over T, as in the plain form: sums over many classes overflow in float16.
        kv = torch.baddbmm(ignored, k.transpose(1, 2), head_v, beta=0, alpha=1 / tokens)
        z = torch.bmm(q, kv.masked_fill_(off_diagonal, 0)).unflatten(-1, (heads, -1)).float()
        # z: (S, T, heads, d + 1). With mixed precisions addcdiv takes twice the time.
        normaliser = z[..., -1:] + eps / tokens
        head_x.copy_(torch.addcdiv(head_x.float(), z[..., :-1], normaliser))


def class_attention_(
    layer: ClassAttention, qkv: FusedQKV, x: Tensor, pooling: tuple[int, int], chunk: int
) -> None:
    """Compute ``x = layer(x, 1, pooling)``.

    Args:
        layer: its norms and MLP have x's precision.
        qkv: of the layer's attention.
        x: (T, C, H, W) channels last.
        pooling: (height, width) of a cell.
        chunk: elements that are worked on at a time (at least one position).
    """
    pools = tuple(pooling) != (1, 1)
    tokens = (F.avg_pool2d(x, pooling) if pools else x).permute(0, 2, 3, 1)  # (T, h, w, C)
    height, width = tokens.shape[1:3]
    attention = layer.attention
    first, second = (part for part in layer.mlp if isinstance(part, nn.Linear))
    scale = x.new_ones(())
    # Positions are independent, classes are not. The tokens of a position next to each other are
    # a matrix for each head as they are, and stay in the cache.
    tokens = tokens.flatten(1, 2).transpose(0, 1)  # (h * w, T, C)
    for part in tokens.split(max(1, chunk // (len(x) * first.out_features))):
        y = part.clone(memory_format=torch.contiguous_format)  # (S, T, C)
        add_attention_(y, layer.norm1(y), qkv, attention.num_heads, attention.eps)
        rows = y.flatten(0, 1)
        add_mlp_(rows, layer.norm2(rows), first, F.relu_, second, scale, chunk)
        if pools:
            part.copy_(y)
        else:
            part += y
    if pools:
        y = tokens.unflatten(0, (height, width)).permute(2, 3, 0, 1)
        step = max(1, chunk // x[0].numel())
        for x_part, y_part in zip(x.split(step), y.split(step), strict=True):
            x_part += F.interpolate(y_part, size=x.shape[-2:], mode="bilinear", align_corners=True)
