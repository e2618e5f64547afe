"""The metrics of a confusion matrix, against values computed by hand."""

import math

import numpy as np
import pytest
import torch

from sed_d2.evaluation import ConfusionMatrix, segmentation_metrics

#: Three classes; rows are predicted, columns true, the last row and column ignored.
#            true:  a  b  c  ignored
BY_HAND = np.array([[3, 1, 0, 5],  # predicted a
                    [0, 4, 0, 0],  # predicted b
                    [1, 1, 0, 2],  # predicted c, which no label is
                    [0, 0, 0, 0]])  # fmt: skip


def test_metrics_by_hand():
    """Labelled, predicted and correct pixels are 4, 4, 3 for a; 6, 4, 4 for b; 0, 2, 0 for c."""
    metrics = segmentation_metrics(BY_HAND, ["a", "b", "c"])
    assert metrics["IoU-a"] == pytest.approx(100 * 3 / 5)
    assert metrics["IoU-b"] == pytest.approx(100 * 4 / 6)
    assert math.isnan(metrics["IoU-c"]) and math.isnan(metrics["ACC-c"])
    assert metrics["mIoU"] == pytest.approx(100 * (3 / 5 + 4 / 6) / 2)  # c is not in the labels
    assert metrics["fwIoU"] == pytest.approx(100 * (0.4 * 3 / 5 + 0.6 * 4 / 6))
    assert metrics["ACC-a"] == pytest.approx(75)
    assert metrics["ACC-b"] == pytest.approx(100 * 4 / 6)
    assert metrics["mACC"] == pytest.approx(100 * (3 / 4 + 4 / 6) / 2)
    assert metrics["pACC"] == pytest.approx(70)
    assert list(metrics)[:3] == ["mIoU", "fwIoU", "IoU-a"]
    assert all(type(value) is float for value in metrics.values())


def test_the_confusion_matrix_by_hand():
    matrix = ConfusionMatrix(3)
    predictions = torch.tensor([[0, 0, 1], [2, 2, 0]])
    labels = torch.tensor([[0, 1, 1], [0, 255, 255]], dtype=torch.int32)
    matrix.add(predictions, labels)
    once = [[1, 1, 0, 1], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]]
    assert matrix.numpy().tolist() == once
    matrix.add(predictions, labels.to(torch.uint8))
    assert (matrix.numpy() == 2 * np.array(once)).all()
    assert labels.tolist() == [[0, 1, 1], [0, 255, 255]]  # not changed in place
    assert predictions.tolist() == [[0, 0, 1], [2, 2, 0]]


@pytest.mark.parametrize(
    ("classes", "ignored"), [(21, 255), (459, 459), (847, 65535), (847, 2**31 - 1)]
)
def test_the_last_class_and_every_ignored_value(classes, ignored):
    matrix = ConfusionMatrix(classes)
    last = classes - 1
    matrix.add(torch.tensor([[last, last, 0]]), torch.tensor([[last, ignored, last]]))
    counts = matrix.numpy()
    assert counts.shape == (classes + 1, classes + 1) and counts.sum() == 3
    assert counts[last, last] == counts[last, classes] == counts[0, last] == 1


def test_wrong_predictions_are_refused():
    matrix = ConfusionMatrix(3)
    labels = torch.zeros(2, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="0 to 3 are not in 0 to 2"):
        matrix.add(torch.tensor([[0, 1], [2, 3]]), labels)
    with pytest.raises(ValueError, match="-1 to 0 are not in 0 to 2"):
        matrix.add(torch.tensor([[0, 0], [0, -1]]), labels)
    with pytest.raises(ValueError, match=r"size \(2, 3\) but the labels have \(2, 2\)"):
        matrix.add(torch.zeros(2, 3, dtype=torch.int64), labels)
    assert matrix.numpy().sum() == 0


def test_labels_without_a_class_are_an_error():
    with pytest.raises(ValueError, match="No pixel of the data set has a class"):
        segmentation_metrics(np.zeros((4, 4), np.int64), ["a", "b", "c"])
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        segmentation_metrics(BY_HAND, ["a", "b"])
