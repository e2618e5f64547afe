"""Images and segmentations of the full ADE20K data set, shrunk to the size of the benchmark."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..files import read_colours, write_whole
from .labels import convert

#: The largest shorter side of a prepared image.
SHORT_SIDE = 512


def shrink(image_path: Path, output: Path, lookup: np.ndarray) -> np.ndarray:
    """Shrink an image and its labels to a shorter side of at most ``SHORT_SIDE``.

    Args:
        image_path: the original image; ``<stem>_seg.png`` beside it has the segmentation.
        output: the folder that the image is written into.
        lookup: the table of :func:`.labels.label_lookup`.

    Returns:
        The labels, (H, W).

    Raises:
        FileNotFoundError, ValueError: an original is missing, corrupt or has undefined values, or
            the two differ in size.
    """
    image = read_colours(image_path)
    segmentation_path = image_path.with_name(f"{image_path.stem}_seg.png")
    segmentation = read_colours(segmentation_path)
    if image.shape != segmentation.shape:
        raise ValueError(
            f"{image_path} and {segmentation_path} differ in size; download both again."
        )
    height, width, _ = image.shape
    scale = SHORT_SIDE / min(height, width)
    if scale < 1:
        size = (round(width * scale), round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        segmentation = cv2.resize(segmentation, size, interpolation=cv2.INTER_NEAREST)
    # The class is R // 10 * 256 + G; B counts instances.
    raw = segmentation[..., 0].astype(np.int32) // 10 * 256 + segmentation[..., 1]
    labels = convert(raw, lookup, segmentation_path)
    write_whole(
        output / f"{image_path.stem}.jpg", lambda file: Image.fromarray(image).save(file, "JPEG")
    )
    return labels
