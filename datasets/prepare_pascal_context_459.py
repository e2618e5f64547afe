#!/usr/bin/env python
"""Prepare PASCAL Context 459: VOCdevkit/VOC2010/trainval/*.mat, value - 1, 460 ignored.

The images are those of VOCdevkit/VOC2010/pascalcontext_val.txt where it exists, else those of phase
"val" in trainval_merged.json that have a .mat file.
"""

from functools import partial

from sed_d2.cli.datasets import run_preparation
from sed_d2.paths import data_root


def prepare(workers: int) -> None:
    """Convert the label map of each validation image."""
    # Imported here, so that --help needs no torch.
    from sed_d2 import Vocabulary
    from sed_d2.data.preparation.labels import label_lookup
    from sed_d2.data.preparation.pascal_context import convert_label_map, validation_stems
    from sed_d2.data.preparation.split import prepare_split, require

    folder = data_root() / "VOCdevkit/VOC2010"
    maps = require(folder / "trainval", "PASCAL Context's label maps")
    lookup = label_lookup(Vocabulary.builtin_raw_ids("pascal_context_459"), [0, 460], 459)
    jobs = {
        stem: partial(convert_label_map, maps / f"{stem}.mat", lookup)
        for stem in validation_stems(folder, maps)
    }
    prepare_split("context_459_test_sem_seg", jobs, workers)


if __name__ == "__main__":
    run_preparation(prepare, __doc__)
