"""The training and test mappers, on images of a few pixels."""

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from sed_d2 import get_sed_cfg
from sed_d2.data import SemSegTestMapper, SemSegTrainMapper

CLASSES = [f"class {index}" for index in range(300)]


@pytest.fixture
def dataset(tmp_path):
    """Register 300 classes and the ignored value 65535; return the name."""
    name = f"mapper_{tmp_path.parent.name}_{tmp_path.name}"
    MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=65535)
    yield name
    MetadataCatalog.remove(name)


def write(tmp_path, image, labels):
    """Save an image and its labels; return their record."""
    record = {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "labels.tif"),
    }
    Image.fromarray(image).save(record["file_name"])
    Image.fromarray(labels).save(record["sem_seg_file_name"])
    return record


def config(dataset, *opts):
    base = ["INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TRAIN", "(4,)", "INPUT.MAX_SIZE_TRAIN", "99"]
    cfg = get_sed_cfg("", [*base, "INPUT.RANDOM_FLIP", "none", *opts])
    cfg.DATASETS.TRAIN = (dataset,)
    return cfg


CROP = ("INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE")


@pytest.fixture
def sample():
    """Return a 4 x 6 image and its labels: 0..22 in row-major order, with 299 and 65535."""
    image = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    labels = np.arange(24, dtype=np.uint16).reshape(4, 6)
    labels[0, 1] = 299
    labels[3, 5] = 65535
    return image, labels


def test_padding_is_grey_and_ignored_and_16_bit_labels_survive(tmp_path, dataset, sample):
    image, labels = sample
    mapper = SemSegTrainMapper(config(dataset, *CROP, "(6, 8)"))
    out = mapper(write(tmp_path, image, labels))
    assert out["image"].dtype == torch.uint8 and out["image"].shape == (3, 6, 8)
    assert out["sem_seg"].dtype == torch.int64 and out["sem_seg"].shape == (6, 8)
    assert (out["image"][:, :4, :6].permute(1, 2, 0).numpy() == image).all()
    assert (out["sem_seg"][:4, :6].numpy() == labels).all()
    assert (out["image"][:, 4:] == 128).all() and (out["image"][:, :, 6:] == 128).all()
    assert (out["sem_seg"][4:] == 65535).all() and (out["sem_seg"][:, 6:] == 65535).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resizing_repeats_labels_and_keeps_them_aligned_with_the_image(tmp_path, dataset, dtype):
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, 3:] = 200
    labels = np.zeros((4, 6), dtype)
    labels[:, 3:] = 7
    cfg = config(dataset, "INPUT.MIN_SIZE_TRAIN", "(8,)")
    out = SemSegTrainMapper(cfg)(write(tmp_path, image, labels))
    assert out["image"].shape == (3, 8, 12)
    assert (out["sem_seg"][:, :6] == 0).all() and (out["sem_seg"][:, 6:] == 7).all()


def test_the_crop_has_its_size_and_image_and_labels_stay_aligned(tmp_path, dataset, sample):
    image, labels = sample
    cfg = config(dataset, *CROP, "(2, 3)", "INPUT.RANDOM_FLIP", "horizontal")
    mapper = SemSegTrainMapper(cfg)
    record = write(tmp_path, image, labels)
    flipped = 0
    for _ in range(20):
        out = mapper(record)
        assert out["image"].shape == (3, 2, 3) and out["sem_seg"].shape == (2, 3)
        position = out["image"][0].long() // 3  # the row-major index of each pixel in the image
        assert (out["sem_seg"].numpy() == labels.ravel()[position.numpy()]).all()
        flipped += bool(position[0, 0] > position[0, 1])
    assert 0 < flipped < 20


def test_the_crop_avoids_one_class_filling_it(tmp_path, dataset):
    image = np.zeros((4, 40, 3), np.uint8)
    labels = np.zeros((4, 40), np.uint8)
    labels[:, 20:] = 1  # Only crops across columns 19 and 20 have two classes.
    cfg = config(dataset, *CROP, "(4, 20)", "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", "0.99")
    mapper = SemSegTrainMapper(cfg)
    record = write(tmp_path, image, labels)
    crops = [mapper(record)["sem_seg"] for _ in range(10)]
    assert all(len(crop.unique()) == 2 for crop in crops)


def test_colour_augmentation_leaves_labels_alone(tmp_path, dataset, sample):
    image, labels = sample
    mapper = SemSegTrainMapper(config(dataset, "INPUT.COLOR_AUG_SSD", "True"))
    record = write(tmp_path, image + 90, labels)
    outs = [mapper(record) for _ in range(8)]
    assert all((out["sem_seg"].numpy() == labels).all() for out in outs)
    assert any((out["image"] != outs[0]["image"]).any() for out in outs)


def test_the_test_mapper_resizes_the_image_and_not_its_labels(tmp_path, dataset, sample):
    cfg = config(dataset, "INPUT.MIN_SIZE_TEST", "8", "INPUT.MAX_SIZE_TEST", "99")
    out = SemSegTestMapper(cfg, dataset)(write(tmp_path, *sample))
    assert out["image"].shape == (3, 8, 12)
    assert (out["height"], out["width"]) == (4, 6)
    assert (out["labels"].numpy() == sample[1]).all()


def test_training_sets_with_different_classes_are_refused(dataset):
    cfg = config(dataset)
    cfg.DATASETS.TRAIN = (dataset, "voc_2012_test_sem_seg")
    with pytest.raises(ValueError, match=f"'{dataset}' and 'voc_2012_test_sem_seg'.*differ"):
        SemSegTrainMapper(cfg)
    cfg.DATASETS.TRAIN = (dataset, dataset)
    assert SemSegTrainMapper(cfg).num_classes == 300


@pytest.mark.parametrize("mapper", [SemSegTrainMapper, SemSegTestMapper])
def test_bad_files_are_named_in_one_sentence(tmp_path, dataset, sample, mapper):
    cfg = config(dataset)
    mapper = mapper(cfg) if mapper is SemSegTrainMapper else mapper(cfg, dataset)
    image, labels = sample

    def message(error):
        with pytest.raises(error) as caught:
            mapper(record)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    labels[2, 2] = 300
    record = write(tmp_path, image, labels)
    assert "labels.tif has the value 300" in message(ValueError)
    assert "(0 to 299) nor the ignored value 65535" in message(ValueError)

    record = write(tmp_path, image, labels[:3])
    assert "image.png is 6x4" in message(ValueError) and "6x3" in message(ValueError)

    record = write(tmp_path, image, image)
    assert "labels.tif has pixels of mode RGB" in message(ValueError)

    record = write(tmp_path, image, labels)
    whole = (tmp_path / "image.png").read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2]):
        (tmp_path / "image.png").write_bytes(content)
        assert "image.png cannot be read" in message(ValueError)
    (tmp_path / "image.png").unlink()
    assert "image.png does not exist" in message(FileNotFoundError)

    record = write(tmp_path, image, labels)
    (tmp_path / "labels.tif").write_bytes(b"")
    assert "labels.tif cannot be read" in message(ValueError)
    (tmp_path / "labels.tif").unlink()
    assert "labels.tif does not exist" in message(FileNotFoundError)
