"""Reading images and label maps with errors that name the file; writing whole; many at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image
from tqdm import tqdm


def read_image(path: str | Path, image_format: str = "RGB") -> np.ndarray:
    """Read an image as (H, W, 3) uint8, turned upright by its EXIF orientation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, cut off or no image.
    """
    with _naming(path, "image"):
        return detectron2_read_image(str(path), image_format)


def read_colours(path: str | Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB as it is stored; errors as in :func:`read_image`."""
    with _naming(path, "image"), Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label map as (H, W) in the file's own integer type: 8 or 16 bits, palette or not.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, cut off, no image, or has several channels.
    """
    with _naming(path, "label file"), Image.open(path) as image:
        labels = np.asarray(image)
    if labels.ndim != 2 or labels.dtype.kind not in "ui":
        raise ValueError(
            f"The label file {path} has pixels of mode {image.mode}; save one integer a pixel."
        )
    return labels


@contextmanager
def _naming(path: str | Path, what: str) -> Iterator[None]:
    """Name the file in whatever Pillow raises about it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The {what} {path} does not exist; check the path.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"The {what} {path} cannot be read ({error}); replace it.") from error


def check_labels(labels: np.ndarray, num_classes: int, ignore_label: int, path: str) -> None:
    """Raise ValueError for a value that is neither in 0..num_classes-1 nor ``ignore_label``.

    Args:
        labels: (H, W) integers.
        num_classes: the number of classes.
        ignore_label: the value of pixels without a class.
        path: the file that the message names.
    """
    wrong = (labels >= num_classes) & (labels != ignore_label)
    if labels.dtype.kind == "i":
        wrong |= (labels < 0) & (labels != ignore_label)
    if wrong.any():
        raise ValueError(
            f"The label file {path} holds the value {labels[wrong][0]}, which is neither a class "
            f"(0 to {num_classes - 1}) nor the ignored value {ignore_label}; prepare it again."
        )


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file in one step: whoever looks sees all of it or nothing, even after a kill."""
    # The name is always the same, so that the next run replaces what a killed one has left.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def in_parallel(function: Callable, items: Iterable, workers: int, title: str) -> list:
    """``[function(item) for item in items]`` by ``workers`` threads, with a progress bar.

    Threads and not processes: decoding, resizing and compressing happen outside Python's lock, and
    a killed run leaves no orphans.
    """
    items = list(items)
    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(tqdm(pool.map(function, items), title, len(items), unit="file"))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
