"""From a Detectron2 record to the tensors that the model is trained with and evaluated on."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from torch.nn import functional as F

from .files import check_labels, read_image, read_labels

IMAGE_PADDING = 128  # mid-grey, as in the released training


class SemSegTrainMapper:
    """Read, augment and pad an image and its labels for training (paper, section 4).

    Resize the short side, crop so that no class fills more than a given part, colour augmentation
    of SSD, random flip; then pad the image with 128 and the labels with the ignored value.
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
    ):
        """
        Args:
            augmentations: applied in order, to image and labels alike.
            image_format: channel order of the images, "RGB" or "BGR".
            num_classes: label values are 0..num_classes-1 or ``ignore_label``.
            ignore_label: the label value that is not trained.
            pad_to: least (height, width) of what comes out; None: no padding.
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.pad_to = pad_to

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        """The arguments for ``cfg.DATASETS.TRAIN``; ``is_train`` is Detectron2's convention.

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
            # only an absolute crop size is a number of pixels that an image may fall short of
            "pad_to": tuple(crop.SIZE) if crop.ENABLED and crop.TYPE == "absolute" else None,
        }

    def __call__(self, record: dict) -> dict:
        """
        Args:
            record: ``file_name`` and ``sem_seg_file_name``.

        Returns:
            the record with ``image``, (3, H, W) uint8, and ``sem_seg``, (H, W) int64.

        Raises:
            FileNotFoundError, ValueError: a file is missing, cannot be read, has another size
                than its partner, or a label value that is neither a class nor ignored.
        """
        record = dict(record)
        image, labels = _read_pair(record, self.image_format, self.num_classes, self.ignore_label)
        if labels.dtype != np.uint8:
            # Detectron2 resizes other types than uint8 with torch, which wants floats here; 24
            # bits of mantissa hold every 16-bit value exactly.
            labels = labels.astype(np.float32)
        augmented = T.AugInput(image, sem_seg=labels)
        self.augmentations(augmented)

        image = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        labels = torch.from_numpy(augmented.sem_seg.astype(np.int64))
        if self.pad_to is not None:
            height, width = labels.shape
            padding = (0, max(self.pad_to[1] - width, 0), 0, max(self.pad_to[0] - height, 0))
            image = F.pad(image, padding, value=IMAGE_PADDING)
            labels = F.pad(labels, padding, value=self.ignore_label)
        record["image"] = image
        record["sem_seg"] = labels
        return record


class SemSegTestMapper:
    """Read and resize an image for evaluation and read its labels as they are.

    The data loader's workers so do the reading of the labels, too, while the model computes.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        num_classes: int,
        ignore_label: int,
    ):
        """
        Args:
            augmentations: applied in order to the image alone.
            image_format: channel order of the images, "RGB" or "BGR".
            num_classes: label values are 0..num_classes-1 or ``ignore_label``.
            ignore_label: the label value that is not evaluated.
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes
        self.ignore_label = ignore_label

    @classmethod
    def from_config(cls, cfg, dataset_name: str) -> dict:
        """The arguments for one of ``cfg.DATASETS.TEST``."""
        metadata = MetadataCatalog.get(dataset_name)
        return {
            "augmentations": [
                T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
            ],
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": len(metadata.stuff_classes),
            "ignore_label": metadata.ignore_label,
        }

    def __call__(self, record: dict) -> dict:
        """
        Args:
            record: ``file_name`` and ``sem_seg_file_name``.

        Returns:
            the record with ``image``, (3, H, W) uint8 after resizing, ``labels``, (height, width)
            int32 as in the file, and ``height`` and ``width``, the size asked of the model.

        Raises:
            FileNotFoundError, ValueError: see :class:`SemSegTrainMapper`.
        """
        record = dict(record)
        image, labels = _read_pair(record, self.image_format, self.num_classes, self.ignore_label)
        record["height"], record["width"] = labels.shape
        record["labels"] = torch.from_numpy(labels.astype(np.int32))
        augmented = T.AugInput(image)
        self.augmentations(augmented)
        record["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        return record


def _read_pair(
    record: dict, image_format: str, num_classes: int, ignore_label: int
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
