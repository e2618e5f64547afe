#!/usr/bin/env python
"""Prepare PASCAL Context 59: the "val" images of VOCdevkit/VOC2010/trainval_merged.json."""

from functools import partial

from sed_d2.cli.datasets import run_preparation
from sed_d2.paths import data_root


def prepare(workers: int) -> None:
    """Paint the segments of each validation image."""
    # Imported here, so that --help needs no torch.
    from sed_d2 import Vocabulary
    from sed_d2.data.preparation.labels import label_lookup
    from sed_d2.data.preparation.pascal_context import convert_segments, read_validation_images
    from sed_d2.data.preparation.split import prepare_split, require

    source = require(
        data_root() / "VOCdevkit/VOC2010/trainval_merged.json", "PASCAL Context's annotation"
    )
    # The annotation has 459 categories; 460 is unknown, and 0 is outside all segments.
    lookup = label_lookup(Vocabulary.builtin_raw_ids("pascal_context_59"), range(461), 255)
    jobs = {
        stem: partial(convert_segments, image, segments, lookup, source)
        for stem, (image, segments) in read_validation_images(source).items()
    }
    prepare_split("context_59_test_sem_seg", jobs, workers)


if __name__ == "__main__":
    run_preparation(prepare, __doc__)
