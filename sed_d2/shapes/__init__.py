"""The world of shapes: a generated data set, and a small CLIP and SED trained on it.

Importing the package registers the data sets with Detectron2 and the small CLIP's config with
open_clip.

``words`` names the classes, ``scenes`` draws and ``dataset`` writes them. ``clip_data``,
``prompts``, ``readout``, ``muon`` and ``clip_training`` train the CLIP. ``embedded`` is the SED
model whose weights are in the package, and ``scores`` measures it.
"""

from pathlib import Path

import open_clip

from .dataset import SPLITS, WORLD_VERSION, make_scene, write_dataset
from .words import CLASSES, TRAIN_CLASSES, vocabulary_of_size

__all__ = [
    "CLASSES",
    "SPLITS",
    "TRAIN_CLASSES",
    "WORLD_VERSION",
    "make_scene",
    "vocabulary_of_size",
    "write_dataset",
]

# The JSON file in this folder is the config "shapes_convnext_atto".
open_clip.add_model_config(Path(__file__).parent)
