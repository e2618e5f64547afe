"""The pictures that the small CLIP is trained on, drawn as they are needed."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from . import scenes as shapes

STRIDE = 32
"""Pixels of a cell, one position of the dense embedding."""


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Attributes:
        name: in the figures of the evaluation.
        size: side of a picture in pixels.
        objects: least and greatest number of objects in a picture.
        radius: least and greatest radius of an object, as a share of `size`.
        margin: least distance of an object's centre from the border, as a share of `size`.
        steps: number of batches.
        batch: pictures in a batch.
    """

    name: str
    size: int
    objects: tuple[int, int]
    radius: tuple[float, float]
    margin: float
    steps: int
    batch: int


PHASES = (
    Phase("crops", 64, (1, 1), (0.3, 0.47), 0.44, 1000, 32),
    Phase("pairs", 96, (1, 2), (0.2, 0.45), 0.2, 800, 20),
    Phase("scenes", 192, (2, 5), (0.13, 0.25), 0.1, 800, 8),
)


class Pictures(Dataset):
    """Pictures number `start` to `stop` of a phase, drawn from the seed and the number alone.

    Items are the image (3, H, W) uint8 and the share of each class in each cell, (h, w, T) float32.
    """

    def __init__(self, phase: Phase, object_ids, seed: int, start: int, stop: int):
        self.phase, self.object_ids, self.seed = phase, list(object_ids), seed
        self.start, self.stop = start, stop

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, index):
        phase = self.phase
        # Each phase has random numbers of its own, and none shares them with a split of the data.
        stream = len(shapes.SPLITS) + [p.name for p in PHASES].index(phase.name)
        rng = shapes.scene_rng(self.seed, stream, self.start + index)
        backgrounds = rng.permutation(len(shapes.BACKGROUNDS))[: rng.randint(1, 4)]
        objects = rng.choice(self.object_ids, rng.randint(phase.objects[0], phase.objects[1] + 1))
        radius = tuple(share * phase.size for share in phase.radius)
        image, labels = shapes.draw_scene(
            rng, phase.size, backgrounds, objects, radius, phase.margin
        )
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(cell_shares(labels))


def cell_shares(labels: np.ndarray) -> np.ndarray:
    """(H, W) class ids -> (H / 32, W / 32, T) float32, the share of each class in each cell."""
    height, width = (side // STRIDE for side in labels.shape)
    cells = labels.reshape(height, STRIDE, width, STRIDE).swapaxes(1, 2)
    cells = cells.reshape(height * width, STRIDE**2).astype(np.int64)
    num_classes = len(shapes.CLASSES)
    counts = np.bincount(
        (cells + num_classes * np.arange(len(cells))[:, None]).ravel(),
        minlength=len(cells) * num_classes,
    )
    return counts.reshape(height, width, num_classes).astype(np.float32) / STRIDE**2
