"""Reading images and label maps, atomic writing, and a parallel loop over files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image
from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_image(path: str | Path, image_format: str = "RGB") -> np.ndarray:
    """Read an image as (H, W, 3) uint8, turned upright by its EXIF orientation.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is empty, truncated or not an image.
    """
    with _name_file_in_errors(path, "image"):
        return detectron2_read_image(str(path), image_format)


def read_colours(path: str | Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB without its EXIF orientation.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_image`.
    """
    with _name_file_in_errors(path, "image"), Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label map, with or without a palette, as (H, W) in its 8-bit or 16-bit type.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is empty, truncated, not an image, or has several channels.
    """
    with _name_file_in_errors(path, "label file"), Image.open(path) as image:
        labels = np.asarray(image)
    if labels.ndim != 2 or labels.dtype.kind not in "ui":
        raise ValueError(
            f"The label file {path} has pixels of mode {image.mode}; save one integer per pixel."
        )
    return labels


@contextmanager
def _name_file_in_errors(path: str | Path, kind: str) -> Iterator[None]:
    """Name the file in the errors that Pillow raises for it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The {kind} {path} does not exist; check the path.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"The {kind} {path} cannot be read ({error}); replace it.") from error


def check_labels(labels: np.ndarray, num_classes: int, ignore_label: int, path: str | Path) -> None:
    """Raise a ValueError for a value that is neither a class nor ``ignore_label``.

    Args:
        labels: (H, W) integers.
        num_classes: the number of classes; their values are 0 to ``num_classes`` - 1.
        ignore_label: the value of pixels without a class.
        path: the file that the message names.
    """
    wrong = (labels >= num_classes) & (labels != ignore_label)
    if labels.dtype.kind == "i":
        wrong |= (labels < 0) & (labels != ignore_label)
    if wrong.any():
        raise ValueError(
            f"The label file {path} has the value {labels[wrong][0]}, which is neither a class "
            f"(0 to {num_classes - 1}) nor the ignored value {ignore_label}; prepare it again."
        )


def stems_in(folder: Path, suffix: str) -> set[str]:
    """Return the names, without ``suffix``, of the visible files in ``folder`` that end with it."""
    return {
        name.removesuffix(suffix)
        for name in os.listdir(folder)
        if name.endswith(suffix) and not name.startswith(".")
    }


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically: readers see the whole file or none, even after a kill."""
    # The temporary name is always the same, so the next run replaces the file of a killed one.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text_whole(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, as :func:`write_whole` does."""
    write_whole(path, lambda file: file.write(text.encode()))


def in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, title: str
) -> list[Result]:
    """Return ``[function(item) for item in items]``, computed by ``workers`` threads.

    Threads suffice, because Pillow, OpenCV and zlib release the GIL. Unlike processes they end with
    a killed program. A progress bar shows ``title``.
    """
    items = list(items)
    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(tqdm(pool.map(function, items), title, len(items), unit="file"))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
