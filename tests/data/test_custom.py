"""Registration of data sets that YAML files describe."""

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sed_d2.data.custom import register_custom, register_from_yaml


@pytest.fixture
def describe(tmp_path):
    """Write a description with some keys changed, or removed if None; return its path."""
    name = f"custom_{tmp_path.name}"

    def write(file="set.yaml", **changes):
        content = {
            "name": name,
            "images": "pictures",
            "labels": "masks",
            "classes": ["cat, kitten", "dog"],
            "ignore_label": 255,
        } | changes
        path = tmp_path / file
        path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
        return path

    yield write
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)


def fill(tmp_path, image_suffix=".jpg", label_suffix=".png"):
    for folder, suffix in (("pictures", image_suffix), ("masks", label_suffix)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / folder / f"a{suffix}")


def test_a_description_registers(tmp_path, describe, monkeypatch):
    fill(tmp_path)
    path = describe()
    monkeypatch.chdir(tmp_path)
    name = register_from_yaml("set.yaml")
    monkeypatch.chdir("/")  # Folders are relative to the description.
    (record,) = DatasetCatalog.get(name)
    assert record["file_name"] == str(tmp_path / "pictures/a.jpg")
    assert record["sem_seg_file_name"] == str(tmp_path / "masks/a.png")
    metadata = MetadataCatalog.get(name)
    assert metadata.stuff_classes == ["cat, kitten", "dog"]
    assert metadata.ignore_label == 255 and metadata.evaluator_type == "sem_seg"
    assert register_from_yaml(path) == name  # A second call does nothing.


def test_a_class_file_and_other_suffixes(tmp_path, describe):
    fill(tmp_path, ".png", ".tif")
    (tmp_path / "names.txt").write_text("cat, kitten\ndog\n")
    name = register_from_yaml(
        describe(classes="names.txt", image_suffix=".png", label_suffix=".tif")
    )
    assert DatasetCatalog.get(name)[0]["sem_seg_file_name"].endswith("a.tif")
    assert MetadataCatalog.get(name).stuff_classes == ["cat, kitten", "dog"]


def test_a_second_call_registers_nothing(describe):
    path = describe()
    register_custom([path])
    names = DatasetCatalog.list()
    register_custom([str(path), path])
    assert DatasetCatalog.list() == names


def test_a_taken_name_is_refused(describe):
    register_custom([describe()])
    with pytest.raises(ValueError, match="already is a data set 'custom_.*; choose another name"):
        register_custom([describe(ignore_label=254)])
    with pytest.raises(ValueError, match="already is a data set 'custom_"):
        register_custom([describe(file="other.yaml")])
    with pytest.raises(ValueError, match="already is a data set 'ade20k_150_test_sem_seg'"):
        register_custom([describe(name="ade20k_150_test_sem_seg")])


def test_missing_folders_and_partners_point_to_the_description(tmp_path, describe):
    name = register_from_yaml(describe())
    with pytest.raises(FileNotFoundError, match="masks does not exist; correct .* in .*set.yaml"):
        DatasetCatalog.get(name)
    fill(tmp_path, ".jpeg")
    with pytest.raises(FileNotFoundError, match="a.jpg of a label .* correct .* image_suffix"):
        DatasetCatalog.get(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "lacks the key 'images'"),
        ({"color": "red"}, "unknown key 'color'; the keys are name"),
        ({"ignore_label": "none"}, "value 'none' of 'ignore_label' .* wrong type; give int"),
        ({"classes": 3}, "value 3 of 'classes' .* wrong type; give list or str"),
        ({"name": 5}, "value 5 of 'name'"),
        ({"ignore_label": 1}, r"ignored value 1 .* is the value of a class \(0 to 1\)"),
        ({"classes": []}, "No class names in .*set.yaml"),
        ({"classes": ["cat", False]}, "class name False of .*set.yaml is not text; quote it"),
        ({"classes": ["cat", "cat"]}, "'cat' is class 0 and class 1"),
        ({"classes": "nothing.txt"}, "nothing.txt does not exist"),
    ],
)
def test_wrong_descriptions(describe, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        register_from_yaml(describe(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "name: [", "a: b: c"])
def test_an_invalid_description(tmp_path, content):
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match="wrong.yaml") as caught:
        register_from_yaml(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="absent.yaml does not exist"):
        register_from_yaml(tmp_path / "absent.yaml")
