"""Registration of the benchmarks."""

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sed_d2.data import SPLITS
from sed_d2.vocabulary import Vocabulary

#: Registered name -> the numbers of evaluated classes and of given names, and the ignored value.
EXPECTED = {
    "coco_2017_train_stuff_all_sem_seg": (171, 171, 255),
    "coco_2017_test_stuff_all_sem_seg": (171, 171, 255),
    "ade20k_150_test_sem_seg": (150, 150, 255),
    "ade20k_full_sem_seg_freq_val_all": (847, 847, 65535),
    "context_59_test_sem_seg": (59, 59, 255),
    "context_459_test_sem_seg": (459, 459, 459),
    "voc_2012_test_sem_seg": (20, 20, 255),
    "voc_2012_test_background_sem_seg": (21, 59, 255),
}


def test_the_released_names_are_registered_with_their_metadata():
    assert {split.name for split in SPLITS} == set(EXPECTED)
    for name, (evaluated, names, ignored) in EXPECTED.items():
        metadata = MetadataCatalog.get(name)
        assert len(metadata.stuff_classes) == evaluated
        assert len(Vocabulary.of_dataset(name)) == names
        assert metadata.ignore_label == ignored
        assert metadata.evaluator_type == "sem_seg"
    assert MetadataCatalog.get("voc_2012_test_background_sem_seg").stuff_classes[-1] == "background"


def make_split(root, split, stems):
    for folder, suffix in ((split.images, split.image_suffix), (split.labels, split.label_suffix)):
        (root / folder).mkdir(parents=True)
        for stem in stems:
            Image.new("L", (4, 3)).save(root / folder / (stem + suffix))


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.name)
def test_images_are_those_with_a_label_file(tmp_path, monkeypatch, split):
    make_split(tmp_path, split, ["b", "a"])
    Image.new("L", (4, 3)).save(tmp_path / split.images / "unlabelled.jpg")
    (tmp_path / split.labels / ".a.png.17.tmp").write_text("half a file")
    (tmp_path / split.labels / "notes.txt").write_text("no label file")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    records = DatasetCatalog.get(split.name)
    assert [Path(record["file_name"]).name for record in records] == ["a.jpg", "b.jpg"]
    assert [record["sem_seg_file_name"] for record in records] == [
        str(tmp_path / split.labels / (stem + split.label_suffix)) for stem in "ab"
    ]


def test_the_root_is_read_at_each_use(tmp_path, monkeypatch):
    split = SPLITS[2]
    for root in ("one", "two"):
        make_split(tmp_path / root, split, [root])
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / root))
        assert Path(DatasetCatalog.get(split.name)[0]["file_name"]).stem == root


def test_a_missing_folder_is_named_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        DatasetCatalog.get("ade20k_150_test_sem_seg")
    message = str(error.value)
    assert str(tmp_path / "ADEChallengeData2016/annotations_detectron2/validation") in message
    assert "DETECTRON2_DATASETS" in message
    assert "python datasets/prepare_ade20k_150.py" in message
    assert "\n" not in message


def test_an_empty_folder_and_a_missing_image_are_errors(tmp_path, monkeypatch):
    split = SPLITS[2]
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    make_split(tmp_path, split, [])
    with pytest.raises(FileNotFoundError, match="has no .png file"):
        DatasetCatalog.get(split.name)
    Image.new("L", (4, 3)).save(tmp_path / split.labels / "alone.png")
    with pytest.raises(FileNotFoundError, match=r"alone.jpg of a label file .*\(1 such"):
        DatasetCatalog.get(split.name)
