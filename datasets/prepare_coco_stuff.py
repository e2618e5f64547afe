#!/usr/bin/env python
"""Prepare COCO-Stuff: raw ids 0..181 of coco-stuff/annotations/*2017/*.png to 171 classes."""

from sed_d2.cli.datasets import run_preparation
from sed_d2.paths import data_root

#: Folder of the maps -> registered name.
SPLITS = {
    "val2017": "coco_2017_test_stuff_all_sem_seg",
    "train2017": "coco_2017_train_stuff_all_sem_seg",
}


def prepare(workers: int) -> None:
    """Convert the validation and the training maps."""
    # Imported here, so that --help needs no torch.
    from sed_d2 import Vocabulary
    from sed_d2.data.preparation.labels import folder_jobs, label_lookup
    from sed_d2.data.preparation.split import prepare_split, require

    # 11 of the ids are never used; 255 is unlabelled.
    lookup = label_lookup(Vocabulary.builtin_raw_ids("coco_stuff_171"), [*range(182), 255], 255)
    for folder, name in SPLITS.items():
        source = require(data_root() / "coco-stuff/annotations" / folder, "COCO-Stuff's maps")
        prepare_split(name, folder_jobs(source, lookup), workers)


if __name__ == "__main__":
    run_preparation(prepare, __doc__)
