"""The world of shapes: what is drawn, what is written, what is registered."""

import hashlib
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sed_d2.shapes import scenes as shapes
from sed_d2.vocabulary import Vocabulary
from tools import make_shapes

HUES = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


def test_world_has_the_promised_combinations():
    assert len(shapes.COLOURS) == 7 and len(shapes.SHAPES) == 6
    assert len(shapes.CLASSES) == 8 + 7 * 6 * 2
    assert len(set(shapes.CLASSES)) == len(shapes.CLASSES)
    assert "red striped circle" in shapes.CLASSES and "blue star" in shapes.CLASSES
    # A fifth of 84.
    assert len(shapes.UNSEEN_IDS) == 17


def test_every_pair_of_attributes_occurs_in_training():
    seen = [shapes.ATTRIBUTES[i] for i in shapes.SEEN_IDS]
    assert len({(colour, shape) for colour, _, shape in seen}) == 7 * 6
    assert len({(colour, pattern) for colour, pattern, _ in seen}) == 7 * 2
    assert len({(pattern, shape) for _, pattern, shape in seen}) == 2 * 6


@pytest.mark.parametrize(
    ("split", "allowed"),
    [("train", shapes.SEEN_IDS), ("val_seen", shapes.SEEN_IDS), ("val_unseen", shapes.UNSEEN_IDS)],
)
def test_scenes_hold_only_the_objects_of_their_split(split, allowed):
    objects = set()
    for index in range(12):
        image, labels = shapes.make_scene(index, split)
        assert image.shape == (256, 256, 3) and image.dtype == np.uint8
        assert labels.shape == (256, 256) and labels.dtype == np.uint8
        values = set(np.unique(labels).tolist())
        assert values & set(shapes.BACKGROUND_IDS)
        objects |= values - set(shapes.BACKGROUND_IDS)
    assert len(objects) >= 10
    assert objects <= set(allowed)


def test_a_scene_depends_on_seed_split_and_index_alone():
    image, labels = shapes.make_scene(3, "train", seed=5)
    again, same = shapes.make_scene(3, "train", seed=5)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, same)
    for other in (
        shapes.make_scene(4, "train", seed=5),
        shapes.make_scene(3, "val_seen", seed=5),
        shapes.make_scene(3, "train", seed=6),
    ):
        assert np.mean(other[1] != labels) > 0.01


def test_scenes_are_those_of_this_world_version():
    """Other scenes need another WORLD_VERSION, for folders and weights were made with these."""
    labels = np.stack([shapes.make_scene(i, "val_seen")[1] for i in range(4)])
    assert shapes.WORLD_VERSION == 1
    assert hashlib.sha256(labels.tobytes()).hexdigest()[:16] == "f11b9065eaa9a9ce"


@pytest.mark.parametrize("colour", HUES)
def test_labels_lie_on_the_object_of_that_colour(colour):
    square = shapes.CLASSES.index(f"{colour} square")
    image, labels = shapes.draw_scene(shapes.scene_rng(0), 96, [7], [square], (30, 30), margin=0.5)
    inside, outside = image[labels == square] / 255, image[labels == 7] / 255
    assert inside.mean(0).argmax() == np.argmax(HUES[colour])
    assert np.ptp(inside.mean(0)) > 0.4  # a vivid colour
    assert np.ptp(outside.mean(0)) < 0.15  # on snow
    # A square of half diagonal 1.15 x 30 has 2 x 34.5^2 pixels, less its squeeze of up to 0.8.
    assert 0.79 * 2380 < len(inside) < 1.01 * 2380


def test_the_hole_of_a_ring_is_background():
    ring = shapes.CLASSES.index("blue ring")
    _, labels = shapes.draw_scene(shapes.scene_rng(1), 96, [0], [ring], (36, 36), margin=0.5)
    assert labels[48, 48] == 0
    assert (labels == ring).any()


def test_striped_objects_have_dark_stripes():
    spread = {}
    for name in ("white square", "white striped square"):
        class_id = shapes.CLASSES.index(name)
        image, labels = shapes.draw_scene(
            shapes.scene_rng(2), 96, [0], [class_id], (40, 40), margin=0.5
        )
        spread[name] = image[labels == class_id].std()
    assert spread["white striped square"] > 2 * spread["white square"]


def test_objects_stay_at_least_60_percent_visible():
    circle, square = shapes.CLASSES.index("orange circle"), shapes.CLASSES.index("red square")
    for seed in range(10):
        _, labels = shapes.draw_scene(
            shapes.scene_rng(seed), 128, [0], [circle, square], (24, 24), margin=0.2
        )
        # An orange circle of radius 0.95 x 24, squeezed by at least 0.8.
        assert np.count_nonzero(labels == circle) >= 0.6 * 0.79 * np.pi * 22.8**2


def test_write_dataset_resumes_and_keeps_what_is_there(tmp_path):
    root = tmp_path / "shapes"
    shapes.write_dataset(root, {"train": 2}, seed=3, processes=1)
    first = root / "images/train/000000.jpg"
    first.write_bytes(b"kept")
    (root / "annotations_detectron2/train/000001.png").unlink()
    shapes.write_dataset(root, {"train": 3, "val_unseen": 1}, seed=3, processes=1)
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
    image, labels = shapes.make_scene(2, "train", seed=3)
    written = np.asarray(Image.open(root / "annotations_detectron2/train/000002.png"))
    np.testing.assert_array_equal(written, labels)
    written = np.asarray(Image.open(root / "images/train/000002.jpg"), np.float32)
    assert np.abs(written - image).mean() < 4  # JPEG


def test_write_dataset_refuses_a_folder_of_another_seed(tmp_path):
    shapes.write_dataset(tmp_path, {"train": 1}, seed=0, processes=1)
    with pytest.raises(ValueError, match="another seed.*remove the folder"):
        shapes.write_dataset(tmp_path, {"train": 1}, seed=1, processes=1)
    assert json.loads((tmp_path / "world.json").read_text())["seed"] == 0


def test_registered_splits_read_the_folder_made_by_the_command(tmp_path, monkeypatch):
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
    assert len(asked) == 180 and asked[:75] == shapes.TRAIN_CLASSES
    assert all(shapes.make_scene(i, "train")[1].max() < 75 for i in range(8))
    assert Vocabulary.of_dataset("shapes_val_unseen_sem_seg").names == shapes.CLASSES
    metadata = MetadataCatalog.get("shapes_val_seen_sem_seg")
    assert metadata.ignore_label == 255 and metadata.evaluator_type == "sem_seg"


def test_a_missing_folder_is_named_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"shapes/.*python tools/make_shapes.py"):
        DatasetCatalog.get("shapes_val_seen_sem_seg")


def test_the_command_says_in_one_sentence_what_is_wrong(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SystemExit) as error:
        make_shapes.main(["--root", str(file), "--train", "1", "--val", "0"])
    assert str(file) in str(error.value)


def test_distractors_fill_a_vocabulary_of_hundreds():
    names = shapes.vocabulary_of_size(847)
    assert names[:92] == shapes.CLASSES
    assert len(Vocabulary.from_names(names)) == 847
    words = {word for name in shapes.CLASSES for word in name.split()}
    coloured = [name for name in names[92:] if name.split()[0] in shapes.COLOURS]
    assert len(coloured) == 378  # every other one of 755
    things = [name.split() for name in names[92:]]
    assert all(thing[-1] not in words for thing in things)
    assert shapes.distractors(50) == names[92:142]
    for count in (5000, -1):
        with pytest.raises(ValueError, match=f"^{count} distractors .* 92 to [0-9]+ names in all"):
            shapes.distractors(count)


def test_no_distractor_of_tests_shares_a_word_with_those_of_training():
    looks = {*shapes.COLOURS, *shapes.PATTERNS}
    trained, tested = (
        {word for name in names for word in name.split()} - looks
        for names in (shapes.TRAIN_DISTRACTORS, shapes.distractors(755))
    )
    assert len(trained) > 100 and not trained & tested
    assert not {word for name in shapes.CLASSES for word in name.split()} & (trained | tested)
