#!/usr/bin/env python
"""Prepare ADE20K-150: ADEChallengeData2016/annotations/validation/*.png, value - 1, 0 ignored."""

from sed_d2.cli.datasets import run_preparation
from sed_d2.paths import data_root


def prepare(workers: int) -> None:
    """Convert the validation maps."""
    # Imported here, so that --help needs no torch.
    from sed_d2 import Vocabulary
    from sed_d2.data.preparation.labels import folder_jobs, label_lookup
    from sed_d2.data.preparation.split import prepare_split, require

    lookup = label_lookup(Vocabulary.builtin_raw_ids("ade20k_150"), [0], 255)
    source = require(data_root() / "ADEChallengeData2016/annotations/validation", "ADE20K's maps")
    prepare_split("ade20k_150_test_sem_seg", folder_jobs(source, lookup), workers)


if __name__ == "__main__":
    run_preparation(prepare, __doc__)
