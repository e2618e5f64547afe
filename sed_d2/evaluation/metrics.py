"""Confusion matrix and metrics of semantic segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class ConfusionMatrix:
    """Pixel counts by predicted and true class, on the device of the predictions.

    Its memory is (T+1)² int64, independent of the size and the number of images.

    Args:
        num_classes: T; predictions are 0..T-1, and labels from T on are ignored.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._counts = torch.zeros((num_classes + 1) ** 2, dtype=torch.int64)

    def add(self, predictions: torch.Tensor, labels: torch.Tensor) -> None:
        """Count the pixels of one image.

        Args:
            predictions: (H, W) integers in 0..T-1.
            labels: (H, W) non-negative integers; values from T on are ignored.

        Raises:
            ValueError: the sizes differ or a prediction is out of range.
        """
        if predictions.shape != labels.shape:
            raise ValueError(
                f"The predictions have the size {tuple(predictions.shape)} but the labels have "
                f"{tuple(labels.shape)}; set height and width of the record to those of the labels."
            )
        if predictions.device.type != "cuda":  # not every other device can add int64
            predictions = predictions.cpu()
        lowest, highest = (int(value) for value in torch.aminmax(predictions))
        if lowest < 0 or highest >= self.num_classes:
            raise ValueError(
                f"The predictions {lowest} to {highest} are not in 0 to {self.num_classes - 1}; "
                "give the model the vocabulary of the data set."
            )
        self._counts = self._counts.to(predictions.device)
        # int32 and in-place addition take half the time of np.bincount with int64 indices.
        index = labels.to(predictions.device, torch.int32).clamp(max=self.num_classes)
        index.add_(predictions.int(), alpha=self.num_classes + 1)
        index = index.long().flatten()
        self._counts.scatter_add_(0, index, torch.ones_like(index))

    def numpy(self) -> np.ndarray:
        """Return the counts, (T+1, T+1) int64: rows predicted, columns true, the last ignored."""
        size = self.num_classes + 1
        return self._counts.cpu().numpy().reshape(size, size)


def segmentation_metrics(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Compute the metrics of Detectron2's semantic evaluation, in percent.

    Means are over the classes that occur in the labels, as in Detectron2's main branch. Version 0.6
    also divides the mIoU by the classes that occur only in predictions.

    Args:
        confusion: (T+1, T+1) pixel counts, rows predicted, columns true; the last row and column
            are of ignored pixels and do not count.
        class_names: T names.

    Returns:
        ``mIoU``, ``fwIoU``, ``IoU-<class>``, ``mACC``, ``pACC``, ``ACC-<class>``; NaN for a class
        that does not occur in the labels.

    Raises:
        ValueError: no pixel is labelled, or the number of names is not T.
    """
    counts = confusion[:-1, :-1].astype(np.float64)
    if len(class_names) != len(counts):
        raise ValueError(
            f"{len(class_names)} class names for {len(counts)} classes; give one name per class."
        )
    correct = counts.diagonal()
    labelled = counts.sum(axis=0)
    predicted = counts.sum(axis=1)
    if not labelled.any():
        raise ValueError("No pixel of the data set has a class; check its label files.")
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
