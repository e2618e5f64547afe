"""The report of the embedded model: figures by hand, tables, and how it trains ablations."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from sed_d2.predictor import Prediction
from sed_d2.shapes import scenes as shapes
from tools import quickstart_report as report


class Head(nn.Module):
    """Says how many classes survived."""

    def forward(self, count):
        return SimpleNamespace(survivors=range(count))


class Planted:
    """A predictor that gives the true labels, with those of some classes replaced."""

    def __init__(self, split, survivors=5, **replaced):
        self.model = SimpleNamespace(sem_seg_head=Head())
        self.split, self.survivors = split, survivors
        self.replaced = replaced
        self.number = -1  # the first call embeds the names

    def __call__(self, image, vocabulary):
        truth, labels = shapes.make_scene(max(self.number, 0), self.split)
        np.testing.assert_array_equal(image, truth)
        self.number += 1
        self.model.sem_seg_head(self.survivors)
        names = [self.replaced.get(name, name) for name in shapes.CLASSES]
        index = {name: i for i, name in enumerate(vocabulary.names)}
        lookup = np.array([index.get(name, 0) for name in names])
        return Prediction(lookup[labels], vocabulary)


def test_true_labels_score_everything():
    figures = report.evaluate(Planted("val_seen"), "val_seen", 2)
    assert figures["mIoU"] == figures["objects"] == 100
    assert figures["survivors"] == 5 and figures["ms"] >= 0


def test_a_lost_ground_counts_among_all_classes_and_not_among_the_objects():
    _, labels = shapes.make_scene(0, "val_unseen")
    present = np.unique(labels)
    lost = shapes.CLASSES[present[present < len(shapes.BACKGROUND_IDS)][0]]
    predictor = Planted("val_unseen", **{lost: "giraffe"})
    names = [*shapes.CLASSES, "giraffe"]
    figures = report.evaluate(predictor, "val_unseen", 1, range(len(shapes.CLASSES)), names)
    assert figures["objects"] == 100
    # Every class of the scene has 100 % but one; names that do not occur have no IoU.
    assert figures["mIoU"] == pytest.approx(100 * (len(present) - 1) / len(present), abs=0.01)


def test_a_small_vocabulary_keeps_the_grounds_and_the_unseen():
    ids, names = report.vocabulary_of(50)
    assert len(ids) == len(names) == 50
    assert {*shapes.BACKGROUND_IDS, *shapes.UNSEEN_IDS} <= set(ids)
    ids, names = report.vocabulary_of(150)
    assert names[:92] == shapes.CLASSES and len(names) == 150 and ids == list(range(92))


def test_the_table_of_early_rejection_compares_with_all_classes_kept():
    row = {"classes": 50, "k": 0, "mIoU": 80.0, "objects": 70.0, "survivors": 50, "ms": 300}
    table = report.rejection_table([row, {**row, "k": 8, "mIoU": 79.75, "ms": 100}])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert cells[2] == ["50", "all", "80.00", "+0.00", "50", "300", "1.0"]
    assert cells[3] == ["50", "8", "79.75", "-0.25", "50", "100", "3.0"]


def test_a_part_is_measured_and_written_into_the_page(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- begin scores -->\nold\n<!-- end scores -->\n")
    both = {"mIoU": 86.13, "objects": 84.9, "survivors": 92, "ms": 133}
    rows = [{"k": 0, "seen": both, "unseen": both}, {"k": 8, "seen": both, "unseen": both}]
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    monkeypatch.setattr(report, "FIGURES", tmp_path / "figures.json")
    monkeypatch.setitem(report.PARTS, "scores", (lambda args: rows, report.score_table))
    report.main(["scores"])
    assert json.loads((tmp_path / "figures.json").read_text())["scores"]["rows"] == rows
    text = page.read_text()
    assert "| early rejection, k = 8 | 86.1" in text and "torch" in text and "old" not in text


def test_ablations_train_from_the_given_clip_each_in_its_own_folder(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(
        report.subprocess, "run", lambda command, check, env: commands.append((command, env))
    )
    monkeypatch.setattr(report, "OpenVocabPredictor", lambda cfg: cfg)
    monkeypatch.setattr(report, "evaluate", lambda cfg, split, count: cfg.MODEL.WEIGHTS)
    args = argparse.Namespace(
        clip=tmp_path / "clip.pt", output=tmp_path, iterations=7, processes=2, rejection_scenes=3
    )
    rows = report.measure_ablations(args)
    assert [row["variant"] for row in rows] == list(report.ABLATIONS)
    folders = {row["seen"] for row in rows}
    assert len(folders) == len(rows) == len(commands)
    for (command, env), pairs in zip(commands, report.ABLATIONS.values(), strict=True):
        assert set(pairs) <= set(command) and str(tmp_path / "clip.pt") in command
        assert command[command.index("SOLVER.MAX_ITER") + 1] == "7"
        assert env["OMP_NUM_THREADS"] == "1"
