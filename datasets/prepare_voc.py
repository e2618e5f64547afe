#!/usr/bin/env python
"""Prepare VOC 2012 validation, without and with background as class 20."""

from functools import partial
from pathlib import Path

import numpy as np

from sed_d2.data import data_root
from sed_d2.data.preparation.steps import (
    convert_file,
    label_lookup,
    prepare_split,
    require,
    run_script,
)
from sed_d2.vocabulary import builtin_raw_ids


def prepare(workers: int) -> None:
    """Convert the masks of ImageSets/Segmentation/val.txt for both registered sets."""
    folder = data_root() / "VOCdevkit/VOC2012"
    names = require(folder / "ImageSets/Segmentation/val.txt", "VOC's validation list")
    masks = require(folder / "SegmentationClassAug", "the folder of VOC's masks")
    classes = builtin_raw_ids("pascal_voc_20")
    lookups = {
        "voc_2012_test_sem_seg": label_lookup(classes, [0, 255], 255),
        "voc_2012_test_background_sem_seg": label_lookup([*classes, 0], [255], 255),
    }
    for name, lookup in lookups.items():
        jobs = {
            stem: partial(read_mask, masks / f"{stem}.png", lookup)
            for stem in sorted(names.read_text().split())
        }
        prepare_split(name, jobs, workers)


def read_mask(path: Path, lookup: np.ndarray) -> np.ndarray | None:
    """The labels (H, W) of a mask, or None where no pixel has a class."""
    labels = convert_file(path, lookup)
    return None if (labels == 255).all() else labels


if __name__ == "__main__":
    run_script(prepare, __doc__)
