"""PASCAL Context: its annotation ``trainval_merged.json`` and its label maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy.io import loadmat

from .labels import convert
from .split import require

#: Keys that versions of the annotation have for the list of segments.
SEGMENTS = ("annos_segmentation", "annos_segm", "annotations")
#: Keys that versions of the annotation have for the id of an image.
IMAGE_IDS = ("image_id", "id")

#: An entry of the annotation.
Entry = dict[str, Any]


def read_validation_images(path: Path) -> dict[str, tuple[Entry, list[Entry]]]:
    """Read the images of phase "val" and their segments from ``trainval_merged.json``.

    Returns:
        stem -> (the image's entry, its segments' entries in the order of the file).

    Raises:
        ValueError: the file has another form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        key = next(key for key in SEGMENTS if key in content)
        images: dict[int, tuple[Entry, list[Entry]]] = {
            next(image[name] for name in IMAGE_IDS if name in image): (image, [])
            for image in content["images"]
            if image["phase"] == "val"
        }
        for segment in content[key]:
            if segment["image_id"] in images:
                images[segment["image_id"]][1].append(segment)
        return {Path(entry[0]["file_name"]).stem: entry for entry in images.values()}
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise ValueError(
            f"{path} is not PASCAL Context's annotation ({type(error).__name__}: {error}); "
            "download it again."
        ) from error


def convert_segments(
    image: Entry, segments: list[Entry], lookup: np.ndarray, source: Path
) -> np.ndarray:
    """Paint an image's segments and convert their category ids to labels.

    Args:
        image: the image's entry, with ``height`` and ``width``.
        segments: entries with ``category_id`` and a run-length-encoded ``segmentation``; a later
            segment covers an earlier one.
        lookup: the table of :func:`.labels.label_lookup`; 0 is the value outside all segments.
        source: the file that an error names.

    Returns:
        The labels, (H, W).

    Raises:
        ValueError: a segmentation is malformed or has another size, or a category is not defined.
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
    return convert(painted, lookup, f"{source} ({image['file_name']})")


def validation_stems(folder: Path, maps: Path) -> list[str]:
    """List the stems of the validation images with a label map, sorted.

    They are those of ``pascalcontext_val.txt`` where it exists, else those of phase "val" in
    ``trainval_merged.json`` that have a file in ``maps``.
    """
    released = folder / "pascalcontext_val.txt"
    if released.is_file():
        return sorted(Path(line).stem for line in released.read_text().split())
    annotation = require(
        folder / "trainval_merged.json", f"the list of the validation images (like {released.name})"
    )
    stems = read_validation_images(annotation)
    return sorted(stem for stem in stems if (maps / f"{stem}.mat").is_file())


def convert_label_map(path: Path, lookup: np.ndarray) -> np.ndarray:
    """Convert the variable LabelMap of a ``.mat`` file to labels, (H, W); see :func:`convert`."""
    try:
        raw = loadmat(path, variable_names=["LabelMap"])["LabelMap"]
    except FileNotFoundError:
        raise
    except Exception as error:  # a corrupt file raises almost any exception
        raise ValueError(f"The label map {path} cannot be read ({error}); replace it.") from error
    return convert(raw.astype(np.int64), lookup, path)
