"""The views of an image that the model segments, and how their scores become one answer.

The released protocol is one view: the whole image, stretched to a square. Scaled and mirrored
views (test-time augmentation) and sliding windows are planned here too and merged here, a few
classes at a time, so that nobody holds T scores for every pixel of the output.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

#: Upsampled scores held at a time, in elements (64 MiB of float32).
MAX_ELEMENTS = 1 << 24

#: Classes upsampled at a time on a CPU: more leave its caches, fewer are merged too often.
CPU_CLASSES = 8


class View(NamedTuple):
    """A part of an image and the size it is shown to the model at.

    Attributes:
        box: (top, left, bottom, right) as shares of the image, 0..1.
        size: (height, width) in pixels, multiples of the encoder's stride.
        flip: whether it is mirrored left to right.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    flip: bool = False

    def cut(self, image: Tensor) -> Tensor:
        """The view of a (3, H, W) image, (1, 3, *size)."""
        top, left, bottom, right = pixels(self.box, image.shape[-2:])
        part = image[None, :, top:bottom, left:right]
        part = F.interpolate(part, size=self.size, mode="bilinear", align_corners=False)
        return part.flip(3) if self.flip else part


class ViewScores(NamedTuple):
    """What the model answers for a view: (T', h, w) scores of the (T',) surviving classes."""

    view: View
    scores: Tensor
    survivors: Tensor


@dataclass(frozen=True)
class ViewPlan:
    """Which views an image is segmented in.

    Attributes:
        resolution: side of the square that a view is stretched to.
        divisor: the encoder's stride; sides are multiples of it.
        keep_aspect: instead of the square, a rectangle of as many pixels and, but for the
            rounding to the stride, the image's own aspect.
        scales: one view per multiple of ``resolution``.
        flip: every view also mirrored.
        window: side of sliding windows as a share of the image's shorter side; the mean of the
            windows is averaged with the view of the whole image. None for no windows.
        overlap: least share of a window that the next one covers again.
    """

    resolution: int
    divisor: int = 32
    keep_aspect: bool = False
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: float | None = None
    overlap: float = 1 / 3

    def __post_init__(self):
        if self.resolution % self.divisor:
            raise ValueError(
                f"MODEL.CLIP.RESOLUTION {self.resolution} is no multiple of the encoder's stride: "
                f"use a multiple of {self.divisor}"
            )
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"TEST.AUG.SCALES {list(self.scales)} must be positive numbers")
        if self.window is not None and not 0 < self.window <= 1:
            raise ValueError(
                f"TEST.SLIDING.WINDOW {self.window} is no share of the shorter side: use a number "
                "above 0 and up to 1"
            )
        if not 0 <= self.overlap < 1:
            raise ValueError(f"TEST.SLIDING.OVERLAP {self.overlap} must be at least 0 and below 1")

    def __call__(self, height: int, width: int) -> list[list[View]]:
        """Groups of views for an image of that size.

        Scores are averaged within a group where its views overlap, and then over the groups.
        """
        whole = (0.0, 0.0, 1.0, 1.0)
        groups = []
        for scale, flip in product(self.scales, (False, True) if self.flip else (False,)):
            groups.append([View(whole, self._size(scale, height, width), flip)])
            if self.window:
                side = self.window * min(height, width)
                size = self._size(scale, 1, 1)
                rows = self._spans(side / height)
                columns = self._spans(side / width)
                groups.append(
                    [
                        View((top, left, bottom, right), size, flip)
                        for (top, bottom), (left, right) in product(rows, columns)
                    ]
                )
        return groups

    def _size(self, scale: float, height: int, width: int) -> tuple[int, int]:
        """The pixels that a part of this aspect is shown at."""
        stretch = (height / width) ** 0.5 if self.keep_aspect else 1.0
        return tuple(
            max(1, round(self.resolution * scale * factor / self.divisor)) * self.divisor
            for factor in (stretch, 1 / stretch)
        )

    def _spans(self, length: float) -> list[tuple[float, float]]:
        """Spans of this length, evenly laid out from 0 to 1 with at least the asked overlap."""
        if length >= 1:
            return [(0.0, 1.0)]
        # n + 1 spans advance by (1 - length) / n, which is at most (1 - overlap) * length.
        n = math.ceil((1 - length) / ((1 - self.overlap) * length) - 1e-9)
        starts = (i * (1 - length) / n for i in range(n + 1))
        return [(start, start + length) for start in starts]


def pixels(box: Sequence[float], size: Sequence[int]) -> tuple[int, int, int, int]:
    """The (top, left, bottom, right) pixels of a (height, width) that a box of shares touches."""
    tolerance = 1e-6  # an edge that arithmetic moved off a whole pixel
    (top, left), (bottom, right) = (
        [f(share * side + sign * tolerance) for share, side in zip(shares, size, strict=True)]
        for f, sign, shares in ((math.floor, 1, box[:2]), (math.ceil, -1, box[2:]))
    )
    return top, left, bottom, right


def merged_scores(
    groups: Sequence[Sequence[ViewScores]],
    classes: Tensor,
    size: tuple[int, int],
    max_elements: int = MAX_ELEMENTS,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The averaged scores at the output's size, a few classes at a time.

    Args:
        groups: the answers of :class:`ViewPlan`'s groups.
        classes: (T',) ascending class indices to merge.
        size: (height, width) of the output.
        max_elements: bounds n * height * width (n is at least 1, and on a CPU at most CPU_CLASSES).

    Yields:
        (n,) class indices and their scores (n, height, width).
    """
    step = max(1, max_elements // (size[0] * size[1]))
    if classes.device.type == "cpu":
        step = min(step, CPU_CLASSES)
    counts = [_coverage(group, size) for group in groups]
    for chosen in classes.split(step):
        total = None
        for group, count in zip(groups, counts, strict=True):
            if len(group) == 1:
                merged = _upsampled(group[0], chosen, size)
            else:
                merged = group[0].scores.new_zeros(len(chosen), *size)
                for answer in group:
                    top, left, bottom, right = pixels(answer.view.box, size)
                    merged[:, top:bottom, left:right] += _upsampled(
                        answer, chosen, (bottom - top, right - left)
                    )
                merged /= count
            total = merged if total is None else total.add_(merged)
        yield chosen, total if len(groups) == 1 else total.div_(len(groups))


def merged_labels(
    groups: Sequence[Sequence[ViewScores]], size: tuple[int, int], max_elements: int = MAX_ELEMENTS
) -> Tensor:
    """The class of the highest averaged score of each pixel, (height, width) int64.

    Of scores that are equal after upsampling the first class wins. (Torch upsamples to fewer than
    some 64×64 pixels with roundings that depend on n.)
    """
    # The others score 0 everywhere.
    alive = torch.cat([answer.survivors for group in groups for answer in group]).unique()
    best = labels = None
    for chosen, scores in merged_scores(groups, alive, size, max_elements):
        value, index = scores.max(dim=0)
        if best is None:
            best, labels = value, chosen[index]
        else:
            better = value > best
            best = torch.maximum(best, value)
            labels = torch.where(better, chosen[index], labels)
    return labels


def _coverage(group: Sequence[ViewScores], size: tuple[int, int]) -> Tensor:
    """How many views of a group show each pixel, (height, width)."""
    count = group[0].scores.new_zeros(size)
    for answer in group:
        top, left, bottom, right = pixels(answer.view.box, size)
        count[top:bottom, left:right] += 1
    return count


def _upsampled(answer: ViewScores, classes: Tensor, size: tuple[int, int]) -> Tensor:
    """A view's scores of some classes, unmirrored and at a size: (n, *size); 0 where rejected."""
    scores = answer.scores
    if not torch.equal(answer.survivors, classes):
        # The place of each class among the survivors, where it is one.
        place = torch.searchsorted(answer.survivors, classes).clamp(max=len(scores) - 1)
        alive = answer.survivors[place] == classes
        scores = scores[place] * alive.view(-1, 1, 1)
    if answer.view.flip:
        scores = scores.flip(2)
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
