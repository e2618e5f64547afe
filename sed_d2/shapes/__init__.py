"""The world of shapes: a generated data set, a CLIP and a SED trained on it, and their weights.

Importing the package registers the data sets with Detectron2 and the CLIP's form with open_clip.
"""

from pathlib import Path

import open_clip

from . import scenes

__all__ = ["scenes"]

open_clip.add_model_config(Path(__file__).parent)
