"""Miniatures of the benchmarks in their original formats.

All images of a miniature have one size. In even images the left half is the first class and the
right half the last; in odd images the left half is the last class and the right half has none. So
the same predictions have the same metrics in every miniature.
"""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image
from pycocotools import mask as coco_mask

#: The number of images in a miniature.
IMAGES = 4


@dataclass(frozen=True)
class Miniature:
    """Small data set in the original format of a benchmark.

    Attributes:
        script: the script that prepares it.
        names: the registered names.
        raw: the annotation's values of the first class, the last class and no class.
        write: `write(root, stem, image, raw)` adds an image and its annotation.
        finish: `finish(root, stems)` writes the lists of images.
        size: (height, width) of the images.
    """

    script: str
    names: tuple[str, ...]
    raw: tuple[int, int, int]
    write: Callable[[Path, str, np.ndarray, np.ndarray], None]
    finish: Callable[[Path, list[str]], None]
    size: tuple[int, int] = (6, 8)

    def build(self, root: Path, images: int = IMAGES) -> list[str]:
        """Write the data set under `root`; return the stems of its images."""
        stems = [f"2008_{index:06d}" for index in range(images)]
        if self.script == "prepare_ade20k_full.py":
            stems = [f"ADE_val_{index:08d}" for index in range(images)]
        first, last, no_class = self.raw
        for index, stem in enumerate(stems):
            image = np.full((*self.size, 3), 40 * index, np.uint8)
            even = index % 2 == 0
            raw = halves(self.size, first if even else last, last if even else no_class)
            self.write(root, stem, image, raw)
        self.finish(root, stems)
        return stems


def halves(size, left, right) -> np.ndarray:
    """Return (H, W) int64 with `left` in the left half and `right` in the right one."""
    labels = np.full(size, left, np.int64)
    labels[:, size[1] // 2 :] = right
    return labels


def save(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    """Save an image file and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if mode == "P":
        image = image.copy()
        image.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
    image.save(path)


def write_coco(root, stem, image, raw):
    for split in ("val2017", "train2017"):
        save(root / f"coco-stuff/images/{split}/{stem}.jpg", image)
        save(root / f"coco-stuff/annotations/{split}/{stem}.png", raw.astype(np.uint8))


def write_ade(root, stem, image, raw):
    folder = root / "ADEChallengeData2016"
    save(folder / f"images/validation/{stem}.jpg", image)
    save(folder / f"annotations/validation/{stem}.png", raw.astype(np.uint8))


ADE_FULL_FOLDER = "ADE20K_2021_17_01/images/ADE/{}/urban/street"


def write_ade_full(root, stem, image, raw):
    folder = root / ADE_FULL_FOLDER.format("validation")
    save(folder / f"{stem}.jpg", image)
    segments = np.zeros((*raw.shape, 3), np.uint8)
    segments[..., 0] = raw // 256 * 10 + 3  # The class is R // 10 * 256 + G; B counts instances.
    segments[..., 1] = raw % 256
    segments[..., 2] = 77
    save(folder / f"{stem}_seg.png", segments)


def finish_ade_full(root, stems):
    """Write an index with a training image and with numpy fields, as in the original."""
    index = {
        "filename": [*(f"{stem}.jpg" for stem in stems), "ADE_train_00000001.jpg"],
        "folder": [ADE_FULL_FOLDER.format("validation")] * len(stems)
        + [ADE_FULL_FOLDER.format("training")],
        "objectPresence": np.zeros((5, len(stems) + 1)),
        "classIsGuess": np.array([0.5], dtype=object),
        "scene": np.array(["/street"]),
    }
    path = root / "ADE20K_2021_17_01/index_ade20k.pkl"
    path.write_bytes(pickle.dumps(index, protocol=4))


VOC_2010 = "VOCdevkit/VOC2010"


def rle(mask: np.ndarray) -> dict:
    """Return the run-length encoding of a mask for JSON."""
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode()}


def write_context_59(root, stem, image, raw):
    """Write overlapping segments: each also covers the pixels on its right."""
    save(root / VOC_2010 / f"JPEGImages/{stem}.jpg", image)
    path = root / VOC_2010 / "trainval_merged.json"
    content = {"images": [], "annos_segmentation": [], "categories": []}
    if path.is_file():
        content = json.loads(path.read_text())
    number = 2 * len(content["images"])
    for image_id, phase in ((number, "val"), (number + 1, "train")):
        content["images"].append(
            {
                "image_id": image_id,
                "file_name": f"{stem}.jpg" if phase == "val" else f"train_{stem}.jpg",
                "height": raw.shape[0],
                "width": raw.shape[1],
                "phase": phase,
            }
        )
        for start in (0, raw.shape[1] // 2):
            mask = np.zeros(raw.shape, bool)
            mask[:, start:] = True
            content["annos_segmentation"].append(
                {
                    "image_id": image_id,
                    "category_id": int(raw[0, start]),
                    "segmentation": rle(mask),
                }
            )
    path.write_text(json.dumps(content))


def write_context_459(root, stem, image, raw):
    write_context_59(root, stem, image, raw)
    path = root / VOC_2010 / f"trainval/{stem}.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"LabelMap": raw.astype(np.uint16)}, do_compression=True)


def write_voc(root, stem, image, raw):
    """Write no class as background in the upper half and as border in the lower, with a palette."""
    folder = root / "VOCdevkit/VOC2012"
    save(folder / f"JPEGImages/{stem}.jpg", image)
    raw = raw.copy()
    lower = raw[raw.shape[0] // 2 :]
    lower[lower == 0] = 255
    save(folder / f"SegmentationClassAug/{stem}.png", raw.astype(np.uint8), "P")


def finish_voc(root, stems):
    path = root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(stems) + "\n")


def no_lists(root, stems):
    """Write no list."""


MINIATURES = {
    "coco_stuff": Miniature(
        "prepare_coco_stuff.py",
        ("coco_2017_test_stuff_all_sem_seg", "coco_2017_train_stuff_all_sem_seg"),
        (0, 181, 255),
        write_coco,
        no_lists,
    ),
    "ade20k_150": Miniature(
        "prepare_ade20k_150.py", ("ade20k_150_test_sem_seg",), (1, 150, 0), write_ade, no_lists
    ),
    "ade20k_full": Miniature(
        "prepare_ade20k_full.py",
        ("ade20k_full_sem_seg_freq_val_all",),
        (2978, 3148, 1),
        write_ade_full,
        finish_ade_full,
        size=(768, 1536),
    ),
    "pascal_context_59": Miniature(
        "prepare_pascal_context_59.py",
        ("context_59_test_sem_seg",),
        (2, 458, 1),
        write_context_59,
        no_lists,
    ),
    "pascal_context_459": Miniature(
        "prepare_pascal_context_459.py",
        ("context_459_test_sem_seg",),
        (1, 459, 460),
        write_context_459,
        no_lists,
    ),
    "voc": Miniature(
        "prepare_voc.py",
        ("voc_2012_test_sem_seg", "voc_2012_test_background_sem_seg"),
        (1, 20, 0),
        write_voc,
        finish_voc,
    ),
}
