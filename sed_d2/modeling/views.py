"""The views of an image that the model segments, and the merging of their scores.

The released protocol is one view: the whole image, stretched to a square. Scaled and mirrored
views (test-time augmentation) and sliding windows are planned here too. A plan is cut into batches
of one size, each view is scored, and the scores are merged a few classes at a time, so that T
scores for every pixel of the output are never held at once.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

#: Upsampled scores held at a time, in elements (64 MiB of float32).
MAX_ELEMENTS = 1 << 24

#: Classes upsampled at a time on a CPU: more exceed its caches, fewer repeat the merge too often.
CPU_CLASSES = 8


class View(NamedTuple):
    """A part of an image and the size at which the model sees it.

    Attributes:
        box: (top, left, bottom, right) as shares of the image, 0..1.
        size: (height, width) in pixels, multiples of the encoder's stride.
        flip: whether it is mirrored left to right.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    flip: bool = False

    def crop(self, image: Tensor) -> Tensor:
        """Crop and resize a (3, H, W) image to (1, 3, *size)."""
        top, left, bottom, right = pixels(self.box, image.shape[-2:])
        part = image[None, :, top:bottom, left:right]
        part = F.interpolate(part, size=self.size, mode="bilinear", align_corners=False)
        return part.flip(3) if self.flip else part


class ViewScores(NamedTuple):
    """(T', h, w) scores of a view's (T',) surviving classes."""

    view: View
    scores: Tensor
    survivors: Tensor


@dataclass(frozen=True)
class ViewPlan:
    """The views that every image is segmented in.

    Attributes:
        resolution: side of the square that a view is stretched to.
        divisor: the encoder's stride; sides are multiples of it.
        keep_aspect: instead of the square, a rectangle of as many pixels and, but for the
            rounding to the stride, the image's own aspect.
        scales: one view per multiple of ``resolution``.
        flip: every view also mirrored.
        window: side of sliding windows as a share of the image's shorter side; the mean of the
            windows is averaged with the whole image. None for no windows.
        overlap: least share of a window that overlaps with the next one.

    Raises:
        ValueError: a value is outside its range; the message names its key.
    """

    resolution: int
    divisor: int = 32
    keep_aspect: bool = False
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: float | None = None
    overlap: float = 1 / 3

    def __post_init__(self) -> None:
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
        """Plan the groups of views for an image of this size.

        Scores are averaged within a group where its views overlap, and then over the groups.
        """
        whole = (0.0, 0.0, 1.0, 1.0)
        groups = []
        for scale, flip in itertools.product(self.scales, (False, True) if self.flip else (False,)):
            groups.append([View(whole, self._size(scale, height, width), flip)])
            if self.window:
                side = self.window * min(height, width)
                size = self._size(scale, 1, 1)
                rows = self._spans(side / height)
                columns = self._spans(side / width)
                groups.append(
                    [
                        View((top, left, bottom, right), size, flip)
                        for (top, bottom), (left, right) in itertools.product(rows, columns)
                    ]
                )
        return groups

    def _size(self, scale: float, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in pixels at which a part of this aspect is seen."""
        stretch = (height / width) ** 0.5 if self.keep_aspect else 1.0
        rows, columns = (
            max(1, round(self.resolution * scale * factor / self.divisor))
            for factor in (stretch, 1 / stretch)
        )
        return rows * self.divisor, columns * self.divisor

    def _spans(self, length: float) -> list[tuple[float, float]]:
        """Space spans of this length evenly from 0 to 1, with at least the asked overlap."""
        if length >= 1:
            return [(0.0, 1.0)]
        # n + 1 spans advance by (1 - length) / n, which is at most (1 - overlap) * length.
        n = math.ceil((1 - length) / ((1 - self.overlap) * length) - 1e-9)
        starts = (i * (1 - length) / n for i in range(n + 1))
        return [(start, start + length) for start in starts]


def pixels(box: Sequence[float], size: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the (top, left, bottom, right) pixels of a (height, width) that a box touches."""
    tolerance = 1e-6  # rounding may move an edge off a whole pixel
    (top, left), (bottom, right) = (
        [f(share * side + sign * tolerance) for share, side in zip(shares, size, strict=True)]
        for f, sign, shares in ((math.floor, 1, box[:2]), (math.ceil, -1, box[2:]))
    )
    return top, left, bottom, right


class ViewBatch(NamedTuple):
    """Views of one size that pass the encoder together.

    Attributes:
        images: the index of each view's image.
        views: the views.
    """

    images: list[int]
    views: list[View]


def batch_views(plans: Sequence[Sequence[Sequence[View]]], batch_size: int) -> list[ViewBatch]:
    """Cut the plans of a batch of images into batches of views of one size, in their order.

    Args:
        plans: the groups of views of each image.
        batch_size: views in a batch at most.
    """
    batches: list[ViewBatch] = []
    for image, plan in enumerate(plans):
        for view in itertools.chain.from_iterable(plan):
            last = batches[-1] if batches else None
            if last is None or len(last.views) == batch_size or last.views[0].size != view.size:
                last = ViewBatch([], [])
                batches.append(last)
            last.images.append(image)
            last.views.append(view)
    return batches


def regroup(
    plan: Sequence[Sequence[View]], scores: Sequence[ViewScores]
) -> list[Sequence[ViewScores]]:
    """Arrange the scores of a plan's views, which are in its order, in its groups."""
    ends = list(itertools.accumulate(len(group) for group in plan))
    return [scores[end - len(group) : end] for group, end in zip(plan, ends, strict=True)]


def merged_scores(
    groups: Sequence[Sequence[ViewScores]],
    classes: Tensor,
    size: tuple[int, int],
    max_elements: int = MAX_ELEMENTS,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Average the scores at the output's size, a few classes at a time.

    Args:
        groups: the scores of :class:`ViewPlan`'s groups.
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
        total = _merge_group(groups[0], counts[0], chosen, size)
        for group, count in zip(groups[1:], counts[1:], strict=True):
            total = total.add_(_merge_group(group, count, chosen, size))
        yield chosen, total if len(groups) == 1 else total.div_(len(groups))


def _merge_group(
    group: Sequence[ViewScores], count: Tensor, classes: Tensor, size: tuple[int, int]
) -> Tensor:
    """Average the views of a group, (n, *size), given how many of them show each pixel."""
    if len(group) == 1:
        return _upsample(group[0], classes, size)
    merged = group[0].scores.new_zeros(len(classes), *size)
    for scored in group:
        top, left, bottom, right = pixels(scored.view.box, size)
        merged[:, top:bottom, left:right] += _upsample(
            scored, classes, (bottom - top, right - left)
        )
    return merged.div_(count)


def merged_labels(
    groups: Sequence[Sequence[ViewScores]], size: tuple[int, int], max_elements: int = MAX_ELEMENTS
) -> Tensor:
    """Return the class of the highest averaged score of each pixel, (height, width) int64.

    Of scores that are equal after upsampling the first class wins. (For outputs below about 64×64
    pixels torch's upsampling rounds differently for different n.)
    """
    # All other classes score 0 everywhere.
    alive = torch.cat([scored.survivors for group in groups for scored in group]).unique()
    chunks = merged_scores(groups, alive, size, max_elements)
    chosen, scores = next(chunks)
    best, index = scores.max(dim=0)
    labels = chosen[index]
    for chosen, scores in chunks:
        value, index = scores.max(dim=0)
        labels = torch.where(value > best, chosen[index], labels)
        best = torch.maximum(best, value)
    return labels


def merged_sem_seg(
    groups: Sequence[Sequence[ViewScores]], num_classes: int, size: tuple[int, int]
) -> Tensor:
    """Return the averaged scores of all classes, (T, height, width)."""
    classes = torch.arange(num_classes, device=groups[0][0].scores.device)
    output = torch.empty(num_classes, *size, device=classes.device)
    for chosen, scores in merged_scores(groups, classes, size):
        output[chosen] = scores
    return output


def _coverage(group: Sequence[ViewScores], size: tuple[int, int]) -> Tensor:
    """Count the views of a group that show each pixel, (height, width)."""
    count = group[0].scores.new_zeros(size)
    for scored in group:
        top, left, bottom, right = pixels(scored.view.box, size)
        count[top:bottom, left:right] += 1
    return count


def _upsample(scored: ViewScores, classes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a view's scores of some classes, unmirrored, to (n, *size); rejected classes get 0."""
    scores = scored.scores
    if not torch.equal(scored.survivors, classes):
        # The index of each class among the survivors, where it is one.
        index = torch.searchsorted(scored.survivors, classes).clamp(max=len(scores) - 1)
        alive = scored.survivors[index] == classes
        scores = scores[index] * alive.view(-1, 1, 1)
    if scored.view.flip:
        scores = scores.flip(2)
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
