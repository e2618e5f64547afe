"""The problems and statistics that the verification reports."""

import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from sed_d2.data.verification import verify
from tests.datasets.miniature import MINIATURES, save

NAME = "ade20k_150_test_sem_seg"


@pytest.fixture
def prepared(tmp_path, run):
    """Return the split of a prepared miniature of ADE20K-150: 4 images of 6 x 8 pixels."""
    MINIATURES["ade20k_150"].build(tmp_path)
    run("prepare_ade20k_150.py", tmp_path)
    return MetadataCatalog.get(NAME).split


def problems_of(split):
    """Return all problems but the number of labels, which is always wrong in a miniature."""
    problems = verify(split, 2).problems
    assert all("\n" not in problem for problem in problems)
    return [problem for problem in problems if "instead of" not in problem]


def test_a_complete_data_set(prepared):
    report = verify(prepared, 2)
    assert (report.expected, report.labels, report.images, report.further_images) == (2000, 4, 4, 0)
    pixels = 6 * 8
    assert report.histogram["wall"] == 2 * pixels // 2  # the left halves of two images
    assert report.histogram["flag"] == 4 * pixels // 2
    assert report.ignored == 2 * pixels // 2
    assert report.ignored_percent == 25
    assert len(report.absent) == 148 and "sky" in report.absent
    assert [problem.split(";")[0] for problem in report.problems] == [
        f"{prepared.label_folder} has 4 labels instead of 2000"
    ]
    assert "prepare_ade20k_150.py" in report.problems[0]


def test_the_digest_sees_pixels_and_names_but_not_the_encoding(prepared):
    digest = verify(prepared, 2).digest
    first = sorted(prepared.label_folder.iterdir())[0]
    labels = np.asarray(Image.open(first)).copy()
    Image.fromarray(labels).save(first, compress_level=0)
    assert verify(prepared, 1).digest == digest

    changed = labels.copy()
    changed[0, 0] = 3
    Image.fromarray(changed).save(first)
    assert verify(prepared, 2).digest != digest
    Image.fromarray(labels).save(first)
    first.rename(first.with_name("2007_000000.png"))  # The file is still the first.
    assert verify(prepared, 2).digest != digest


def test_labels_without_an_image(prepared):
    images = sorted(prepared.image_folder.iterdir())
    labels = sorted(prepared.label_folder.iterdir())
    labels[3].unlink()  # An image without labels is only counted.
    assert problems_of(prepared) == [] and verify(prepared, 2).further_images == 1
    images[0].unlink()
    images[1].unlink()
    (problem,) = problems_of(prepared)
    assert f"{images[0].stem} and 1 other have" in problem
    assert "no image in" in problem
    assert verify(prepared, 2).images == 1


def test_sizes_that_differ(prepared):
    image = sorted(prepared.image_folder.iterdir())[2]
    save(image, np.zeros((6, 9, 3), np.uint8))
    (problem,) = problems_of(prepared)
    assert f"{image.stem} (9x6 and 8x6) has an image and labels of different sizes" in problem


def test_values_out_of_range(prepared):
    labels = sorted(prepared.label_folder.iterdir())
    for path in labels[:3]:
        save(path, np.full((6, 8), 150, np.uint8))
    (problem,) = problems_of(prepared)
    assert f"{labels[0].stem} and 2 others have" in problem
    assert "neither 0 to 149 nor the ignored 255: 150; remove the files" in problem


def test_unreadable_files(prepared):
    image = sorted(prepared.image_folder.iterdir())[0]
    image.write_bytes(image.read_bytes()[:-40])
    label = sorted(prepared.label_folder.iterdir())[1]
    label.write_bytes(b"")
    (problem,) = problems_of(prepared)
    assert str(image) in problem and "2 such files" in problem


def test_too_many_labels(prepared):
    report = verify(prepared, 2)
    few = type(prepared)(**{**vars(prepared), "count": 3})
    assert report.problems and "; remove the others." in verify(few, 2).problems[0]


def test_missing_folders(tmp_path, prepared, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "elsewhere"))
    problems = verify(prepared, 2).problems
    assert len(problems) == 2 and all("does not exist; set the var" in line for line in problems)


def test_the_command(tmp_path, prepared, run_script, capsys):
    """Without names it verifies the prepared benchmarks; a miniature has too few images."""
    report = tmp_path / "report.json"
    with pytest.raises(SystemExit) as caught:
        run_script("verify.py", "--root", tmp_path, "--json", report)
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert "Not prepared: coco_2017_train_stuff_all_sem_seg" in out
    row = next(line for line in out.splitlines() if line.startswith(NAME))
    digest = verify(prepared, 1).digest
    assert row.split()[1:] == f"4 2000 4 2 of 150 25.0 % {digest[:12]} 1 wrong".split()
    assert "148 classes never occur: building, sky" in out
    assert "has 4 labels instead of 2000" in err
    (entry,) = json.loads(report.read_text())
    assert entry["name"] == NAME and entry["digest"] == digest
    assert entry["histogram"]["wall"] == 48 and len(entry["absent"]) == 148


def test_the_command_on_wrong_names(tmp_path, run_script, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for arguments, message in (
        (["no_such_set"], "There is no data set 'no_such_set'; choose"),
        (["no_such_file.yaml"], "no_such_file.yaml does not exist"),
        (["--root", tmp_path], "No prepared benchmark"),
    ):
        with pytest.raises(SystemExit) as caught:
            run_script("verify.py", *arguments)
        assert message in caught.value.code
    with pytest.raises(SystemExit) as caught:
        run_script("verify.py", "--root", tmp_path, NAME)
    assert caught.value.code == 1
