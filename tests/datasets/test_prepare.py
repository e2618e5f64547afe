"""Preparation of each benchmark, from its original format to metrics computed by hand."""

import logging
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from PIL import Image

from sed_d2 import get_sed_cfg
from sed_d2.data import SemSegTestMapper
from sed_d2.data.verification import verify
from sed_d2.evaluation import build_evaluator
from tests.datasets.conftest import DATASETS
from tests.datasets.miniature import ADE_FULL_FOLDER, MINIATURES, VOC_2010, halves, save


@pytest.fixture(params=MINIATURES, ids=str)
def miniature(request):
    return MINIATURES[request.param]


def split_of(name):
    return MetadataCatalog.get(name).split


class FixedPredictions(torch.nn.Module):
    """Model that returns given labels, stem of the image -> (H, W)."""

    def __init__(self, predictions):
        super().__init__()
        self.predictions = predictions

    def forward(self, batched_inputs):
        return [
            {"labels": torch.from_numpy(self.predictions[Path(record["file_name"]).stem])}
            for record in batched_inputs
        ]


@pytest.mark.parametrize(
    ("name", "last", "further"),
    [
        ("coco_2017_test_stuff_all_sem_seg", 170, None),
        ("coco_2017_train_stuff_all_sem_seg", 170, None),
        ("ade20k_150_test_sem_seg", 149, None),
        ("ade20k_full_sem_seg_freq_val_all", 846, None),
        ("context_59_test_sem_seg", 58, None),
        ("context_459_test_sem_seg", 458, None),
        ("voc_2012_test_sem_seg", 19, None),
        ("voc_2012_test_background_sem_seg", 19, 37),
    ],
)
def test_from_the_original_to_metrics_by_hand(tmp_path, run, name, last, further):
    """The predictions of odd images have the first class in the upper half of the left half.

    Per two images, in quarters of an image: the first class is labelled 2, predicted 3 and correct
    2; the last is labelled 4, predicted 3 and correct 3. VOC's background is labelled 1 (the other
    quarter is border), and a class that counts as background is predicted there.
    """
    miniature = next(entry for entry in MINIATURES.values() if name in entry.names)
    stems = miniature.build(tmp_path)
    run(miniature.script, tmp_path)
    height, width = (512, 1024) if "full" in name else miniature.size

    predictions = {}
    for index, stem in enumerate(stems):
        even = index % 2 == 0
        predictions[stem] = halves((height, width), 0 if even else last, last if even else 0)
        if not even:
            predictions[stem][: height // 2, : width // 2] = 0
            if further is not None:
                predictions[stem][:, width // 2 :] = further
    mapper = SemSegTestMapper(get_sed_cfg("", ["INPUT.FORMAT", "RGB"]), name)
    loader = build_detection_test_loader(DatasetCatalog.get(name), mapper=mapper, num_workers=0)
    results = inference_on_dataset(FixedPredictions(predictions), loader, build_evaluator(name))[
        "sem_seg"
    ]
    ious, labelled = [2 / 3, 3 / 4], [2, 4]
    if further is not None:
        ious, labelled = [*ious, 1], [*labelled, 1]
    assert results["mIoU"] == pytest.approx(100 * np.mean(ious))
    assert results["fwIoU"] == pytest.approx(100 * np.average(ious, weights=labelled))
    assert results["pACC"] == pytest.approx(100 * (sum(labelled) - 1) / sum(labelled))


#: Registered name -> the labels of an even image's halves and of an odd image's right half.
EXPECTED = {
    "coco_2017_test_stuff_all_sem_seg": (0, 170, [255]),
    "coco_2017_train_stuff_all_sem_seg": (0, 170, [255]),
    "ade20k_150_test_sem_seg": (0, 149, [255]),
    "ade20k_full_sem_seg_freq_val_all": (0, 846, [65535]),
    "context_59_test_sem_seg": (0, 58, [255]),
    "context_459_test_sem_seg": (0, 458, [459]),
    "voc_2012_test_sem_seg": (0, 19, [255]),
    "voc_2012_test_background_sem_seg": (0, 19, [20, 255]),
}


def test_the_labels_are_exact_and_the_summary_counts_them(tmp_path, run, miniature, caplog):
    stems = miniature.build(tmp_path)
    with caplog.at_level(logging.INFO):
        run(miniature.script, tmp_path)
    for name in miniature.names:
        split = split_of(name)
        first, last, no_class = EXPECTED[name]
        files = sorted(split.label_folder.iterdir())
        assert [file.name for file in files] == [stem + split.label_suffix for stem in stems]
        even, odd = (np.asarray(Image.open(file)) for file in files[:2])
        assert even.dtype == odd.dtype == (np.uint16 if split.label_suffix == ".tif" else np.uint8)
        assert (even == halves(even.shape, first, last)).all()
        middle = odd.shape[1] // 2
        assert (odd[:, :middle] == last).all()
        assert sorted(np.unique(odd[:, middle:])) == no_class
        seen = len(no_class) + 1
        ignored = "12.5" if len(no_class) == 2 else "25.0"
        classes = len(split.stuff_classes)
        assert (
            f"{name}: 4 images, 4 labels, {seen} of {classes} classes seen, {ignored} % of the "
            "pixels ignored, digest"
        ) in caplog.text
        assert f"has 4 labels instead of {split.count}" in caplog.text


def test_a_second_run_changes_nothing(tmp_path, run, miniature):
    miniature.build(tmp_path)
    run(miniature.script, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    run(miniature.script, tmp_path)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


#: Runs a preparation and kills it, as `kill -9` does, before a file gets its name.
PREPARE_AND_DIE = """
import os, runpy, signal, sys
script, root, writes = sys.argv[1:]
replace, done = os.replace, []

def replace_or_die(source, target):
    done.append(target)
    if len(done) == int(writes):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace_or_die
sys.argv = [script, "--root", root, "--jobs", "1"]
runpy.run_path(script, run_name="__main__")
"""


def test_a_killed_run_continues_to_the_same_digest(tmp_path, run, miniature):
    clean, killed = tmp_path / "clean", tmp_path / "killed"
    miniature.build(clean, images=6)
    run(miniature.script, clean)
    digests = [verify(split_of(name), 1).digest for name in miniature.names]
    outputs = [split_of(name).label_folder.relative_to(clean) for name in miniature.names]

    miniature.build(killed, images=6)
    outputs_of_a_job = 2 if "full" in miniature.script else 1
    whole = 6 * len(miniature.names) * outputs_of_a_job
    script = DATASETS / miniature.script
    process = subprocess.run(
        [sys.executable, "-c", PREPARE_AND_DIE, script, killed, str(whole // 2)],
        capture_output=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    labels = [path for output in outputs for path in (killed / output).glob("[!.]*")]
    assert 0 < len(labels) < 6 * len(miniature.names)
    assert list(killed.rglob(".*.tmp"))

    run(miniature.script, killed)
    assert [verify(split_of(name), 1).digest for name in miniature.names] == digests
    assert not list(killed.rglob(".*.tmp"))


def test_all_ids_of_coco_stuff(tmp_path, run):
    """The ids 0..181 in row-major order, then 255, are 171 classes in the order of their ids."""
    raw = np.full((14, 14), 255, np.uint8)
    raw.flat[:182] = np.arange(182)
    for split in ("val2017", "train2017"):
        save(tmp_path / f"coco-stuff/images/{split}/all.jpg", np.zeros((14, 14, 3), np.uint8))
        save(tmp_path / f"coco-stuff/annotations/{split}/all.png", raw)
    run("prepare_coco_stuff.py", tmp_path)
    split = split_of("coco_2017_test_stuff_all_sem_seg")
    labels = np.asarray(Image.open(split.label_folder / "all.png")).ravel()
    unused = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    assert (labels[unused] == 255).all() and (labels[182:] == 255).all()
    assert (np.delete(labels[:182], unused) == np.arange(171)).all()
    assert (labels[10], labels[12], labels[91], labels[181]) == (10, 11, 80, 170)


def test_a_small_image_of_ade_full_keeps_its_size(tmp_path, run):
    miniature = MINIATURES["ade20k_full"]
    image = np.full((300, 700, 3), 90, np.uint8)
    miniature.write(tmp_path, "ADE_val_00000001", image, halves((300, 700), 2978, 3148))
    miniature.finish(tmp_path, ["ADE_val_00000001"])
    run(miniature.script, tmp_path)
    split = split_of(miniature.names[0])
    labels = np.asarray(Image.open(split.label_folder / "ADE_val_00000001.tif"))
    assert (labels == halves((300, 700), 0, 846)).all()
    assert Image.open(split.image_folder / "ADE_val_00000001.jpg").size == (700, 300)


def test_images_of_ade_full_are_made_again_when_they_are_lost(tmp_path, run):
    miniature = MINIATURES["ade20k_full"]
    stems = miniature.build(tmp_path, images=2)
    run(miniature.script, tmp_path)
    image = split_of(miniature.names[0]).image_folder / f"{stems[0]}.jpg"
    image.unlink()
    run(miniature.script, tmp_path)
    assert image.is_file()


def test_the_released_list_of_context_459_has_priority(tmp_path, run):
    miniature = MINIATURES["pascal_context_459"]
    stems = miniature.build(tmp_path)
    (tmp_path / VOC_2010 / f"trainval/{stems[3]}.mat").unlink()
    run(miniature.script, tmp_path)
    folder = split_of(miniature.names[0]).label_folder
    assert sorted(path.stem for path in folder.iterdir()) == stems[:3]

    for path in folder.iterdir():
        path.unlink()
    (tmp_path / VOC_2010 / "pascalcontext_val.txt").write_text(f"{stems[2]}\n{stems[0]}\n")
    run(miniature.script, tmp_path)
    assert sorted(path.stem for path in folder.iterdir()) == [stems[0], stems[2]]


def test_a_mask_of_voc_without_a_class_is_skipped(tmp_path, run):
    miniature = MINIATURES["voc"]
    image = np.zeros((*miniature.size, 3), np.uint8)
    miniature.write(tmp_path, "none", image, halves(miniature.size, 0, 0))
    miniature.write(tmp_path, "some", image, halves(miniature.size, 0, 20))
    miniature.finish(tmp_path, ["none", "some"])
    run(miniature.script, tmp_path)
    plain, background = (split_of(name).label_folder for name in miniature.names)
    assert [path.name for path in plain.iterdir()] == ["some.png"]
    assert len(list(background.iterdir())) == 2


def error_of(run, *args):
    """Return the sentence that a failing script exits with."""
    with pytest.raises(SystemExit) as caught:
        run(*args)
    assert isinstance(caught.value.code, str) and "\n" not in caught.value.code
    return caught.value.code


def test_missing_originals_are_named(tmp_path, run, miniature):
    message = error_of(run, miniature.script, tmp_path)
    assert str(tmp_path) in message and "does not exist; download it" in message


def test_one_broken_file_does_not_stop_the_others(tmp_path, run):
    miniature = MINIATURES["ade20k_150"]
    stems = miniature.build(tmp_path)
    source = tmp_path / "ADEChallengeData2016/annotations/validation"
    (source / f"{stems[0]}.png").write_bytes(b"")
    save(source / f"{stems[1]}.png", np.full(miniature.size, 151, np.uint8))
    message = error_of(run, miniature.script, tmp_path)
    assert f"{stems[0]}.png cannot be read" in message and "2 of 4 files" in message
    folder = split_of(miniature.names[0]).label_folder
    assert sorted(path.stem for path in folder.iterdir()) == stems[2:]

    save(source / f"{stems[0]}.png", np.full(miniature.size, 150, np.uint8))
    message = error_of(run, miniature.script, tmp_path)
    assert f"{stems[1]}.png has the value 151" in message and "1 of 4 files" in message


def test_an_interrupted_run_says_how_to_continue(tmp_path, run, monkeypatch):
    def interrupt(source, target):
        raise KeyboardInterrupt

    miniature = MINIATURES["ade20k_150"]
    miniature.build(tmp_path)
    monkeypatch.setattr(os, "replace", interrupt)
    assert "run the command again to continue" in error_of(run, miniature.script, tmp_path)
    monkeypatch.undo()
    run(miniature.script, tmp_path)
    assert verify(split_of(miniature.names[0]), 1).labels == 4


def test_broken_label_maps_and_annotations_are_named(tmp_path, run):
    miniature = MINIATURES["pascal_context_459"]
    stems = miniature.build(tmp_path)
    path = tmp_path / VOC_2010 / f"trainval/{stems[0]}.mat"
    scipy.io.savemat(path, {"LabelMap": np.full((6, 8), 461, np.uint16)})
    assert f"{stems[0]}.mat has the value 461" in error_of(run, miniature.script, tmp_path)
    path.write_bytes(b"not a matrix")
    assert f"{stems[0]}.mat cannot be read" in error_of(run, miniature.script, tmp_path)
    annotation = tmp_path / VOC_2010 / "trainval_merged.json"
    for content in ("{", "[]", '{"images": []}', '{"annotations": [], "images": [{"id": 1}]}'):
        annotation.write_text(content)
        message = error_of(run, "prepare_pascal_context_59.py", tmp_path)
        assert "trainval_merged.json is not PASCAL Context's annotation" in message


class MaliciousObject:
    """Object whose unpickling creates a folder."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_index_is_refused_and_not_run(tmp_path, run, protocol):
    miniature = MINIATURES["ade20k_full"]
    stems = miniature.build(tmp_path, images=1)
    path = tmp_path / "ADE20K_2021_17_01/index_ade20k.pkl"
    created = tmp_path / "created"
    index = {"filename": [f"{stems[0]}.jpg"], "folder": [ADE_FULL_FOLDER.format("validation")]}
    path.write_bytes(pickle.dumps(index | {"scene": MaliciousObject(created)}, protocol=protocol))
    message = error_of(run, miniature.script, tmp_path)
    assert "index_ade20k.pkl is not ADE20K's index" in message and "mkdir" in message
    assert not created.exists()
    pickle.loads(path.read_bytes())  # An ordinary unpickler runs the code.
    assert created.is_dir()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"folder": []})])
def test_a_broken_index_is_refused(tmp_path, run, content):
    path = tmp_path / "ADE20K_2021_17_01/index_ade20k.pkl"
    path.parent.mkdir()
    path.write_bytes(content)
    assert "is not ADE20K's index" in error_of(run, "prepare_ade20k_full.py", tmp_path)
