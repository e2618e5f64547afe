"""Linear layers of inference that work in place, on some rows at a time.

What leaves the processor's caches, or is allocated anew, costs more time than the arithmetic.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def add_mlp_(
    x: Tensor,
    y: Tensor,
    first: nn.Linear,
    activation_: Callable[[Tensor], Tensor],
    weight: Tensor,
    bias: Tensor,
    chunk: int,
) -> None:
    """``x += activation(first(y)) @ weight.T + bias``, some rows at a time.

    Args:
        x: (rows, C), changed in place.
        y: (rows, C).
        first: C -> hidden width.
        activation_: works in place.
        weight: (C, hidden width).
        bias: (C,).
        chunk: elements of the hidden layer that are held at a time.
    """
    rows = max(1, min(len(x), chunk // first.out_features))
    buffer = y.new_empty(rows, first.out_features)
    for x_part, y_part in zip(x.split(rows), y.split(rows), strict=True):
        hidden = buffer[: len(y_part)]
        torch.addmm(first.bias, y_part, first.weight.T, out=hidden)
        activation_(hidden)
        x_part.addmm_(hidden, weight.T).add_(bias)


def convnext_block_(
    x: Tensor,
    dwconv: nn.Conv2d,
    norm: nn.Module,
    first: nn.Linear,
    second: nn.Linear,
    gamma: Tensor,
    chunk: int,
) -> None:
    """``x += gamma * second(GELU(first(norm(dwconv(x)))))`` at every position, in place.

    Args:
        x: (N, C, H, W) in channels-last memory.
        dwconv: C -> C, of the same resolution.
        norm: over the last axis of (N, H, W, C).
        first: C -> hidden width.
        second: hidden width -> C.
        gamma: (C,), the layer scale.
        chunk: elements that are worked on at a time (at least one of the N).
    """
    weight, bias = fold_layer_scale(second, gamma)
    for part in x.split(max(1, chunk // x[0].numel())):
        y = norm(dwconv(part).permute(0, 2, 3, 1)).flatten(0, 2)  # (n * H * W, C)
        rows = part.permute(0, 2, 3, 1).view(y.shape)
        add_mlp_(rows, y, first, torch.ops.aten.gelu_, weight, bias, chunk)


def fold_layer_scale(layer: nn.Linear, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``gamma * layer``: gamma * (W y + b) = (gamma W) y + gamma b.

    The result is then added to the residual by the matrix product itself.
    """
    return gamma.unsqueeze(1) * layer.weight, gamma * layer.bias
