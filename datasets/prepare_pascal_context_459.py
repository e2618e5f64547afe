#!/usr/bin/env python
"""Prepare PASCAL Context 459: VOCdevkit/VOC2010/trainval/*.mat, value - 1, 460 ignored.

The images are those of VOCdevkit/VOC2010/pascalcontext_val.txt where it exists, else those of phase
"val" in trainval_merged.json that have a .mat file.
"""

from functools import partial
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from sed_d2.data import data_root
from sed_d2.data.preparation.pascal_context import read_validation_images
from sed_d2.data.preparation.steps import convert, label_lookup, prepare_split, require, run_script
from sed_d2.vocabulary import builtin_raw_ids


def prepare(workers: int) -> None:
    """Convert the label map of each validation image."""
    folder = data_root() / "VOCdevkit/VOC2010"
    maps = require(folder / "trainval", "PASCAL Context's label maps")
    lookup = label_lookup(builtin_raw_ids("pascal_context_459"), [0, 460], 459)
    jobs = {
        stem: partial(read_label_map, maps / f"{stem}.mat", lookup)
        for stem in validation_ids(folder, maps)
    }
    prepare_split("context_459_test_sem_seg", jobs, workers)


def validation_ids(folder: Path, maps: Path) -> list[str]:
    """The stems of the validation images, sorted."""
    given = folder / "pascalcontext_val.txt"
    if given.is_file():
        return sorted(Path(line).stem for line in given.read_text().split())
    annotation = require(
        folder / "trainval_merged.json", f"the list of the validation images (like {given.name})"
    )
    stems = read_validation_images(annotation)
    return sorted(stem for stem in stems if (maps / f"{stem}.mat").is_file())


def read_label_map(path: Path, lookup: np.ndarray) -> np.ndarray:
    """The labels (H, W) of a ``.mat`` file's variable LabelMap."""
    try:
        raw = loadmat(path, variable_names=["LabelMap"])["LabelMap"]
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken file raises almost anything
        raise ValueError(f"The label map {path} cannot be read ({error}); replace it.") from error
    return convert(raw.astype(np.int64), lookup, path)


if __name__ == "__main__":
    run_script(prepare, __doc__)
