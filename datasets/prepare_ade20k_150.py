#!/usr/bin/env python
"""Prepare ADE20K-150: ADEChallengeData2016/annotations/validation/*.png, value - 1, 0 ignored."""

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


def prepare(workers: int) -> None:
    """Convert the validation maps."""
    lookup = label_lookup(builtin_raw_ids("ade20k_150"), [0], 255)
    source = require(data_root() / "ADEChallengeData2016/annotations/validation", "ADE20K's maps")
    jobs = {
        stem: partial(convert_file, source / f"{stem}.png", lookup)
        for stem in sorted(stems_in(source, ".png"))
    }
    prepare_split("ade20k_150_test_sem_seg", jobs, workers)


if __name__ == "__main__":
    run_script(prepare, __doc__)
