#!/usr/bin/env python
"""Prepare ADE20K-847: images and *_seg.png of ADE20K_2021_17_01, to a short side of at most 512."""

from functools import partial
from pathlib import Path

from sed_d2.cli.datasets import run_preparation
from sed_d2.paths import data_root


def prepare(workers: int) -> None:
    """Shrink the validation images of the index, and convert their segmentations."""
    # Imported here, so that --help needs no torch.
    from sed_d2 import Vocabulary
    from sed_d2.data.preparation.ade20k_images import shrink
    from sed_d2.data.preparation.ade20k_index import read_ade20k_index
    from sed_d2.data.preparation.labels import label_lookup
    from sed_d2.data.preparation.split import prepare_split, require

    folder = data_root() / "ADE20K_2021_17_01"
    index = require(folder / "index_ade20k.pkl", "ADE20K's index")
    output = folder / "images_detectron2/validation"
    # The colours encode 26 * 256 values; the 847 classes are the frequent ones.
    lookup = label_lookup(Vocabulary.builtin_raw_ids("ade20k_847"), range(26 * 256), 65535)
    jobs = {
        Path(file).stem: partial(shrink, data_root() / path / Path(file).name, output, lookup)
        for path, file in read_ade20k_index(index)
        if "validation" in Path(path).parts
    }
    prepare_split("ade20k_full_sem_seg_freq_val_all", jobs, workers, writes_images=True)


if __name__ == "__main__":
    run_preparation(prepare, __doc__)
