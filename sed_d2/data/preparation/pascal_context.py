"""Reading PASCAL Context's ``trainval_merged.json``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

SEGMENTS = ("annos_segmentation", "annos_segm", "annotations")
IMAGE_IDS = ("image_id", "id")


def read_validation_images(path: Path) -> dict[str, tuple[dict, list[dict]]]:
    """The images of phase "val" and their segments in file order.

    Returns:
        stem -> (the image's entry, its segments' entries).

    Raises:
        ValueError: the file is not of this form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        key = next(key for key in SEGMENTS if key in content)
        found = {
            next(image[name] for name in IMAGE_IDS if name in image): (image, [])
            for image in content["images"]
            if image["phase"] == "val"
        }
        for segment in content[key]:
            if segment["image_id"] in found:
                found[segment["image_id"]][1].append(segment)
        return {Path(entry[0]["file_name"]).stem: entry for entry in found.values()}
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise ValueError(
            f"{path} is not PASCAL Context's annotation ({type(error).__name__}: {error}); "
            "download it again."
        ) from error


def paint(image: dict, segments: list[dict], source: Path) -> np.ndarray:
    """The category ids (H, W) of an image's segments, painted over one another in their order.

    Args:
        image: the image's entry, with ``height`` and ``width``.
        segments: entries with ``category_id`` and a run-length-encoded ``segmentation``.
        source: the file that an error names.

    Returns:
        int32; 0 where there is no segment.

    Raises:
        ValueError: a segmentation is malformed or has another size.
    """
    size = (image["height"], image["width"])
    painted = np.zeros(size, np.int32)
    for segment in segments:
        try:
            runs = segment["segmentation"]
            if isinstance(runs["counts"], list):
                runs = coco_mask.frPyObjects(runs, *size)
            painted[coco_mask.decode(runs).astype(bool)] = segment["category_id"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"A segment of {image['file_name']} in {source} is malformed ({error}); download "
                "it again."
            ) from error
    return painted
