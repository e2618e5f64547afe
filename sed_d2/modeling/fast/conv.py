"""Convolutions with few channels, as linear layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .linear import linear


def conv_to_one(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Compute a 3×3 convolution to one channel.

    In float32 its nine taps are the outputs of a linear layer, shifted and added: a convolution
    with so few outputs leaves most of a vector unit idle. In half precision nine roundings would
    show, so torch's convolution is used.

    Args:
        x: (N, C, H, W).
        conv: padded by 1.

    Returns:
        (N, 1, H, W).
    """
    if x.dtype != torch.float32:
        return conv(x)
    weight = conv.weight[0].permute(1, 2, 0).flatten(0, 1).contiguous()  # (9, C)
    taps = (weight @ x.flatten(2)).unflatten(2, x.shape[-2:])  # (N, 9, H, W)
    return sum_taps(taps, conv.get_parameter("bias")).unsqueeze(1)


def sum_taps(taps: Tensor, bias: Tensor) -> Tensor:
    """Shift and add the taps of a 3×3 convolution padded by 1.

    Args:
        taps: (N, 9, H, W), the product of each tap with the channels, at the channels' position.
        bias: (1,).

    Returns:
        (N, H, W).
    """
    height, width = taps.shape[-2:]
    y = taps[:, 4] + bias
    for tap in (0, 1, 2, 3, 5, 6, 7, 8):
        down, right = tap // 3 - 1, tap % 3 - 1
        top, bottom = max(0, -down), height - max(0, down)
        left, end = max(0, -right), width - max(0, right)
        y[:, top:bottom, left:end] += taps[
            :, tap, top + down : bottom + down, left + right : end + right
        ]
    return y


def up_as_linear(up: nn.Module, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the weight (2 * 2 * g, C) and bias of a 2×2 transposed convolution of stride 2.

    It makes four positions of one, and no two overlap: a linear layer to 2 * 2 * g channels.

    Args:
        up: an ``nn.ConvTranspose2d``, C -> g channels.
        weight: another weight (C, g, 2, 2) in place of its own.
    """
    weight = up.get_parameter("weight") if weight is None else weight
    return weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous(), up.get_parameter("bias").repeat(4)


def cost_guidance(ups: Sequence[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """Compute a chain of 2×2 transposed convolutions of stride 2, each followed by ReLU.

    Args:
        ups: L of them, see :func:`up_as_linear`, the last one with g output channels.
        x: (N, C, H, W) channels last.

    Returns:
        (N, g, H * 2**L, W * 2**L) channels last.
    """
    y = x.permute(0, 2, 3, 1)  # (N, H, W, C)
    for weight, bias in ups:
        count, height, width, channels = y.shape
        y = F.relu_(linear(y.reshape(-1, channels), weight, bias))
        y = y.view(count, height, width, 2, 2, -1).transpose(2, 3)
        y = y.reshape(count, 2 * height, 2 * width, -1)
    return y.permute(0, 3, 1, 2)
