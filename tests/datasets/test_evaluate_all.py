"""Preparation and evaluation of all benchmarks by commands, from original files to a table."""

import json
import os
import subprocess
import sys

import pytest

from sed_d2.data import SPLITS
from tests.conftest import ROOT, TINY
from tests.datasets.miniature import MINIATURES

#: Registered name -> number of evaluated classes.
CLASSES = {
    "coco_2017_test_stuff_all_sem_seg": 171,
    "ade20k_150_test_sem_seg": 150,
    "ade20k_full_sem_seg_freq_val_all": 847,
    "context_59_test_sem_seg": 59,
    "context_459_test_sem_seg": 459,
    "voc_2012_test_sem_seg": 20,
    "voc_2012_test_background_sem_seg": 21,
}


def command(*arguments, root):
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "DETECTRON2_DATASETS": str(root), "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def test_all_benchmarks_are_evaluated_by_one_command(tmp_path):
    root, output = tmp_path / "datasets", tmp_path / "output"
    for miniature in MINIATURES.values():
        miniature.build(root)
        command(ROOT / "datasets" / miniature.script, "--jobs", 1, root=root)
    assert set(CLASSES) == {split.name for split in SPLITS} - {"coco_2017_train_stuff_all_sem_seg"}

    log = command(
        *(ROOT / "train_net.py", "--eval-only", "--config-file", ROOT / "configs/Base-SED.yaml"),
        *TINY,
        *("TEST.FAST_INFERENCE", True, "TEST.TOPK", 8, "DATASETS.TEST", tuple(CLASSES)),
        *("OUTPUT_DIR", output, "DATALOADER.NUM_WORKERS", 0, "SEED", 1),
        root=root,
    )
    rows = json.loads((output / "inference" / "results.json").read_text())
    assert {row["dataset"]: row["classes"] for row in rows} == CLASSES
    for row in rows:
        result = json.loads(
            (output / "inference" / row["dataset"] / f"{row['dataset']}.json").read_text()
        )
        assert row["images"] == 4 and row["ms_per_image"] > 0
        assert row["mIoU"] == pytest.approx(result["mIoU"])
        assert row["paper_mIoU"] is None  # The paper has no results of this model.
        assert f"{row['mIoU']:.2f}" in log
    table = (output / "inference" / "results.md").read_text().splitlines()
    assert len(table) == 2 + len(CLASSES) and table[0].startswith("| data set")
