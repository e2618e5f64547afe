"""Conversion of an annotation's values to label values with a lookup table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..files import read_labels, stems_in


def label_lookup(raw_ids: Sequence[int], ignored: Iterable[int], ignore_label: int) -> np.ndarray:
    """Make the lookup table of :func:`convert`.

    Args:
        raw_ids: the annotation's value of each class.
        ignored: values without a class that may occur; they become ``ignore_label``.
        ignore_label: the label value of pixels without a class.

    Returns:
        (N,) int32, raw value -> label value; -1 for a value that the data set does not define.
    """
    ignored_ids = np.fromiter(ignored, np.int64)
    lookup = np.full(max(ignored_ids.max(), *raw_ids) + 1, -1, np.int32)
    lookup[ignored_ids] = ignore_label
    lookup[list(raw_ids)] = np.arange(len(raw_ids))
    return lookup


def convert(raw: np.ndarray, lookup: np.ndarray, source: str | Path) -> np.ndarray:
    """Convert an annotation, (H, W) integers, to labels of the same shape.

    Args:
        raw: the annotation's values.
        lookup: the table of :func:`label_lookup`.
        source: the file that an error names.

    Raises:
        ValueError: the data set does not define a value.
    """
    undefined = raw >= len(lookup)
    labels = lookup[np.where(undefined, 0, raw)]
    undefined |= labels < 0
    if undefined.any():
        raise ValueError(
            f"The annotation {source} has the value {raw[undefined][0]}, which this data set does "
            "not define; download it again."
        )
    return labels


def convert_file(source: Path, lookup: np.ndarray) -> np.ndarray:
    """Convert an annotation that is an image with one integer per pixel; see :func:`convert`."""
    return convert(read_labels(source), lookup, source)


def convert_labelled_file(source: Path, lookup: np.ndarray, ignore_label: int) -> np.ndarray | None:
    """Convert as :func:`convert_file` does; return None if every pixel is ignored."""
    labels = convert_file(source, lookup)
    return None if (labels == ignore_label).all() else labels


def folder_jobs(folder: Path, lookup: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """Return stem -> a function that converts the file, for the PNG files of a folder."""
    return {
        stem: partial(convert_file, folder / f"{stem}.png", lookup)
        for stem in sorted(stems_in(folder, ".png"))
    }
