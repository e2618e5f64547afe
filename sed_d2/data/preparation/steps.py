"""Preparing label files: raw ids to classes, in parallel, resumable, each file written whole."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image

from ...cli.errors import one_sentence
from ..benchmarks import data_root
from ..files import in_parallel, read_labels, write_whole
from ..verification import verify

logger = logging.getLogger(__name__)

MakeLabels = Callable[[], "np.ndarray | None"]


def label_lookup(raw_ids: Sequence[int], ignored: Iterable[int], ignore_label: int) -> np.ndarray:
    """A table from the annotation's values to classes, for :func:`convert`.

    Args:
        raw_ids: the value of each class.
        ignored: values that are no class but may occur; they become ``ignore_label``.
        ignore_label: the label value of pixels without a class.

    Returns:
        (N,) int32; -1 where a value has no meaning in the data set.
    """
    ignored = np.fromiter(ignored, np.int64)
    lookup = np.full(max(ignored.max(), *raw_ids) + 1, -1, np.int32)
    lookup[ignored] = ignore_label
    lookup[list(raw_ids)] = np.arange(len(raw_ids))
    return lookup


def convert(raw: np.ndarray, lookup: np.ndarray, source: Path) -> np.ndarray:
    """Turn an annotation's values, (H, W) integers, into labels of the same shape.

    Raises:
        ValueError: a value has no meaning in the data set; the message names ``source``.
    """
    outside = raw >= len(lookup)
    labels = lookup[np.where(outside, 0, raw)]
    outside |= labels < 0
    if outside.any():
        raise ValueError(
            f"The annotation {source} holds the value {raw[outside][0]}, which this data set does "
            "not define; download it again."
        )
    return labels


def convert_file(source: Path, lookup: np.ndarray) -> np.ndarray:
    """:func:`convert` for an annotation that is an image with one integer a pixel."""
    return convert(read_labels(source), lookup, source)


def require(path: Path, what: str) -> Path:
    """Return ``path``, or raise FileNotFoundError: it is ``what``, and how to get it."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path}, {what}, does not exist; download it as datasets/README.md says, or set "
            "--root to the folder of the data sets."
        )
    return path


def prepare_split(
    name: str, jobs: Mapping[str, MakeLabels], workers: int, makes_images: bool = False
) -> None:
    """Write the label files of a registered split and report on it.

    Files that are there already are kept: they are whole. A job that fails does not stop the
    others.

    Args:
        name: the registered name.
        jobs: what makes the labels of each stem: a function that returns (H, W) integers, or None
            for an image that is to be left out.
        workers: how many jobs run at once.
        makes_images: the jobs write the images, too, before they return.

    Raises:
        ValueError: jobs failed; the message is the first one's, with their number.
    """
    split = MetadataCatalog.get(name).split
    split.label_folder.mkdir(parents=True, exist_ok=True)
    if makes_images:
        split.image_folder.mkdir(parents=True, exist_ok=True)

    def run(stem: str) -> str | None:
        path = split.label_folder / (stem + split.label_suffix)
        image = split.image_folder / (stem + split.image_suffix)
        if path.exists() and (image.exists() or not makes_images):
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


def run_script(prepare: Callable[[int], None], description: str) -> None:
    """The command line of a preparing script: ``--root`` and ``--jobs``; exit code 1 on errors.

    Args:
        prepare: does the work under :func:`data_root` with the given number of workers.
        description: the help text.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--root", type=Path, default=data_root(), help="folder of the data sets (%(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="files at once (%(default)s)"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ["DETECTRON2_DATASETS"] = str(args.root)
    try:
        with one_sentence():
            prepare(max(args.jobs, 1))
    except KeyboardInterrupt:
        sys.exit("Stopped; run the command again to continue.")


def _save_labels(labels: np.ndarray, file: BinaryIO, suffix: str) -> None:
    if suffix == ".png":
        # level 6, the default, takes twice as long for files a seventh smaller
        Image.fromarray(labels.astype(np.uint8)).save(file, "PNG", compress_level=3)
    else:
        Image.fromarray(labels.astype(np.uint16)).save(
            file, "TIFF", compression="tiff_adobe_deflate"
        )
