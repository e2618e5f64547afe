"""Large convolution in the frequency domain, for CPUs.

A K×K convolution costs K² multiply-adds for each pair of input and output channels at each
position. In the frequency domain it is one complex product for each pair and frequency. At 24×24
positions the Fourier transforms are products with small constant matrices, and 7×7 from 80 to 128
channels costs 26 M multiply-adds a class instead of 289 M.
"""

import math

import torch
from torch import Tensor


def spectral_conv(x: Tensor, weight: Tensor, bias: Tensor, chunk: int = 32) -> Tensor:
    """Compute ``conv2d(x, weight, bias, padding="same")`` up to rounding.

    The transforms make the convolution periodic. The period is the side plus half a kernel, so that
    beyond either border an output sees only the zeros between the periods.

    The transform of the weights is not kept: it takes a few milliseconds, and 31 MB at 768×768.

    Args:
        x: (N, P, H, W), contiguous.
        weight: (O, P, K, K), K odd, float32.
        bias: (O,).
        chunk: maps that are transformed at a time; bounds the memory.

    Returns:
        (N, O, H, W), float32, in channels-last memory.
    """
    count, templates, height, width = x.shape
    out_dim, _, kernel, _ = weight.shape
    periods = (height + kernel // 2, width + kernel // 2)
    offsets = torch.arange(kernel) - kernel // 2
    rows, columns = torch.arange(height), torch.arange(width)
    # torch's convolution is a correlation: the weight's exponent has the other sign.
    weight = transform(weight.permute(2, 3, 1, 0).flatten(2), offsets, offsets, periods, -1)
    weight = weight.view(2, -1, templates, out_dim)
    output = weight.new_empty(count, height, width, out_dim)
    for part, out in zip(x.split(chunk), output.split(chunk), strict=True):
        images = part.to(weight).flatten(0, 1).permute(1, 2, 0)  # (H, W, n * P)
        f = transform(images, rows, columns, periods, 1).unflatten(2, (-1, templates))
        # (F, n, P) @ (F, P, O): one complex matrix product a frequency.
        real = torch.bmm(f[0], weight[0]).baddbmm_(f[1], weight[1], alpha=-1)
        imaginary = torch.bmm(f[0], weight[1]).baddbmm_(f[1], weight[0])
        y = inverse_transform(real.flatten(1), imaginary.flatten(1), rows, columns, periods)
        torch.add(y.unflatten(2, (-1, out_dim)).permute(2, 0, 1, 3), bias, out=out)
    return output.permute(0, 3, 1, 2)


def transform(
    x: Tensor, rows: Tensor, columns: Tensor, periods: tuple[int, int], sign: int
) -> Tensor:
    """Compute the two-dimensional Fourier transform of real maps.

    Args:
        x: (h, w, M).
        rows: (h,) positions of the first axis.
        columns: (w,) positions of the second axis.
        periods: of the two axes.
        sign: 1 for the exponent ``-i k x``, -1 for ``+i k x``.

    Returns:
        (2, F, M), real and imaginary part, F = (periods[1] // 2 + 1) * periods[0]; the other
        frequencies are conjugate.
    """
    cos, sin = waves(periods[1] // 2 + 1, columns, periods[1], x)
    # Along the columns: x real gives (cos x, -sin x).
    matrix = torch.stack([cos, -sign * sin]).flatten(0, 1)  # (2 * k, w)
    y = torch.bmm(matrix.expand(len(rows), -1, -1), x)  # (h, 2 * k, M)
    y = y.view(2 * len(rows), len(cos), -1).transpose(0, 1)  # (k, 2 * h, M)
    # Along the rows: (cos - i sin) (y0 + i y1) = (cos y0 + sin y1) + i (cos y1 - sin y0).
    cos, sin = waves(periods[0], rows, periods[0], x)
    sin = sign * sin
    parts = [torch.stack(part, dim=2).flatten(1) for part in ((cos, sin), (-sin, cos))]
    output = x.new_empty(2, len(y), periods[0], x.shape[2])
    for part, out in zip(parts, output, strict=True):
        torch.bmm(part.expand(len(y), -1, -1), y, out=out)
    return output.flatten(1, 2)


def inverse_transform(
    real: Tensor, imaginary: Tensor, rows: Tensor, columns: Tensor, periods: tuple[int, int]
) -> Tensor:
    """Invert :func:`transform`: (F, M) and (F, M) -> real maps (h, w, M)."""
    cos, sin = waves(periods[0], rows, periods[0], real)
    cos, sin = cos.T, sin.T  # (h, k)
    frequencies = periods[1] // 2 + 1
    real, imaginary = (z.view(frequencies, periods[0], -1) for z in (real, imaginary))
    # Along the rows: (cos + i sin) (z0 + i z1), real parts first.
    y = torch.bmm(torch.cat([cos, sin]).expand(frequencies, -1, -1), real)  # (k, 2 * h, M)
    y.baddbmm_(torch.cat([-sin, cos]).expand(frequencies, -1, -1), imaginary)
    # Along the columns only the real part remains. A frequency and its conjugate are one term.
    cos, sin = waves(frequencies, columns, periods[1], real)
    twice = torch.full_like(cos[:, :1], 2)
    twice[0] = 1
    if periods[1] % 2 == 0:
        twice[-1] = 1
    matrix = torch.stack([cos, -sin], dim=1) * (twice / math.prod(periods)).unsqueeze(1)
    y = y.view(2 * frequencies, len(rows), -1).transpose(0, 1)  # (h, 2 * k, M)
    return torch.bmm(matrix.flatten(0, 1).T.expand(len(rows), -1, -1), y)


def waves(frequencies: int, positions: Tensor, period: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin of 2 pi k x / period, k < frequencies: (frequencies, positions) each."""
    phase = torch.arange(frequencies).unsqueeze(1) * positions % period
    phase = phase.to(torch.float64) * (2 * math.pi / period)
    return phase.cos().to(like), phase.sin().to(like)
