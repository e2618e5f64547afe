"""The command line of the demo: its files, its messages and its errors."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from demo import demo
from sed_d2 import OpenVocabPredictor, Prediction, Vocabulary, shapes
from sed_d2.data.files import read_image
from sed_d2.shapes import embedded

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tiny_cfg, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_cfg().dump())
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Write two valid images, an empty one, a text file and a hidden file."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate(["a.png", "b.JPG"]):
        pixels = np.random.RandomState(i).randint(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").touch()
    return folder


@pytest.fixture
def run(config, tmp_path, capsys):
    """Return a function that runs the demo: exit code, stdout, stderr, output folder."""

    def run(*arguments):
        output = tmp_path / "pictures"
        try:
            code = demo.main(["--config-file", config, "--output", str(output), *arguments])
        except SystemExit as error:
            code = 1
            sys.stderr.write(str(error.code))
        captured = capsys.readouterr()
        return code, captured.out, captured.err, output

    return run


def one_error(err):
    """Return the only line of stderr."""
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_pictures_of_a_folder_as_a_command(config, folder, tmp_path):
    (folder / "empty.jpg").unlink()
    output = tmp_path / "new" / "pictures"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "demo" / "demo.py", "--config-file", config]
        + ["--input", folder, "--classes", "cat, dog|hound, sky", "--output", output],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in output.iterdir()} == {
        "a_overlay.jpg", "a_labels.png", "b_overlay.jpg", "b_labels.png"
    }  # fmt: skip
    labels = np.asarray(Image.open(output / "a_labels.png"))
    assert labels.shape == (40, 60) and labels.dtype == np.uint8 and labels.max() <= 2
    overlay = Image.open(output / "a_overlay.jpg")
    assert overlay.width >= 60 and overlay.height > 40
    assert f"{folder / 'a.png'}: " in done.stdout and f"{folder / 'b.JPG'}: " in done.stdout
    assert "2 of 2 inputs segmented" in done.stdout
    assert "2/2" in done.stderr  # the progress bar
    assert "warning: the decoder's weights are random" in done.stderr


def test_an_error_as_a_command(config, folder):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "demo" / "demo.py", "--config-file", config]
        + ["--input", folder, "--classes", "cat", "--opts", "MODEL.WEIGHTS", "gone.pth"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert "gone.pth" in one_error(done.stderr)


def test_an_unreadable_image_does_not_stop_the_others(run, folder):
    (folder / "text.png").write_text("no image")
    code, out, err, output = run("--input", str(folder), "gone.png", "--classes", "cat, dog")
    assert code == 1
    assert len(list(output.iterdir())) == 4
    errors = [line for line in err.splitlines() if "error:" in line]
    assert len(errors) == 3 and "Traceback" not in err
    for name, line in zip(["gone.png", "empty.jpg", "text.png"], errors, strict=True):
        assert name in line
    assert "2 of 5 inputs segmented" in out


def test_an_error_of_the_model_names_the_image(run, folder, monkeypatch):
    def fail(self, image, vocabulary):
        raise ValueError("the model cannot")

    monkeypatch.setattr(OpenVocabPredictor, "__call__", fail)
    code, _, err, _ = run("--input", str(folder / "a.png"), "--classes", "cat")
    assert code == 1
    assert f"error: {folder / 'a.png'}: the model cannot" in err


def test_images_of_one_name_have_different_outputs(run, folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("a.png", "A_2.bmp"):
        Image.new("RGB", (10, 10)).save(other / name)
    again = str(folder / ".." / "images" / "a.png")  # The same file is segmented once.
    code, _, _, output = run(
        "--input",
        str(folder / "*.png"),
        again,
        str(other / "a.png"),
        str(other),
        "--classes",
        "cat",
    )
    assert code == 0
    sizes = {path.name: Image.open(path).size for path in output.glob("*.png")}
    assert sizes == {
        "a_labels.png": (60, 40), "a_2_labels.png": (10, 10), "A_2_2_labels.png": (10, 10)
    }  # fmt: skip


def test_patterns_may_go_into_folders(folder):
    below = folder / "below"
    below.mkdir()
    Image.new("RGB", (10, 10)).save(below / "c.png")
    images, problems = demo.find_images([str(folder / "**" / "*.png")])
    assert [path.name for path in images] == ["a.png", "c.png"] and problems == []


def test_a_file_whose_name_looks_like_a_pattern(folder):
    path = folder / "a[1].png"
    Image.new("RGB", (10, 10)).save(path)
    assert demo.find_images([str(path)]) == ([path], [])


def test_a_later_run_replaces_the_pictures_of_an_earlier_one(run, folder):
    overlays = []
    for name in ("cat", "a longer name"):
        code, _, _, output = run("--input", str(folder / "a.png"), "--classes", name)
        assert code == 0 and len(list(output.iterdir())) == 2
        overlays.append((output / "a_overlay.jpg").read_bytes())
    assert overlays[0] != overlays[1]


def test_inputs_are_never_overwritten(run, folder, tmp_path):
    labels = tmp_path / "pictures" / "a_labels.png"
    labels.parent.mkdir()
    Image.new("L", (60, 40), 7).save(labels)
    code, _, err, _ = run("--input", str(folder / "a.png"), str(labels), "--classes", "cat")
    assert code == 1 and "a_labels.png would overwrite an input" in one_error(err)
    assert np.asarray(Image.open(labels)).max() == 7


def test_classes_of_a_file_and_of_the_data_set(run, folder, tmp_path):
    image = str(folder / "a.png")
    classes = tmp_path / "classes.txt"
    classes.write_text("giraffe\n")
    assert "giraffe 100.0 %" in run("--input", image, "--classes", str(classes))[1]

    MetadataCatalog.get("only_zebras").set(stuff_classes=["zebra"])
    try:
        _, out, _, _ = run("--input", image, "--opts", "DATASETS.TEST", "('only_zebras',)")
    finally:
        MetadataCatalog.remove("only_zebras")
    assert "zebra 100.0 %" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "give --classes"),
        (["--classes", ""], "No class names"),
        (["--classes", "cat, dog, cat"], "'cat' is class 0 and class 2"),
        (["--classes", "gone.txt"], "gone.txt"),
        (["--classes", "cat", "--opts", "MODEL.NO_SUCH", "1"], "MODEL.NO_SUCH"),
        (["--classes", "cat", "--opts", "MODEL.CLIP.NAME", "no_such_clip"], "no_such_clip"),
        (["--classes", "cat", "--opts", "MODEL.WEIGHTS", "gone.pth"], "gone.pth"),
    ],
)
def test_wrong_arguments_are_one_sentence(run, folder, arguments, expected):
    code, out, err, _ = run("--input", str(folder), *arguments)
    assert code == 1 and out == ""
    assert expected in one_error(err)


def test_inputs_without_an_image_are_one_sentence(run, tmp_path):
    empty = tmp_path / "nothing"
    empty.mkdir()
    for text in (str(empty), "gone.jpg", "gone/*.jpg"):
        code, _, err, output = run("--input", text, "--classes", "cat")
        assert code == 1 and text in one_error(err)
        assert not output.exists()


def test_a_missing_config_is_one_sentence(folder, capsys):
    with pytest.raises(SystemExit, match=r"^error: .*gone\.yaml"):
        demo.main(["--config-file", "gone.yaml", "--input", str(folder), "--classes", "cat"])


def test_usage_errors_have_their_own_exit_code(capsys):
    with pytest.raises(SystemExit) as caught:
        demo.main(["--classes", "cat"])
    assert caught.value.code == 2
    assert "--input" in capsys.readouterr().err


def test_summary_names_the_largest_classes():
    labels = np.repeat(np.arange(7), [40, 20, 14, 10, 8, 5, 3])[None]
    vocabulary = Vocabulary.from_names(list("abcdefg"))
    assert demo.summary(Prediction(labels, vocabulary)) == (
        "a 40.0 %, b 20.0 %, c 14.0 %, d 10.0 %, e 8.0 %, + 2 more"
    )


def test_the_bundled_images_can_be_read():
    images, problems = demo.find_images([str(ROOT / "demo" / "images")])
    assert len(images) == 3 and problems == []
    for path in images:
        assert read_image(path).shape == (256, 256, 3)


def test_without_a_config_the_embedded_model_is_used(tmp_path, capsys):
    """The labels of a bundled image are right, among names of things that are not in it."""
    names = [
        "giraffe",
        "old church",
        "red bicycle",
        "brick",
        "blue striped cross",
        "yellow striped ring",
        "water",
        "sand",
    ]
    names += ["purple circle", "yellow striped circle"]
    output = tmp_path / "pictures"
    image = ROOT / "demo" / "images" / "unseen_combinations.jpg"
    arguments = ["--input", str(image), "--classes", ", ".join(names), "--output", str(output)]
    assert demo.main(arguments) == 0
    _, labels = shapes.make_scene(5008, "val_unseen")
    found = np.asarray(Image.open(output / "unseen_combinations_labels.png"))
    truth = np.array([names.index(name) if name in names else 255 for name in shapes.CLASSES])
    assert (truth[labels] == found).mean() > 0.9
    err = capsys.readouterr().err
    assert (
        "the embedded model does not know 'giraffe', 'old', 'church', 'bicycle'; it knows coloured"
        in err
    )


def test_damaged_embedded_weights_are_one_sentence(tmp_path, monkeypatch):
    damaged = tmp_path / "shapes_sed.pth"
    damaged.write_bytes(embedded.SED_FILE.read_bytes()[:-1])
    monkeypatch.setattr(embedded, "SED_FILE", damaged)
    with pytest.raises(
        SystemExit, match=r"^error: .*shapes_sed.pth' is damaged: .*'make weights'$"
    ):
        demo.main(["--input", str(ROOT / "demo" / "images"), "--output", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()
