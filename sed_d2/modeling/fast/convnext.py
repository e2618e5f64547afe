"""ConvNeXt block in place."""

import torch
from torch import Tensor, nn

from .linear import add_mlp_


def convnext_block_(
    x: Tensor,
    dwconv: nn.Conv2d,
    norm: nn.Module,
    first: nn.Linear,
    second: nn.Linear,
    gamma: Tensor,
    chunk: int,
) -> None:
    """Compute ``x += gamma * second(GELU(first(norm(dwconv(x)))))`` at every position.

    Args:
        x: (N, C, H, W) channels last, of the layers' precision or a finer one.
        dwconv: C -> C, of the same resolution.
        norm: over the last axis of (N, H, W, C).
        first: C -> hidden width; its precision is that of the layers.
        second: hidden width -> C.
        gamma: (C,), the layer scale, of x's precision.
        chunk: elements that are worked on at a time (at least one of the N maps).
    """
    dtype = first.weight.dtype
    for maps in x.split(max(1, chunk // x[0].numel())):
        y = norm(dwconv(maps.to(dtype)).permute(0, 2, 3, 1)).flatten(0, 2)  # (n * H * W, C)
        rows = maps.permute(0, 2, 3, 1).view(y.shape)
        add_mlp_(rows, y, first, torch.ops.aten.gelu_, second, gamma, chunk)
