"""Vocabularies: parsing, checks, and the class names of the benchmarks."""

import hashlib
import json

import pytest
from detectron2.data import MetadataCatalog

from sed_d2.vocabulary import Vocabulary


def test_synonyms_are_split_and_joined_in_the_released_form():
    vocabulary = Vocabulary.from_names(["windowpane, window", "sky"])
    assert vocabulary.classes == (("windowpane", "window"), ("sky",))
    assert vocabulary.names == ("windowpane, window", "sky")
    assert len(vocabulary) == 2
    assert vocabulary[0][0] == "windowpane"


def test_equality_and_hash_ignore_the_source():
    one = Vocabulary.from_names(["cat"], "a file")
    other = Vocabulary.from_names(["cat"], "a data set")
    assert one == other and hash(one) == hash(other)


@pytest.mark.parametrize(
    "value",
    ["cat, windowpane|window", ["cat", "windowpane, window"], iter(("cat", "windowpane, window"))],
)
def test_of_takes_text_and_names(value):
    assert Vocabulary.of(value).classes == (("cat",), ("windowpane", "window"))


def test_of_returns_a_vocabulary_itself():
    vocabulary = Vocabulary.from_names(["cat"])
    assert Vocabulary.of(vocabulary) is vocabulary


def test_of_takes_the_path_of_a_class_file(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("cat\nsky\n")
    assert Vocabulary.of(str(path)).names == ("cat", "sky")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "No class names"),
        ([], "No class names"),
        (["cat", 7], "7 of the caller is not text"),
        ("gone.txt", "gone.txt does not exist"),
    ],
)
def test_of_refuses_wrong_values(value, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary.of(value)


def test_a_slice_is_a_tuple_of_classes():
    assert Vocabulary.from_names(["cat", "dog", "sky"])[1:] == (("dog",), ("sky",))


def test_parse_takes_a_command_line_list():
    vocabulary = Vocabulary.parse("cat, traffic light,windowpane|window , sky")
    assert vocabulary.names == ("cat", "traffic light", "windowpane, window", "sky")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.json", '["windowpane, window", "sky"]'),
        ("classes.json", '{"classes": [{"names": ["windowpane", "window"]}, {"names": ["sky"]}]}'),
        ("classes.txt", "windowpane, window\n\n  sky \n"),
        ("classes.txt", "\ufeffwindowpane, window\r\nsky"),
    ],
)
def test_class_files(tmp_path, file, text):
    path = tmp_path / file
    path.write_text(text, encoding="utf-8")
    assert Vocabulary.from_file(path).names == ("windowpane, window", "sky")
    assert Vocabulary.parse(str(path)).source == str(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "No class names in f.txt; give"),
        (["cat", ""], "Class 1 of f.txt has an empty name"),
        (["cat", "dog, "], "Class 1 of f.txt has an empty name"),
        (["cat", "dog", "cat"], "'cat' is class 0 and class 2 of f.txt"),
        (["cat, kitten", "Kitten, Cat"], "'Kitten, Cat' is class 0 and class 1 of f.txt"),
        (["cat", 7], "class name 7 of f.txt is not text"),
        ("cat, dog", "are one string"),
    ],
)
def test_wrong_names_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_names(names, "f.txt")


def test_a_shared_first_synonym_is_no_duplicate():
    assert len(Vocabulary.from_names(["bag, sack", "bag, handbag"])) == 2


@pytest.mark.parametrize("text", ["", "  ", "cat,,dog", "cat, dog, "])
def test_parse_refuses_missing_names(text):
    with pytest.raises(ValueError, match="No class names|empty name"):
        Vocabulary.parse(text)


def test_a_missing_class_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        Vocabulary.from_file(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match="nothing.json does not exist"):
        Vocabulary.parse(str(tmp_path / "nothing.json"))


@pytest.mark.parametrize(
    "text", ["{", '{"names": []}', '{"classes": ["cat"]}', '{"classes": [{"names": "cat"}]}', "3"]
)
def test_a_malformed_class_file_is_named(tmp_path, text):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="wrong.json"):
        Vocabulary.from_file(path)


@pytest.mark.parametrize(
    ("name", "count", "first", "last", "digest"),
    [
        # The digest is of the names and raw ids in the benchmarks' annotations.
        ("coco_stuff_171", 171, "person", "wood", "4eb02aafb44428fc"),
        ("ade20k_150", 150, "wall", "flag", "96dd6c341d89dfba"),
        ("ade20k_847", 847, "wall", "adding machine, totalizer, totaliser", "b6f207916f5df9ff"),
        ("pascal_context_59", 59, "aeroplane", "wood", "7b94549b1954fa03"),
        ("pascal_context_459", 459, "accordion", "wool", "c5679c0f7c05959a"),
        ("pascal_voc_20", 20, "aeroplane", "tvmonitor", "1280b84b1bcd8c7f"),
    ],
)
def test_builtin_vocabularies(name, count, first, last, digest):
    vocabulary = Vocabulary.builtin(name)
    ids = Vocabulary.builtin_raw_ids(name)
    assert len(vocabulary) == len(ids) == len(set(ids)) == count
    assert (vocabulary.names[0], vocabulary.names[-1]) == (first, last)
    content = json.dumps([vocabulary.names, ids]).encode()
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_raw_ids_keep_the_gaps_of_coco_stuff():
    unused = set(range(182)) - set(Vocabulary.builtin_raw_ids("coco_stuff_171"))
    assert unused == {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}


def test_voc_with_background_lists_the_classes_of_voc_first():
    names = Vocabulary.builtin("pascal_voc_20_background").names
    assert hashlib.sha256(json.dumps([names, None]).encode()).hexdigest()[:16] == "150a62542222f5a0"
    assert names[:20] == Vocabulary.builtin("pascal_voc_20").names
    assert set(names) == set(Vocabulary.builtin("pascal_context_59").names)
    with pytest.raises(ValueError, match="pascal_voc_20_background"):
        Vocabulary.builtin_raw_ids("pascal_voc_20_background")


def test_an_unknown_builtin_lists_the_known_ones():
    with pytest.raises(ValueError, match="'ade'; choose one of ade20k_150, ade20k_847"):
        Vocabulary.builtin("ade")


def test_of_dataset_prefers_the_vocabulary_of_the_metadata(tmp_path):
    metadata = MetadataCatalog.get(f"vocabulary_{tmp_path.name}")
    with pytest.raises(ValueError, match="has no class names"):
        Vocabulary.of_dataset(metadata.name)
    metadata.set(stuff_classes=["cat", "background"])
    assert Vocabulary.of_dataset(metadata.name).names == ("cat", "background")
    metadata.set(vocabulary=["cat", "sky", "grass"])
    assert Vocabulary.of_dataset(metadata.name).names == ("cat", "sky", "grass")


def test_a_vocabulary_survives_its_file(tmp_path):
    vocabulary = Vocabulary.builtin("ade20k_847")
    path = tmp_path / "ade.json"
    path.write_text(json.dumps(list(vocabulary.names)))
    assert Vocabulary.from_file(path) == vocabulary
