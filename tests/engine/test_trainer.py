import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from sed_d2.engine.trainer import Trainer


def test_no_data_set_to_train_on_is_said(tiny_cfg):
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        Trainer.build_train_loader(tiny_cfg())


def test_the_ignored_value_of_config_and_data_must_agree(tiny_cfg):
    DatasetCatalog.register("ignores_0", list)
    MetadataCatalog.get("ignores_0").set(stuff_classes=["cat"], ignore_label=0)
    cfg = tiny_cfg("DATASETS.TRAIN", ("ignores_0",))
    with pytest.raises(ValueError, match="IGNORE_VALUE 255 .* 'ignores_0': set it to 0"):
        Trainer.build_train_loader(cfg)


def test_mixed_precision_without_cuda_is_refused(tiny_cfg):
    with pytest.raises(ValueError, match="SOLVER.AMP.ENABLED True needs a CUDA GPU"):
        Trainer(tiny_cfg("SOLVER.AMP.ENABLED", True))
