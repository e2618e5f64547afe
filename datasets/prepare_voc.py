#!/usr/bin/env python
"""Prepare VOC 2012 validation, without and with background as class 20."""

from functools import partial

from sed_d2.cli.datasets import run_preparation
from sed_d2.paths import data_root


def prepare(workers: int) -> None:
    """Convert the masks of ImageSets/Segmentation/val.txt for both registered sets."""
    # Imported here, so that --help needs no torch.
    from sed_d2 import Vocabulary
    from sed_d2.data.preparation.labels import convert_labelled_file, label_lookup
    from sed_d2.data.preparation.split import prepare_split, require

    folder = data_root() / "VOCdevkit/VOC2012"
    names = require(folder / "ImageSets/Segmentation/val.txt", "VOC's validation list")
    masks = require(folder / "SegmentationClassAug", "the folder of VOC's masks")
    classes = Vocabulary.builtin_raw_ids("pascal_voc_20")
    lookups = {
        "voc_2012_test_sem_seg": label_lookup(classes, [0, 255], 255),
        "voc_2012_test_background_sem_seg": label_lookup([*classes, 0], [255], 255),
    }
    for name, lookup in lookups.items():
        jobs = {
            stem: partial(convert_labelled_file, masks / f"{stem}.png", lookup, 255)
            for stem in sorted(names.read_text().split())
        }
        prepare_split(name, jobs, workers)


if __name__ == "__main__":
    run_preparation(prepare, __doc__)
