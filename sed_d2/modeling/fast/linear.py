"""Linear layers by the faster library, in place and some rows at a time."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Rows from which on oneDNN's convolution is faster, although it lays out the weights anew.
LEAST_ROWS = {torch.float32: 512, torch.bfloat16: 1024}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``F.linear`` of (rows, C) by the faster library.

    On CPUs with AVX-512 and for many rows this is oneDNN's 1×1 convolution. In float32 torch's
    linear layer is MKL's, which uses half of the vector unit of AMD's Zen 5; on Zen 4 oneDNN is a
    tenth slower than MKL. In bfloat16 torch's linear layer is oneDNN's too, but writes the bias
    before the product, which costs time for large weights.

    Args:
        x: (rows, C), contiguous.
        weight: (C', C).
        bias: (C',) or None.

    Returns:
        (rows, C'), contiguous.
    """
    many = x.device.type == "cpu" and len(x) >= LEAST_ROWS.get(x.dtype, math.inf)
    pays = x.dtype == torch.float32 or weight.numel() >= 1 << 16
    # With one thread, or few numbers, torch sends a convolution to a slower kernel than oneDNN's.
    onednn = x.numel() > 20480 and torch.get_num_threads() > 1 and _has_avx512()
    if not (many and pays and onednn):
        return F.linear(x, weight, bias)
    maps = x.view(1, len(x), 1, -1).permute(0, 3, 1, 2)  # (1, C, rows, 1), channels last
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
    """Compute ``x += scale * second(activation(first(y)))``, some rows at a time.

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
    for x_rows, y_rows in zip(x.chunk(parts), y.chunk(parts), strict=True):
        hidden = activation_(linear(y_rows, first.weight, first.bias))
        x_rows.addcmul_(linear(hidden, second.weight, second.bias).to(x), scale)
