"""Table of the benchmarks' splits, and their registration with Detectron2.

Names, folders and ignored values are the same as in the released implementation of SED.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..paths import data_root
from ..vocabulary import Vocabulary
from .files import stems_in


@dataclass(frozen=True)
class Split:
    """Split of a data set.

    Attributes:
        name: the name in Detectron2's catalogs.
        images: the folder of the images, relative to :func:`data_root` or absolute.
        labels: the folder of the label files, likewise. A label file and its image have the same
            stem.
        ignore_label: the label value of pixels that training and evaluation ignore; no class has
            this value.
        vocabulary: the class names that the model is given.
        how_to_fix: the end of an error message about a missing file.
        label_suffix: ``.png``, or ``.tif`` for 16-bit labels.
        image_suffix: the suffix of the image files.
        count: the number of label files of a complete preparation, if it is known.
        evaluated: the evaluated classes, if they differ from ``vocabulary``. Every further name of
            ``vocabulary`` counts as a last class, "background".

    Raises:
        ValueError: ``ignore_label`` is the value of a class.
    """

    name: str
    images: str
    labels: str
    ignore_label: int
    vocabulary: Vocabulary
    how_to_fix: str
    label_suffix: str = ".png"
    image_suffix: str = ".jpg"
    count: int | None = None
    evaluated: Vocabulary | None = None

    def __post_init__(self) -> None:
        classes = len(self.stuff_classes)
        if self.ignore_label < classes:
            raise ValueError(
                f"The ignored value {self.ignore_label} of the data set {self.name!r} is the value "
                f"of a class (0 to {classes - 1}); choose {classes} or a larger value."
            )

    @property
    def stuff_classes(self) -> list[str]:
        """Names of the evaluated classes in the order of their label values."""
        if self.evaluated is None:
            return list(self.vocabulary.names)
        return [*self.evaluated.names, "background"]

    @property
    def image_folder(self) -> Path:
        """Folder of the images under the present value of DETECTRON2_DATASETS."""
        return data_root() / self.images

    @property
    def label_folder(self) -> Path:
        """Folder of the label files under the present value of DETECTRON2_DATASETS."""
        return data_root() / self.labels


def _benchmark(
    name: str,
    images: str,
    labels: str,
    ignore_label: int,
    vocabulary: str,
    count: int,
    script: str,
    label_suffix: str = ".png",
    evaluated: Vocabulary | None = None,
) -> Split:
    return Split(
        name,
        images,
        labels,
        ignore_label,
        Vocabulary.builtin(vocabulary),
        "set the variable DETECTRON2_DATASETS to the folder of the data sets and run "
        f"'python datasets/{script}'",
        label_suffix,
        count=count,
        evaluated=evaluated,
    )


_COCO = "coco-stuff"
_ADE = "ADEChallengeData2016"
_ADE_FULL = "ADE20K_2021_17_01"
_VOC_2010 = "VOCdevkit/VOC2010"
_VOC_2012 = "VOCdevkit/VOC2012"

#: The columns are name, images, labels, ignored value, vocabulary, number of labels and the script
#: that prepares the labels.
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


def load_split(split: Split) -> list[dict[str, str]]:
    """List the images of a split that have a label file, sorted by their stem.

    Returns:
        Detectron2 records with ``file_name`` and ``sem_seg_file_name``.

    Raises:
        FileNotFoundError: a folder does not exist, there is no label file, or a label file has no
            image.
    """
    images, labels = split.image_folder, split.label_folder
    for folder in (labels, images):
        if not folder.is_dir():
            raise FileNotFoundError(f"The data folder {folder} does not exist; {split.how_to_fix}.")
    # One listing per folder, because 118,000 calls of stat are slow on a network file system.
    stems = sorted(stems_in(labels, split.label_suffix))
    missing = sorted(set(stems) - stems_in(images, split.image_suffix))
    if not stems:
        raise FileNotFoundError(
            f"The data folder {labels} has no {split.label_suffix} file; {split.how_to_fix}."
        )
    if missing:
        raise FileNotFoundError(
            f"The image {images / (missing[0] + split.image_suffix)} of a label file in {labels} "
            f"does not exist ({len(missing)} such images); {split.how_to_fix}."
        )
    return [
        {
            "file_name": str(images / (stem + split.image_suffix)),
            "sem_seg_file_name": str(labels / (stem + split.label_suffix)),
        }
        for stem in stems
    ]


def register(split: Split) -> None:
    """Register a split with Detectron2; a second call with the same split does nothing.

    Its metadata has the split itself as ``split``. Its folders are read when Detectron2 loads it.

    Raises:
        ValueError: another data set has this name.
    """
    metadata = MetadataCatalog.get(split.name)
    if split.name in DatasetCatalog.list():
        if metadata.get("split") == split:
            return
        raise ValueError(f"There already is a data set {split.name!r}; choose another name.")
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
