"""The example data set: it is made, verified, loaded, trained on and evaluated."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from sed_d2 import get_sed_cfg
from sed_d2.data import SemSegTrainMapper
from sed_d2.vocabulary import Vocabulary
from tests.conftest import ROOT, TINY


def test_the_example_is_made_verified_and_loaded(tmp_path, run_script, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    run_script("make_example.py")
    folder = tmp_path / "example"
    try:
        with pytest.raises(SystemExit) as caught:
            run_script("verify.py", folder / "train.yaml", folder / "val.yaml")
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert "example_train 16" in " ".join(out.split())
        assert "3 of 3" in out and "never occur" not in out

        assert Vocabulary.of_dataset("example_val").names[0] == "grass, lawn"
        cfg = get_sed_cfg("", ["INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TRAIN", "(96,)"])
        cfg.DATASETS.TRAIN = ("example_train",)
        sample = SemSegTrainMapper(cfg)(DatasetCatalog.get("example_train")[0])
        assert sample["image"].shape == (3, 96, 96)
        assert set(sample["sem_seg"].unique().tolist()) == {0, 1, 2, 255}
        ball = sample["image"][:, sample["sem_seg"] == 1].float().mean(1)
        assert torch.argmax(ball) == 0  # The pixels of the class "red ball" are red.
    finally:
        for name in ("example_train", "example_val"):
            if name in DatasetCatalog.list():
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)


def test_the_example_is_trained_and_evaluated_by_the_command_of_the_page(tmp_path):
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    run = partial(subprocess.run, env=environment, check=True, capture_output=True, text=True)
    run([sys.executable, ROOT / "datasets" / "make_example.py"])
    descriptions = tuple(str(tmp_path / "example" / f"{split}.yaml") for split in ("train", "val"))
    settings = [
        *("--config-file", ROOT / "configs" / "Base-SED.yaml", *TINY),
        *("DATASETS.CUSTOM", descriptions, "DATASETS.TRAIN", ("example_train",)),
        *("DATASETS.TEST", ("example_val",), "OUTPUT_DIR", tmp_path / "output"),
        *("SOLVER.MAX_ITER", 1, "SOLVER.IMS_PER_BATCH", 2, "TEST.EVAL_PERIOD", 1),
        *("DATALOADER.NUM_WORKERS", 0),
    ]
    run([sys.executable, ROOT / "train_net.py", *map(str, settings)])
    (row,) = json.loads((tmp_path / "output/inference/results.json").read_text())
    assert (row["dataset"], row["images"], row["classes"]) == ("example_val", 4, 3)
