"""The benchmarks: one table of splits and one loop that registers them with Detectron2.

Names, folders and ignored values are those of the released implementation of SED.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..vocabulary import Vocabulary


@dataclass(frozen=True)
class Split:
    """One registered split.

    Attributes:
        name: the name in Detectron2's catalogs.
        images: the folder of the images, under :func:`data_root` where it is relative.
        labels: the folder of the label files likewise; files are matched by their stem.
        ignore_label: the label value that is neither trained nor evaluated; no class's value.
        vocabulary: the names that the model is asked for.
        mend: what to do about a missing file, the end of an error's sentence.
        label_suffix: ``.png``, or ``.tif`` for the benchmarks' 16-bit labels.
        image_suffix: likewise.
        count: the number of label files of a complete preparation, if it is known.
        evaluated: the classes that are evaluated, if they are others; every further name of
            ``vocabulary`` then counts as a last class, "background".

    Raises:
        ValueError: ``ignore_label`` is a class's value.
    """

    name: str
    images: str
    labels: str
    ignore_label: int
    vocabulary: Vocabulary
    mend: str
    label_suffix: str = ".png"
    image_suffix: str = ".jpg"
    count: int | None = None
    evaluated: Vocabulary | None = None

    def __post_init__(self) -> None:
        classes = len(self.stuff_classes)
        if self.ignore_label < classes:
            raise ValueError(
                f"The ignored value {self.ignore_label} of the data set {self.name!r} is one of "
                f"its classes' values, 0 to {classes - 1}; choose a value from {classes} on."
            )

    @property
    def stuff_classes(self) -> list[str]:
        """The names of the classes that are evaluated, in the order of the label values."""
        if self.evaluated is None:
            return list(self.vocabulary.names)
        return [*self.evaluated.names, "background"]

    @property
    def image_folder(self) -> Path:
        """The folder of the images, by what DETECTRON2_DATASETS is now."""
        return data_root() / self.images

    @property
    def label_folder(self) -> Path:
        """The folder of the label files, by what DETECTRON2_DATASETS is now."""
        return data_root() / self.labels


def _benchmark(
    name: str,
    images: str,
    labels: str,
    ignore_label: int,
    vocabulary: str,
    count: int,
    script: str,
    **others,
) -> Split:
    return Split(
        name,
        images,
        labels,
        ignore_label,
        Vocabulary.builtin(vocabulary),
        "set the variable DETECTRON2_DATASETS to the folder of the data sets and run "
        f"'python datasets/{script}'",
        count=count,
        **others,
    )


_COCO = "coco-stuff"
_ADE = "ADEChallengeData2016"
_ADE_FULL = "ADE20K_2021_17_01"
_VOC_2010 = "VOCdevkit/VOC2010"
_VOC_2012 = "VOCdevkit/VOC2012"

# name; images; labels; ignored value; vocabulary; number of labels; script that prepares it
SPLITS: tuple[Split, ...] = (
    _benchmark(
        "coco_2017_train_stuff_all_sem_seg",
        f"{_COCO}/images/train2017", f"{_COCO}/annotations_detectron2/train2017",
        255, "coco_stuff_171", 118287, "prepare_coco_stuff.py",
    ),
    _benchmark(
        "coco_2017_test_stuff_all_sem_seg",
        f"{_COCO}/images/val2017", f"{_COCO}/annotations_detectron2/val2017",
        255, "coco_stuff_171", 5000, "prepare_coco_stuff.py",
    ),
    _benchmark(
        "ade20k_150_test_sem_seg",
        f"{_ADE}/images/validation", f"{_ADE}/annotations_detectron2/validation",
        255, "ade20k_150", 2000, "prepare_ade20k_150.py",
    ),
    _benchmark(
        "ade20k_full_sem_seg_freq_val_all",
        f"{_ADE_FULL}/images_detectron2/validation",
        f"{_ADE_FULL}/annotations_detectron2/validation",
        65535, "ade20k_847", 2000, "prepare_ade20k_full.py", label_suffix=".tif",
    ),
    _benchmark(
        "context_59_test_sem_seg",
        f"{_VOC_2010}/JPEGImages", f"{_VOC_2010}/annotations_detectron2/pc59_val",
        255, "pascal_context_59", 5105, "prepare_pascal_context_59.py",
    ),
    _benchmark(
        "context_459_test_sem_seg",
        f"{_VOC_2010}/JPEGImages", f"{_VOC_2010}/annotations_detectron2/pc459_val",
        459, "pascal_context_459", 5104, "prepare_pascal_context_459.py", label_suffix=".tif",
    ),
    _benchmark(
        "voc_2012_test_sem_seg",
        f"{_VOC_2012}/JPEGImages", f"{_VOC_2012}/annotations_detectron2/val",
        255, "pascal_voc_20", 1449, "prepare_voc.py",
    ),
    _benchmark(
        "voc_2012_test_background_sem_seg",
        f"{_VOC_2012}/JPEGImages", f"{_VOC_2012}/annotations_detectron2_bg/val",
        255, "pascal_voc_20_background", 1449, "prepare_voc.py",
        evaluated=Vocabulary.builtin("pascal_voc_20"),
    ),
)  # fmt: skip


def data_root() -> Path:
    """The folder that holds the data sets: ``DETECTRON2_DATASETS``, by default ``datasets``."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def load_pairs(
    images: Path, labels: Path, label_suffix: str, image_suffix: str, mend: str
) -> list[dict[str, str]]:
    """List the images that have a label file, matched by stem and sorted by it.

    Args:
        images: the folder of the images.
        labels: the folder of the label files.
        label_suffix: such as ``.png``; other files of the folder are left out.
        image_suffix: such as ``.jpg``.
        mend: what to do about a missing folder or file, the end of the error's sentence.

    Returns:
        Detectron2 records with ``file_name`` and ``sem_seg_file_name``.

    Raises:
        FileNotFoundError: a folder is missing, has no label file, or a label has no image.
    """
    for folder in (labels, images):
        if not folder.is_dir():
            raise FileNotFoundError(f"The data folder {folder} does not exist; {mend}.")
    # One listing a folder: asking for each of 118,000 files is slow on a network file system.
    stems = sorted(stems_in(labels, label_suffix))
    missing = sorted(set(stems) - stems_in(images, image_suffix))
    if not stems:
        raise FileNotFoundError(f"The data folder {labels} has no {label_suffix} file; {mend}.")
    if missing:
        raise FileNotFoundError(
            f"The image {images / (missing[0] + image_suffix)} of a label file in {labels} does "
            f"not exist ({len(missing)} such images); {mend}."
        )
    return [
        {
            "file_name": str(images / (stem + image_suffix)),
            "sem_seg_file_name": str(labels / (stem + label_suffix)),
        }
        for stem in stems
    ]


def stems_in(folder: Path, suffix: str) -> set[str]:
    """The names, without ``suffix``, of the files in ``folder`` that end with it."""
    return {
        name[: -len(suffix)]
        for name in os.listdir(folder)
        if name.endswith(suffix) and not name.startswith(".")
    }


def load_split(split: Split) -> list[dict[str, str]]:
    """The Detectron2 records of a split; errors as in :func:`load_pairs`."""
    return load_pairs(
        split.image_folder, split.label_folder, split.label_suffix, split.image_suffix, split.mend
    )


def register(split: Split) -> None:
    """Register a split; its folders are looked at when Detectron2 asks for its images.

    The split itself is in the metadata, as ``split``. Registering the same split again does
    nothing.

    Raises:
        ValueError: another split has this name.
    """
    metadata = MetadataCatalog.get(split.name)
    if split.name in DatasetCatalog.list():
        if metadata.get("split") == split:
            return
        raise ValueError(f"There is a data set {split.name!r} already; choose another name.")
    DatasetCatalog.register(split.name, partial(load_split, split))
    metadata.set(
        split=split,
        stuff_classes=split.stuff_classes,
        ignore_label=split.ignore_label,
        evaluator_type="sem_seg",
    )
    if split.evaluated is not None:
        metadata.set(vocabulary=list(split.vocabulary.names))


for _split in SPLITS:
    register(_split)
