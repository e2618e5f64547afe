import pytest
import torch

from sed_d2 import Vocabulary
from sed_d2.engine.evaluation import LabelInference, dataset_vocabulary
from sed_d2.engine.trainer import Trainer


def test_a_data_set_is_asked_for_its_own_names():
    assert dataset_vocabulary("ade20k_150_test_sem_seg").names[:2] == ("wall", "building")
    assert len(dataset_vocabulary("voc_2012_test_background_sem_seg")) == 59


def test_a_class_file_overrides_them_if_it_fits(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(f"thing {i}" for i in range(150)))
    assert dataset_vocabulary("ade20k_150_test_sem_seg", str(path)).names[149] == "thing 149"
    with pytest.raises(ValueError, match="has 150 classes but .*context_59.* has 59"):
        dataset_vocabulary("context_59_test_sem_seg", str(path))


def test_evaluation_asks_for_labels_of_its_classes_and_changes_nothing(tiny_model):
    model = tiny_model(names=("cat", "dog"))
    inference = LabelInference(model, Vocabulary.from_names(["sky", "grass", "red car"]))
    assert not inference.training
    inputs = [{"image": 255 * torch.rand(3, 64, 64)}]
    with torch.no_grad():
        (result,) = inference(inputs)
        (expected,) = model(inputs, vocabulary="sky, grass, red car", labels_only=True)
    assert torch.equal(result["labels"], expected["labels"])
    assert model.vocabulary.names == ("cat", "dog")
    assert inference.images == 1 and inference.seconds > 0


def test_no_data_set_to_evaluate_is_no_result(tiny_cfg, tiny_model):
    assert Trainer.test(tiny_cfg("DATASETS.TEST", ()), tiny_model()) == {}
