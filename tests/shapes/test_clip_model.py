"""The small CLIP's accuracy, counted by hand."""

import torch
from torch.nn import functional as F

from sed_d2.shapes import clip_model
from sed_d2.shapes.clip_data import PHASES, SceneDataset
from sed_d2.shapes.words import SEEN_IDS


class ConstantModel:
    """Every cell shows one object."""

    clip = None

    def __init__(self, index):
        self.index = index

    def eval(self):
        return self

    def train(self):
        return self

    def __call__(self, images):
        cells = F.one_hot(torch.full((len(images), 2, 2), self.index), 84).float()
        return {"embedding": cells.permute(0, 3, 1, 2)}


class OneHotNames:
    """The embedding of class i is the i-th unit vector."""

    def __init__(self, clip, tokenizer):
        pass

    def __call__(self, classes):
        return torch.eye(len(classes))[:, None]


def test_cell_accuracy_counts_correct_object_cells(monkeypatch):
    scenes = SceneDataset(PHASES[0], SEEN_IDS, 10**6, 0, 40)
    shares = torch.stack([scenes[i][1] for i in range(40)])[..., 8:]
    label = shares.argmax(-1)[shares.amax(-1) >= 0.3]
    index = int(label.mode().values)
    monkeypatch.setattr(clip_model, "TextEncoder", OneHotNames)
    accuracy = clip_model.cell_accuracy(ConstantModel(index), None, PHASES[:1], 40, seed=0)
    correct = (label == index).float().mean().item()
    assert 0 < correct < 1
    assert accuracy == {"crops_seen": round(100 * correct, 1), "crops_unseen": 0.0}
