"""Dataset mappers: from a Detectron2 record to the tensors for training and evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from torch.nn import functional as F

from .files import check_labels, read_image, read_labels

#: The value of padded pixels, mid-grey as in the released training.
IMAGE_PADDING = 128


class SemSegTrainMapper:
    """Mapper that reads, augments and pads an image and its labels (paper, section 4).

    The augmentations are: resizing of the shorter side, a random crop in which no class covers more
    than a given share, SSD's colour augmentation, and a random flip. Then the image is padded with
    128 and the labels with the ignored value.

    Args:
        augmentations: applied in order to image and labels.
        image_format: the channel order of the images, "RGB" or "BGR".
        num_classes: label values are 0..num_classes-1 or ``ignore_label``.
        ignore_label: the label value that training ignores.
        pad_to: the smallest (height, width) of the result; None disables padding.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        num_classes: int,
        ignore_label: int,
        pad_to: tuple[int, int] | None = None,
    ) -> None:
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.pad_to = pad_to

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments for ``cfg.DATASETS.TRAIN``.

        Args:
            cfg: the whole config.
            is_train: unused; Detectron2 passes it.

        Raises:
            ValueError: the data sets differ in their classes or their ignored value.
        """
        metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
        for name in cfg.DATASETS.TRAIN[1:]:
            other = MetadataCatalog.get(name)
            if (other.stuff_classes, other.ignore_label) != (
                metadata.stuff_classes,
                metadata.ignore_label,
            ):
                raise ValueError(
                    f"DATASETS.TRAIN names {metadata.name!r} and {name!r}, whose classes or "
                    "ignored values differ; train on one of them."
                )
        crop = cfg.INPUT.CROP
        augmentations = [
            T.ResizeShortestEdge(
                cfg.INPUT.MIN_SIZE_TRAIN,
                cfg.INPUT.MAX_SIZE_TRAIN,
                cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
            )
        ]
        if crop.ENABLED:
            augmentations.append(
                T.RandomCrop_CategoryAreaConstraint(
                    crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, metadata.ignore_label
                )
            )
        if cfg.INPUT.COLOR_AUG_SSD:
            augmentations.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
        if cfg.INPUT.RANDOM_FLIP != "none":
            vertical = cfg.INPUT.RANDOM_FLIP == "vertical"
            augmentations.append(T.RandomFlip(horizontal=not vertical, vertical=vertical))
        return {
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": len(metadata.stuff_classes),
            "ignore_label": metadata.ignore_label,
            # An absolute crop can be larger than the image.
            "pad_to": tuple(crop.SIZE) if crop.ENABLED and crop.TYPE == "absolute" else None,
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Read and augment the image and the labels of a record.

        Args:
            record: ``file_name`` and ``sem_seg_file_name``.

        Returns:
            The record with ``image``, (3, H, W) uint8, and ``sem_seg``, (H, W) int64.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a file cannot be read, image and labels differ in size, or a label value is
                neither a class nor ignored.
        """
        record = dict(record)
        image, labels = _read_image_and_labels(
            record, self.image_format, self.num_classes, self.ignore_label
        )
        if labels.dtype != np.uint8:
            # Detectron2 resizes 16-bit arrays with torch, which needs floats; float32 represents
            # every 16-bit integer exactly.
            labels = labels.astype(np.float32)
        augmented = T.AugInput(image, sem_seg=labels)
        self.augmentations(augmented)

        padded = _to_tensor(augmented.image)
        target = torch.from_numpy(augmented.sem_seg.astype(np.int64))
        if self.pad_to is not None:
            height, width = target.shape
            padding = (0, max(self.pad_to[1] - width, 0), 0, max(self.pad_to[0] - height, 0))
            padded = F.pad(padded, padding, value=IMAGE_PADDING)
            target = F.pad(target, padding, value=self.ignore_label)
        record["image"] = padded
        record["sem_seg"] = target
        return record


class SemSegTestMapper:
    """Mapper that reads and resizes an image for evaluation, and reads its labels.

    It runs in the workers of the data loader, so the labels are read while the model computes.

    Args:
        augmentations: applied in order to the image, not to the labels.
        image_format: the channel order of the images, "RGB" or "BGR".
        num_classes: label values are 0..num_classes-1 or ``ignore_label``.
        ignore_label: the label value that evaluation ignores.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        num_classes: int,
        ignore_label: int,
    ) -> None:
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes
        self.ignore_label = ignore_label

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset_name: str) -> dict[str, Any]:
        """Return the arguments for one of ``cfg.DATASETS.TEST``."""
        metadata = MetadataCatalog.get(dataset_name)
        return {
            "augmentations": [
                T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
            ],
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": len(metadata.stuff_classes),
            "ignore_label": metadata.ignore_label,
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Read the image and the labels of a record, and resize the image.

        Args:
            record: ``file_name`` and ``sem_seg_file_name``.

        Returns:
            The record with ``image``, (3, H, W) uint8 after resizing; ``labels``, (height, width)
            int32 as in the file; ``height`` and ``width``, the size of the model's output.

        Raises:
            FileNotFoundError, ValueError: see :meth:`SemSegTrainMapper.__call__`.
        """
        record = dict(record)
        image, labels = _read_image_and_labels(
            record, self.image_format, self.num_classes, self.ignore_label
        )
        record["height"], record["width"] = labels.shape
        record["labels"] = torch.from_numpy(labels.astype(np.int32))
        augmented = T.AugInput(image)
        self.augmentations(augmented)
        record["image"] = _to_tensor(augmented.image)
        return record


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """Convert an image (H, W, 3) to a tensor (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _read_image_and_labels(
    record: dict[str, Any], image_format: str, num_classes: int, ignore_label: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read and check the image (H, W, 3) and the labels (H, W) of a record."""
    image = read_image(record["file_name"], image_format)
    labels = read_labels(record["sem_seg_file_name"])
    if image.shape[:2] != labels.shape:
        raise ValueError(
            f"The image {record['file_name']} is {image.shape[1]}x{image.shape[0]} pixels but its "
            f"labels {record['sem_seg_file_name']} are {labels.shape[1]}x{labels.shape[0]}; "
            "prepare the data set again."
        )
    check_labels(labels, num_classes, ignore_label, record["sem_seg_file_name"])
    return image, labels
