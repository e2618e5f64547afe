"""The data set of scenes: what a split shows, what is written, what is registered."""

import hashlib
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sed_d2.shapes.dataset import WORLD_VERSION, make_scene, write_dataset
from sed_d2.shapes.words import BACKGROUND_IDS, CLASSES, SEEN_IDS, TRAIN_CLASSES, UNSEEN_IDS
from sed_d2.vocabulary import Vocabulary
from tools import make_shapes


@pytest.mark.parametrize(
    ("split", "allowed"),
    [("train", SEEN_IDS), ("val_seen", SEEN_IDS), ("val_unseen", UNSEEN_IDS)],
)
def test_scenes_show_only_the_objects_of_their_split(split, allowed):
    objects = set()
    for index in range(12):
        image, labels = make_scene(index, split)
        assert image.shape == (256, 256, 3) and image.dtype == np.uint8
        assert labels.shape == (256, 256) and labels.dtype == np.uint8
        values = set(np.unique(labels).tolist())
        assert values & set(BACKGROUND_IDS)
        objects |= values - set(BACKGROUND_IDS)
    assert len(objects) >= 10
    assert objects <= set(allowed)


def test_a_scene_depends_on_seed_split_and_index_alone():
    image, labels = make_scene(3, "train", seed=5)
    again, same = make_scene(3, "train", seed=5)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, same)
    for other in (
        make_scene(4, "train", seed=5),
        make_scene(3, "val_seen", seed=5),
        make_scene(3, "train", seed=6),
    ):
        assert np.mean(other[1] != labels) > 0.01


def test_scenes_are_those_of_this_world_version():
    """Other scenes need another WORLD_VERSION: folders and weights were made with these."""
    labels = np.stack([make_scene(i, "val_seen")[1] for i in range(4)])
    assert WORLD_VERSION == 1
    assert hashlib.sha256(labels.tobytes()).hexdigest()[:16] == "f11b9065eaa9a9ce"


def test_write_dataset_resumes_and_keeps_existing_files(tmp_path):
    root = tmp_path / "shapes"
    write_dataset(root, {"train": 2}, seed=3, processes=1)
    first = root / "images/train/000000.jpg"
    first.write_bytes(b"kept")
    (root / "annotations_detectron2/train/000001.png").unlink()
    write_dataset(root, {"train": 3, "val_unseen": 1}, seed=3, processes=1)
    assert first.read_bytes() == b"kept"
    files = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    assert files == [
        "annotations_detectron2/train/000000.png",
        "annotations_detectron2/train/000001.png",
        "annotations_detectron2/train/000002.png",
        "annotations_detectron2/val_unseen/000000.png",
        "images/train/000000.jpg",
        "images/train/000001.jpg",
        "images/train/000002.jpg",
        "images/val_unseen/000000.jpg",
        "world.json",
    ]
    image, labels = make_scene(2, "train", seed=3)
    written = np.asarray(Image.open(root / "annotations_detectron2/train/000002.png"))
    np.testing.assert_array_equal(written, labels)
    written = np.asarray(Image.open(root / "images/train/000002.jpg"), np.float32)
    assert np.abs(written - image).mean() < 4  # JPEG


def test_write_dataset_refuses_a_folder_of_another_seed(tmp_path):
    write_dataset(tmp_path, {"train": 1}, seed=0, processes=1)
    with pytest.raises(ValueError, match="another seed.*remove the folder"):
        write_dataset(tmp_path, {"train": 1}, seed=1, processes=1)
    assert json.loads((tmp_path / "world.json").read_text())["seed"] == 0


def test_registered_splits_read_the_folder_that_the_command_makes(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    make_shapes.main(["--train", "2", "--val", "1", "--jobs", "1"])
    records = DatasetCatalog.get("shapes_train_sem_seg")
    assert [r["file_name"] for r in records] == [
        str(tmp_path / f"shapes/images/train/00000{i}.jpg") for i in range(2)
    ]
    assert records[1]["sem_seg_file_name"] == str(
        tmp_path / "shapes/annotations_detectron2/train/000001.png"
    )
    assert len(DatasetCatalog.get("shapes_val_unseen_sem_seg")) == 1
    asked = Vocabulary.of_dataset("shapes_train_sem_seg").names
    assert len(asked) == 180 and asked[:75] == TRAIN_CLASSES
    assert Vocabulary.of_dataset("shapes_val_unseen_sem_seg").names == CLASSES
    metadata = MetadataCatalog.get("shapes_val_seen_sem_seg")
    assert metadata.ignore_label == 255 and metadata.evaluator_type == "sem_seg"


def test_a_missing_folder_is_named_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"shapes/.*python tools/make_shapes.py"):
        DatasetCatalog.get("shapes_val_seen_sem_seg")


def test_an_error_of_the_command_is_one_sentence(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SystemExit) as error:
        make_shapes.main(["--root", str(file), "--train", "1", "--val", "0"])
    assert str(file) in str(error.value)
