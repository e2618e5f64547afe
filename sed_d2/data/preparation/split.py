"""Resumable preparation of a split: its label files, written in parallel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image

from ..files import in_parallel, write_whole
from ..verification import verify

logger = logging.getLogger(__name__)


def require(path: Path, description: str) -> Path:
    """Return ``path``, or raise a FileNotFoundError that says what it is and how to get it."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path}, {description}, does not exist; download it as datasets/README.md says, or "
            "set --root to the folder of the data sets."
        )
    return path


def prepare_split(
    name: str,
    jobs: Mapping[str, Callable[[], np.ndarray | None]],
    workers: int,
    writes_images: bool = False,
) -> None:
    """Write the label files of a registered split and log a report.

    Existing files are not written again. A job that fails does not stop the others.

    Args:
        name: the registered name.
        jobs: stem -> a function that returns the labels, (H, W) integers, or None for an image
            without labels.
        workers: the number of jobs that run at a time.
        writes_images: whether the jobs also write the images, before they return.

    Raises:
        ValueError: jobs failed; the message is that of the first one, with their number.
    """
    split = MetadataCatalog.get(name).split
    split.label_folder.mkdir(parents=True, exist_ok=True)
    if writes_images:
        split.image_folder.mkdir(parents=True, exist_ok=True)

    def run(stem: str) -> str | None:
        """Run a job; return its error."""
        path = split.label_folder / (stem + split.label_suffix)
        image = split.image_folder / (stem + split.image_suffix)
        if path.exists() and (image.exists() or not writes_images):
            return None
        try:
            labels = jobs[stem]()
        except (OSError, ValueError) as error:
            return str(error)
        if labels is not None:
            write_whole(path, lambda file: _save_labels(labels, file, split.label_suffix))
        return None

    failures = [failure for failure in in_parallel(run, jobs, workers, name) if failure]
    if failures:
        raise ValueError(f"{failures[0]} ({len(failures)} of {len(jobs)} files of {name} failed)")
    report = verify(split, workers, read_images=False)
    logger.info(report.summary())
    for problem in report.problems:
        logger.warning(problem)


def _save_labels(labels: np.ndarray, file: BinaryIO, suffix: str) -> None:
    if suffix == ".png":
        # The default level 6 takes twice the time for files that are a seventh smaller.
        Image.fromarray(labels.astype(np.uint8)).save(file, "PNG", compress_level=3)
    else:
        Image.fromarray(labels.astype(np.uint16)).save(
            file, "TIFF", compression="tiff_adobe_deflate"
        )
