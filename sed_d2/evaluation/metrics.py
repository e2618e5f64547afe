"""Metrics of semantic segmentation: pure functions over a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class ConfusionMatrix:
    """Counts pixels by predicted and true class, on the device of the predictions.

    Memory is (T+1)² 8-byte integers, whatever the size and the number of the images.
    """

    def __init__(self, num_classes: int):
        """
        Args:
            num_classes: T; predictions are 0..T-1, and labels of T or more are ignored.
        """
        self.num_classes = num_classes
        self._counts = torch.zeros((num_classes + 1) ** 2, dtype=torch.int64)

    def add(self, predictions: torch.Tensor, labels: torch.Tensor) -> None:
        """Count the pixels of one image.

        Args:
            predictions: (H, W) integers in 0..T-1.
            labels: (H, W) non-negative integers; the pixels of T or more are not evaluated.

        Raises:
            ValueError: the sizes differ or a prediction is out of range.
        """
        if predictions.shape != labels.shape:
            raise ValueError(
                f"The predictions are of size {tuple(predictions.shape)} but the labels of size "
                f"{tuple(labels.shape)}; ask the model for the size of the labels."
            )
        if predictions.device.type != "cuda":  # not every other device adds 64-bit integers
            predictions = predictions.cpu()
        lowest, highest = (int(value) for value in torch.aminmax(predictions))
        if lowest < 0 or highest >= self.num_classes:
            raise ValueError(
                f"The predictions {lowest} to {highest} are not in 0 to {self.num_classes - 1}; "
                "give the model the vocabulary of the data set."
            )
        self._counts = self._counts.to(predictions.device)
        # Narrow types and adding in place: np.bincount over 64-bit indices takes twice as long.
        index = labels.to(predictions.device, torch.int32).clamp(max=self.num_classes)
        index.add_(predictions.int(), alpha=self.num_classes + 1)
        index = index.long().flatten()
        self._counts.scatter_add_(0, index, torch.ones_like(index))

    def numpy(self) -> np.ndarray:
        """The counts as (T+1, T+1) int64: row predicted, column true, the last is ignored."""
        size = self.num_classes + 1
        return self._counts.cpu().numpy().reshape(size, size)


def segmentation_metrics(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """The metrics of Detectron2's semantic evaluation, in percent.

    Means are over the classes that occur in the labels, as in Detectron2's present version (0.6
    also divides the mIoU by the classes that are only predicted).

    Args:
        confusion: (T+1, T+1) pixel counts, row predicted, column true; the last row and column
            are those of ignored pixels and do not count.
        class_names: T names.

    Returns:
        ``mIoU``, ``fwIoU``, ``IoU-<class>``, ``mACC``, ``pACC``, ``ACC-<class>``; NaN for a class
        that does not occur.

    Raises:
        ValueError: no pixel is labelled, or the number of names does not fit.
    """
    counts = confusion[:-1, :-1].astype(np.float64)
    if len(class_names) != len(counts):
        raise ValueError(f"{len(class_names)} class names for {len(counts)} classes; give as many.")
    correct = counts.diagonal()
    labelled = counts.sum(axis=0)
    predicted = counts.sum(axis=1)
    if not labelled.any():
        raise ValueError("No pixel of the data set is labelled; check its labels.")
    occurs = labelled > 0
    iou = np.full(len(counts), np.nan)
    accuracy = np.full(len(counts), np.nan)
    iou[occurs] = 100 * correct[occurs] / (labelled + predicted - correct)[occurs]
    accuracy[occurs] = 100 * correct[occurs] / labelled[occurs]
    return {
        "mIoU": float(iou[occurs].mean()),
        "fwIoU": float((iou * labelled)[occurs].sum() / labelled.sum()),
        **{f"IoU-{name}": float(value) for name, value in zip(class_names, iou, strict=True)},
        "mACC": float(accuracy[occurs].mean()),
        "pACC": float(100 * correct.sum() / labelled.sum()),
        **{f"ACC-{name}": float(value) for name, value in zip(class_names, accuracy, strict=True)},
    }
