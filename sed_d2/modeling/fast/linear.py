"""Linear layers: by the faster library and, in inference, in place and on some rows at a time.

What leaves the processor's caches costs more time than the arithmetic.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Rows from which on oneDNN's convolution is the faster one, though it lays out the weights anew.
LEAST_ROWS = {torch.float32: 512, torch.bfloat16: 1024}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` of (rows, C), by the faster library.

    On CPUs with AVX-512 it is oneDNN's 1×1 convolution where there are many rows. In float32
    torch's linear layer is MKL's, which uses half of the vector unit of AMD's newer processors (Zen
    5; on Zen 4 it is a tenth slower, Intel's were not measured). In bfloat16 it is oneDNN's too,
    but writes the bias before the product, which shows with large weights.

    Args:
        x: (rows, C), contiguous.
        weight: (C', C).
        bias: (C',) or None.

    Returns:
        (rows, C'), contiguous.
    """
    many = x.device.type == "cpu" and len(x) >= LEAST_ROWS.get(x.dtype, math.inf)
    pays = x.dtype == torch.float32 or weight.numel() >= 1 << 16
    # With one thread, or few numbers, torch gives a convolution to a slower kernel than oneDNN's.
    onednn = x.numel() > 20480 and torch.get_num_threads() > 1 and _has_avx512()
    if not (many and pays and onednn):
        return F.linear(x, weight, bias)
    maps = x.view(1, len(x), 1, -1).permute(0, 3, 1, 2)  # (1, C, rows, 1) in channels-last memory
    return F.conv2d(maps, weight[:, :, None, None], bias)[0, :, :, 0].T.contiguous()


@functools.cache
def _has_avx512() -> bool:
    return torch.backends.mkldnn.is_available() and (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


def add_mlp_(
    x: Tensor,
    y: Tensor,
    first: nn.Linear,
    activation_: Callable[[Tensor], Tensor],
    second: nn.Linear,
    scale: Tensor,
    chunk: int,
) -> None:
    """``x += scale * second(activation(first(y)))``, some rows at a time.

    Args:
        x: (rows, C), changed in place, of the layers' precision or a finer one.
        y: (rows, C).
        first: C -> hidden width.
        activation_: works in place.
        second: hidden width -> C.
        scale: (C,), or () for all channels, of x's precision.
        chunk: elements of the hidden layer that are held at a time.
    """
    parts = math.ceil(len(x) * first.out_features / chunk)
    for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
        hidden = activation_(linear(y_part, first.weight, first.bias))
        x_part.addcmul_(linear(hidden, second.weight, second.bias).to(x), scale)


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
        x: (N, C, H, W) in channels-last memory, of the layers' precision or a finer one.
        dwconv: C -> C, of the same resolution.
        norm: over the last axis of (N, H, W, C).
        first: C -> hidden width; it sets the precision.
        second: hidden width -> C.
        gamma: (C,), the layer scale, of x's precision.
        chunk: elements that are worked on at a time (at least one of the N).
    """
    dtype = first.weight.dtype
    for part in x.split(max(1, chunk // x[0].numel())):
        y = norm(dwconv(part.to(dtype)).permute(0, 2, 3, 1)).flatten(0, 2)  # (n * H * W, C)
        rows = part.permute(0, 2, 3, 1).view(y.shape)
        add_mlp_(rows, y, first, torch.ops.aten.gelu_, second, gamma, chunk)
