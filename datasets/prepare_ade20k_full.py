#!/usr/bin/env python
"""Prepare ADE20K-847: images and *_seg.png of ADE20K_2021_17_01, to a short side of at most 512."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sed_d2.data import data_root
from sed_d2.data.files import read_colours, write_whole
from sed_d2.data.preparation.ade20k_index import read_ade20k_index
from sed_d2.data.preparation.steps import convert, label_lookup, prepare_split, require, run_script
from sed_d2.vocabulary import builtin_raw_ids

NAME = "ade20k_full_sem_seg_freq_val_all"
FOLDER = "ADE20K_2021_17_01"
SHORT_SIDE = 512


def prepare(workers: int) -> None:
    """Convert the validation images of the index and their segmentations."""
    index = require(data_root() / FOLDER / "index_ade20k.pkl", "ADE20K's index")
    output = data_root() / FOLDER / "images_detectron2/validation"
    # every value that the colours can encode may occur; the 847 are the frequent ones
    lookup = label_lookup(builtin_raw_ids("ade20k_847"), range(26 * 256), 65535)
    jobs = {
        Path(file).stem: partial(shrink, data_root() / folder / Path(file).name, output, lookup)
        for folder, file in read_ade20k_index(index)
        if "validation" in Path(folder).parts
    }
    prepare_split(NAME, jobs, workers, makes_images=True)


def shrink(image_path: Path, output: Path, lookup: np.ndarray) -> np.ndarray:
    """Write the shrunken image into ``output`` and return the shrunken labels, (H, W)."""
    image = read_colours(image_path)
    segments_path = image_path.with_name(f"{image_path.stem}_seg.png")
    segments = read_colours(segments_path)
    if image.shape != segments.shape:
        raise ValueError(f"{image_path} and {segments_path} differ in size; download both again.")
    height, width, _ = image.shape
    scale = SHORT_SIDE / min(height, width)
    if scale < 1:
        size = (round(width * scale), round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        segments = cv2.resize(segments, size, interpolation=cv2.INTER_NEAREST)
    raw = segments[..., 0].astype(np.int32) // 10 * 256 + segments[..., 1]
    labels = convert(raw, lookup, segments_path)
    write_whole(
        output / f"{image_path.stem}.jpg", lambda file: Image.fromarray(image).save(file, "JPEG")
    )
    return labels


if __name__ == "__main__":
    run_script(prepare, __doc__)
