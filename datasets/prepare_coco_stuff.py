#!/usr/bin/env python
"""Prepare COCO-Stuff: raw ids 0..181 of coco-stuff/annotations/*2017/*.png to 171 classes."""

from functools import partial

from sed_d2.data import data_root
from sed_d2.data.benchmarks import stems_in
from sed_d2.data.preparation.steps import (
    convert_file,
    label_lookup,
    prepare_split,
    require,
    run_script,
)
from sed_d2.vocabulary import builtin_raw_ids

SPLITS = {
    "val2017": "coco_2017_test_stuff_all_sem_seg",
    "train2017": "coco_2017_train_stuff_all_sem_seg",
}


def prepare(workers: int) -> None:
    """Convert the validation and the training maps."""
    # 11 of the ids are never used; 255 is unlabelled
    lookup = label_lookup(builtin_raw_ids("coco_stuff_171"), [*range(182), 255], 255)
    for folder, name in SPLITS.items():
        source = require(data_root() / "coco-stuff/annotations" / folder, "COCO-Stuff's maps")
        jobs = {
            stem: partial(convert_file, source / f"{stem}.png", lookup)
            for stem in sorted(stems_in(source, ".png"))
        }
        prepare_split(name, jobs, workers)


if __name__ == "__main__":
    run_script(prepare, __doc__)
