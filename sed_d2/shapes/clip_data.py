"""The scenes that the small CLIP is trained on, drawn on demand, in three phases.

The first phase has crops that one object fills, the second one or two objects anywhere, the third
whole scenes. A model that is trained on whole scenes alone learns the backgrounds at once and
the objects hardly at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .dataset import SPLITS
from .scenes import draw_scene, scene_rng
from .words import BACKGROUNDS, CLASSES

#: Side in pixels of a cell, which is one position of the dense image embedding.
CELL = 32


@dataclass(frozen=True)
class Phase:
    """A phase of the training.

    Attributes:
        name: the name in the results of the evaluation.
        size: side of a scene in pixels.
        objects: smallest and largest number of objects in a scene.
        radius: smallest and largest radius of an object, as a share of ``size``.
        margin: smallest distance of an object's centre from the border, as a share of ``size``.
        steps: number of batches.
        batch: scenes in a batch.
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


class SceneDataset(Dataset):
    """The scenes ``start`` to ``stop`` - 1 of a phase, each drawn from the seed and its number.

    An item is the image (3, H, W) uint8 and the share of each class in each cell, (h, w, T)
    float32.

    Args:
        phase: the phase; its name selects the random numbers.
        object_ids: class ids to choose objects from.
        seed: of all scenes.
        start: the first scene.
        stop: the scene after the last.
    """

    def __init__(self, phase: Phase, object_ids: Iterable[int], seed: int, start: int, stop: int):
        self.phase = phase
        self.object_ids = list(object_ids)
        self.seed = seed
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        phase = self.phase
        # The first streams of a seed are those of the data set's splits.
        stream = len(SPLITS) + [p.name for p in PHASES].index(phase.name)
        rng = scene_rng(self.seed, stream, self.start + index)
        backgrounds = rng.permutation(len(BACKGROUNDS))[: rng.randint(1, 4)]
        objects = rng.choice(self.object_ids, rng.randint(phase.objects[0], phase.objects[1] + 1))
        radius = (phase.radius[0] * phase.size, phase.radius[1] * phase.size)
        image, labels = draw_scene(rng, phase.size, backgrounds, objects, radius, phase.margin)
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(cell_shares(labels))


def cell_shares(labels: np.ndarray) -> np.ndarray:
    """Return the share of each class in each cell: (H, W) ids -> (H / 32, W / 32, T) float32."""
    height, width = (side // CELL for side in labels.shape)
    grid = labels.reshape(height, CELL, width, CELL).swapaxes(1, 2)
    cells = grid.reshape(height * width, CELL**2).astype(np.int64)
    # Each cell counts in bins of its own: the class id plus T times the cell's index.
    bins = cells + len(CLASSES) * np.arange(len(cells))[:, None]
    counts = np.bincount(bins.ravel(), minlength=len(cells) * len(CLASSES))
    return counts.reshape(height, width, len(CLASSES)).astype(np.float32) / CELL**2
