"""Scores of a predictor on scenes of the world, and pictures that compare it with the truth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ..evaluation.metrics import ConfusionMatrix, segmentation_metrics
from ..visualization import draw_overlay
from ..vocabulary import Vocabulary
from .dataset import make_scene
from .words import CLASSES, OBJECT_IDS

if TYPE_CHECKING:
    from ..predictor import OpenVocabPredictor

#: The validation splits by the kind of their combinations.
SPLITS = {"seen": "val_seen", "unseen": "val_unseen"}


def score_splits(
    predictor: OpenVocabPredictor, count: int, names: Sequence[str] = CLASSES
) -> dict[str, dict[str, float]]:
    """Return :func:`score` of both validation splits, by kind."""
    return {kind: score(predictor, split, count, names) for kind, split in SPLITS.items()}


def score(
    predictor: OpenVocabPredictor, split: str, count: int, names: Sequence[str] = CLASSES
) -> dict[str, float]:
    """Score a predictor on the first scenes of a split.

    Args:
        predictor: the predictor.
        split: a split of the data set, such as "val_unseen".
        count: number of scenes.
        names: the vocabulary; pixels of a class that is not in it are ignored.

    Returns:
        "mIoU" and "objects" (the mIoU of the objects alone), in percent, over the classes that
        occur; "survivors", the mean number of classes that early rejection keeps to the end; "ms",
        the median time of an image.
    """
    vocabulary = Vocabulary.from_names(names)
    positions = {name: position for position, name in enumerate(names)}
    # Class id of the world -> position in the vocabulary; len(names) is ignored.
    position_of = np.array([positions.get(name, len(names)) for name in CLASSES])
    early_rejection = predictor.model.sem_seg_head.top_k > 0
    confusion, survivors, seconds = ConfusionMatrix(len(names)), [], []
    for index in range(count):
        image, labels = make_scene(index, split)
        if index == 0:
            predictor(image, vocabulary)  # embeds the names
        start = time.perf_counter()
        prediction = predictor(image, vocabulary)
        seconds.append(time.perf_counter() - start)
        confusion.add(torch.from_numpy(prediction.labels), torch.from_numpy(position_of[labels]))
        if early_rejection:  # a rejected class scores 0 everywhere
            scores = np.asarray(predictor(image, vocabulary, scores=True).scores)
            survivors.append(int(np.count_nonzero(scores.any(axis=(1, 2)))))
    metrics = segmentation_metrics(confusion.numpy(), names)
    objects = {CLASSES[i] for i in OBJECT_IDS}
    object_ious = [metrics[f"IoU-{name}"] for name in names if name in objects]
    return {
        "mIoU": round(metrics["mIoU"], 2),
        "objects": round(float(np.nanmean(object_ious)), 2),
        "survivors": round(statistics.mean(survivors or [len(names)]), 1),
        "ms": round(1000 * statistics.median(seconds)),
    }


def draw_comparison(predictor: OpenVocabPredictor, split: str, count: int) -> Image.Image:
    """Draw the first scenes of a split: a row with image, true labels and predicted labels each."""
    panels = []
    for image, labels in (make_scene(index, split) for index in range(count)):
        prediction = predictor(image, CLASSES)
        truth = replace(prediction, labels=labels.astype(np.int64))
        overlays = [draw_overlay(image, shown) for shown in (truth, prediction)]
        panels += [Image.fromarray(image), *overlays]
    width, height = (max(sides) for sides in zip(*(panel.size for panel in panels), strict=True))
    sheet = Image.new("RGB", (3 * width, count * height), "white")
    for i, panel in enumerate(panels):
        sheet.paste(panel, (i % 3 * width, i // 3 * height))
    return sheet
