"""Scores of planted predictions, by hand; the sheet of pictures."""

from types import SimpleNamespace

import numpy as np
import pytest

from sed_d2.predictor import Prediction
from sed_d2.shapes.dataset import make_scene
from sed_d2.shapes.scores import draw_comparison, score, score_splits
from sed_d2.shapes.words import BACKGROUND_IDS, CLASSES
from sed_d2.vocabulary import Vocabulary

#: The labels of the first scenes of both splits, by the bytes of their images.
LABELS = {
    image.tobytes(): labels
    for image, labels in (make_scene(i, s) for i in range(2) for s in ("val_seen", "val_unseen"))
}


class Planted:
    """A predictor that gives the true labels, with some classes replaced by others.

    Args:
        survivors: number of classes with a score, if there is early rejection.
        replaced: true name -> predicted name.
    """

    def __init__(self, survivors=None, **replaced):
        top_k = 0 if survivors is None else 8
        self.model = SimpleNamespace(sem_seg_head=SimpleNamespace(top_k=top_k))
        self.survivors, self.replaced = survivors, replaced

    def __call__(self, image, names, scores=False):
        vocabulary = names if isinstance(names, Vocabulary) else Vocabulary.from_names(names)
        index = {name: i for i, name in enumerate(vocabulary.names)}
        # A name that is not in the vocabulary gets the first one.
        lookup = np.array([index.get(self.replaced.get(name, name), 0) for name in CLASSES])
        labels = lookup[LABELS[image.tobytes()]]
        if not scores:
            return Prediction(labels, vocabulary)
        array = np.zeros((len(vocabulary), *labels.shape), np.float32)
        array[: self.survivors, 3, 5] = 0.01
        return Prediction(labels, vocabulary, array)


def test_true_labels_score_everything():
    result = score(Planted(), "val_seen", 2)
    assert result["mIoU"] == result["objects"] == 100
    assert result["survivors"] == 92 and result["ms"] >= 0


def test_survivors_are_the_classes_with_a_score():
    assert score(Planted(survivors=5), "val_seen", 2)["survivors"] == 5


def test_a_lost_background_counts_among_all_classes_and_not_among_the_objects():
    _, labels = make_scene(0, "val_unseen")
    present = np.unique(labels)
    lost = CLASSES[present[present < len(BACKGROUND_IDS)][0]]
    result = score(Planted(**{lost: "giraffe"}), "val_unseen", 1, [*CLASSES, "giraffe"])
    assert result["objects"] == 100
    # Every class of the scene has 100 % but one; names that do not occur have no IoU.
    assert result["mIoU"] == pytest.approx(100 * (len(present) - 1) / len(present), abs=0.01)


def test_pixels_of_a_class_that_is_not_asked_for_are_ignored():
    """The predictor calls them by the first name, which would lose by it."""
    _, labels = make_scene(0, "val_seen")
    *asked, left_out = [CLASSES[i] for i in np.unique(labels)]
    result = score(Planted(), "val_seen", 1, asked)
    assert len(asked) >= 2 and left_out not in asked
    assert result["mIoU"] == result["objects"] == 100


def test_both_splits_are_scored():
    _, labels = make_scene(0, "val_seen")
    seen_object = CLASSES[labels.max()]
    results = score_splits(Planted(**{seen_object: "giraffe"}), 1, [*CLASSES, "giraffe"])
    assert list(results) == ["seen", "unseen"]
    assert results["seen"]["objects"] < 100 and results["unseen"]["objects"] == 100


def test_a_comparison_has_a_row_of_three_panels_for_each_scene():
    sheet = draw_comparison(Planted(), "val_seen", 2)
    width = sheet.width // 3
    pixels = np.asarray(sheet)
    for row in range(2):
        image, _ = make_scene(row, "val_seen")
        top = row * sheet.height // 2
        np.testing.assert_array_equal(pixels[top : top + 256, :256], image)
    # The truth is beside the same labels as a prediction, and differs from the image.
    np.testing.assert_array_equal(pixels[:, width : 2 * width], pixels[:, 2 * width :])
    assert np.mean(pixels[:256, width : width + 256] != pixels[:256, :256]) > 0.5
