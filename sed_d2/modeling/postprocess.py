"""From low-resolution scores to labels, without a T × height × width array."""

import torch
from torch import Tensor
from torch.nn import functional as F

#: Upsampled scores held at a time, in elements (64 MiB of float32).
MAX_ELEMENTS = 1 << 24


def upsampled_labels(
    scores: Tensor, size: tuple[int, int], max_elements: int = MAX_ELEMENTS
) -> Tensor:
    """``interpolate(scores, size).argmax(0)``, a few classes at a time.

    Args:
        scores: (T, h, w).
        size: (height, width) of the output.
        max_elements: bounds the upsampled scores held at a time (at least one class).

    Returns:
        (height, width) int64; of equal scores the first class wins.
    """
    chunk = max(1, max_elements // (size[0] * size[1]))
    best = labels = None
    for start in range(0, len(scores), chunk):
        upsampled = F.interpolate(
            scores[None, start : start + chunk], size=size, mode="bilinear", align_corners=False
        )[0]
        value, index = upsampled.max(dim=0)
        if best is None:
            best, labels = value, index
        else:
            better = value > best
            best = torch.where(better, value, best)
            labels = torch.where(better, index + start, labels)
    return labels
