import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from sed_d2 import Vocabulary
from sed_d2.engine.trainer import LabelInference, Trainer, dataset_vocabulary, use_vocabulary


def test_a_data_set_is_asked_for_its_own_names():
    assert dataset_vocabulary("ade20k_150_test_sem_seg").names[:2] == ("wall", "building")
    assert len(dataset_vocabulary("voc_2012_test_background_sem_seg")) == 59


def test_a_class_file_overrides_them_if_it_fits(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(f"thing {i}" for i in range(150)))
    assert dataset_vocabulary("ade20k_150_test_sem_seg", str(path)).names[149] == "thing 149"
    with pytest.raises(ValueError, match="has 150 classes but .*context_59.* has 59"):
        dataset_vocabulary("context_59_test_sem_seg", str(path))


def test_the_vocabulary_of_training_comes_back(tiny_model):
    model = tiny_model(names=("cat", "dog"))
    with pytest.raises(RuntimeError), use_vocabulary(model, Vocabulary.from_names(["sky"])):
        assert model.vocabulary.names == ("sky",)
        raise RuntimeError
    assert model.vocabulary.names == ("cat", "dog")


def test_evaluation_asks_for_labels_and_leaves_the_mode_alone(tiny_model):
    wrapper = LabelInference(tiny_model())
    assert not wrapper.training
    (result,) = wrapper([{"image": torch.zeros(3, 64, 64)}])
    assert result["labels"].shape == (64, 64)


def test_no_data_set_to_evaluate_is_no_result(tiny_cfg, tiny_model):
    assert Trainer.test(tiny_cfg("DATASETS.TEST", ()), tiny_model()) == {}


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
