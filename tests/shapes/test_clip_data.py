"""The scenes of the small CLIP's training, and the shares of classes in their cells."""

import numpy as np
import torch

from sed_d2.shapes.clip_data import PHASES, SceneDataset, cell_shares
from sed_d2.shapes.words import SEEN_IDS


def test_cell_shares_count_the_classes_of_each_cell():
    labels = np.zeros((64, 96), np.uint8)
    labels[:32, :16] = 9  # half of the first cell
    labels[32:, 64:] = 91  # all of the last
    shares = cell_shares(labels)
    assert shares.shape == (2, 3, 92)
    assert shares[0, 0, 9] == 0.5 and shares[0, 0, 0] == 0.5
    assert shares[1, 2, 91] == 1
    np.testing.assert_array_equal(shares.sum(-1), 1)


def test_crops_show_one_training_object():
    scenes = SceneDataset(PHASES[0], SEEN_IDS, seed=0, start=5, stop=25)
    assert len(scenes) == 20
    for image, shares in map(scenes.__getitem__, range(len(scenes))):
        assert image.shape == (3, 64, 64) and shares.shape == (2, 2, 92)
        objects = shares.sum((0, 1)).nonzero().flatten()
        objects = [int(class_id) for class_id in objects if class_id >= SEEN_IDS.start]
        assert len(objects) == 1 and objects[0] in SEEN_IDS


def test_a_scene_depends_on_its_number_and_not_on_the_first_one():
    scenes = SceneDataset(PHASES[0], SEEN_IDS, seed=0, start=5, stop=25)
    later = SceneDataset(PHASES[0], SEEN_IDS, seed=0, start=6, stop=25)
    assert torch.equal(later[0][0], scenes[1][0])
