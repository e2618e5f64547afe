"""The evaluator on label files of a few pixels."""

import json

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sed_d2.evaluation import SemSegEvaluator, build_evaluator


@pytest.fixture
def register(tmp_path):
    """Write label maps as 16-bit files and register them; return the name."""
    names = []

    def add(labels, classes, ignore_label, **metadata):
        name = f"evaluator_{tmp_path.name}_{len(names)}"
        records = []
        for index, array in enumerate(labels):
            path = tmp_path / f"{name}_{index}.tif"
            Image.fromarray(np.asarray(array, np.uint16)).save(path)
            records.append({"file_name": f"{index}.jpg", "sem_seg_file_name": str(path)})
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(
            stuff_classes=classes, ignore_label=ignore_label, evaluator_type="sem_seg", **metadata
        )
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def predicted(values):
    return {"labels": torch.tensor(values)}


def test_results_by_hand_and_as_json(tmp_path, register):
    """Image 0 has one wrong pixel, image 1 is all wrong, and no label is class c."""
    name = register([[[0, 0, 1, 255]], [[1, 1]]], ["a", "b", "c"], 255)
    evaluator = build_evaluator(name, str(tmp_path / "out" / "deep"))
    evaluator.process([{"file_name": "0.jpg"}], [predicted([[0, 1, 1, 2]])])
    evaluator.process([{"file_name": "1.jpg"}], [predicted([[0, 2]])])
    results = evaluator.evaluate()["sem_seg"]
    # a: correct 1, labelled 2, predicted 2 -> 1/3; b: correct 1, labelled 3, predicted 2 -> 1/4
    assert results["mIoU"] == pytest.approx(100 * (1 / 3 + 1 / 4) / 2)
    assert results["pACC"] == pytest.approx(100 * 2 / 5)
    written = json.loads((tmp_path / "out" / "deep" / f"{name}.json").read_text())
    assert written["mIoU"] == results["mIoU"]
    assert written["IoU-c"] is None
    assert len(list((tmp_path / "out" / "deep").iterdir())) == 1

    evaluator.reset()
    evaluator.process([{"file_name": "1.jpg"}], [predicted([[1, 1]])])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100


def test_scores_are_accepted_and_labels_of_the_loader_have_priority(register):
    name = register([[[0, 1]]], ["a", "b"], 255)
    evaluator = SemSegEvaluator(name)
    scores = torch.tensor([[[0.9, 0.2]], [[0.1, 0.3]]])
    evaluator.process([{"file_name": "0.jpg"}], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100
    evaluator.reset()
    loaded = {"file_name": "0.jpg", "labels": torch.tensor([[1, 0]], dtype=torch.int32)}
    evaluator.process([loaded], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 0


def test_further_names_count_as_background(register):
    """There are two classes and background, and five names: 2, 3 and 4 count as background."""
    name = register(
        [[[0, 1, 2, 2, 2]]],
        ["a", "b", "background"],
        255,
        vocabulary=["a", "b", "sky", "grass", "wall"],
    )
    evaluator = SemSegEvaluator(name)
    evaluator.process([{"file_name": "0.jpg"}], [predicted([[0, 4, 2, 3, 4]])])
    results = evaluator.evaluate()["sem_seg"]
    assert results["IoU-a"] == 100
    assert results["IoU-b"] == 0
    assert results["IoU-background"] == pytest.approx(75)  # 3 of 4 predicted pixels


@pytest.mark.parametrize(("classes", "ignored"), [(459, 459), (847, 65535)])
def test_16_bit_labels(register, classes, ignored):
    last = classes - 1
    name = register([[[last, last, ignored, 0]]], [str(i) for i in range(classes)], ignored)
    evaluator = SemSegEvaluator(name)
    evaluator.process([{"file_name": "0.jpg"}], [predicted([[last, 0, last, 0]])])
    results = evaluator.evaluate()["sem_seg"]
    assert results[f"IoU-{last}"] == 50
    assert results["mIoU"] == 50  # class 0: correct 1, labelled 1, predicted 2


def test_bad_labels_and_predictions_name_the_file(register):
    name = register([[[0, 7]], [[0, 1]]], ["a", "b"], 255)
    evaluator = SemSegEvaluator(name)
    with pytest.raises(ValueError, match="_0.tif has the value 7"):
        evaluator.process([{"file_name": "0.jpg"}], [predicted([[0, 0]])])
    with pytest.raises(ValueError, match="1.jpg: The predictions 0 to 2 are not"):
        evaluator.process([{"file_name": "1.jpg"}], [predicted([[0, 2]])])
    with pytest.raises(ValueError, match="1.jpg: The predictions have the size"):
        evaluator.process([{"file_name": "1.jpg"}], [predicted([[0, 0, 0]])])


def test_an_ignored_value_among_the_classes_is_refused(register):
    name = register([[[0, 1]]], ["a", "b"], 1)
    with pytest.raises(ValueError, match=r"ignored value 1 .* is the value of a class \(0 to 1\)"):
        SemSegEvaluator(name)


def test_an_unknown_evaluator_type_is_refused():
    with pytest.raises(ValueError, match="no_such_set.*evaluator_type None"):
        build_evaluator("no_such_set")


def evaluate_in_a_process(rank, folder):
    """Evaluate one image of two in one of two processes."""
    import torch.distributed as dist
    from detectron2.utils import comm

    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(2)
    records = [
        {"file_name": f"{i}.jpg", "sem_seg_file_name": f"{folder}/{i}.tif"} for i in range(2)
    ]
    DatasetCatalog.register("two_images", lambda: records)
    MetadataCatalog.get("two_images").set(stuff_classes=["a", "b"], ignore_label=255)
    evaluator = SemSegEvaluator("two_images", folder)
    evaluator.process([{"file_name": f"{rank}.jpg"}], [predicted([[0, 0, 0, 1]])])
    results = evaluator.evaluate()
    assert (results is None) == (rank == 1)
    dist.destroy_process_group()


def test_two_processes_add_up(tmp_path):
    for index, labels in enumerate(([[0, 0, 0, 1]], [[0, 1, 1, 255]])):
        Image.fromarray(np.asarray(labels, np.uint16)).save(tmp_path / f"{index}.tif")
    mp.spawn(evaluate_in_a_process, args=(str(tmp_path),), nprocs=2)
    written = json.loads((tmp_path / "two_images.json").read_text())
    # a: labelled 4, predicted 6, correct 4; b: labelled 3, predicted 1, correct 1
    assert written["IoU-a"] == pytest.approx(100 * 4 / 6)
    assert written["IoU-b"] == pytest.approx(100 * 1 / 3)
