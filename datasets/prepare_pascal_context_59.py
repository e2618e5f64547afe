#!/usr/bin/env python
"""Prepare PASCAL Context 59: the "val" images of VOCdevkit/VOC2010/trainval_merged.json."""

from pathlib import Path

import numpy as np

from sed_d2.data import data_root
from sed_d2.data.preparation.pascal_context import paint, read_validation_images
from sed_d2.data.preparation.steps import convert, label_lookup, prepare_split, require, run_script
from sed_d2.vocabulary import builtin_raw_ids


def prepare(workers: int) -> None:
    """Paint the segments of each validation image."""
    source = require(
        data_root() / "VOCdevkit/VOC2010/trainval_merged.json", "PASCAL Context's annotation"
    )
    # the annotation has 459 categories, 460 is unknown, and 0 is where nothing is painted
    lookup = label_lookup(builtin_raw_ids("pascal_context_59"), range(461), 255)

    def job(image: dict, segments: list[dict]) -> np.ndarray:
        path = Path(f"{source} ({image['file_name']})")
        return convert(paint(image, segments, source), lookup, path)

    jobs = {
        stem: lambda entry=entry: job(*entry)
        for stem, entry in read_validation_images(source).items()
    }
    prepare_split("context_59_test_sem_seg", jobs, workers)


if __name__ == "__main__":
    run_script(prepare, __doc__)
