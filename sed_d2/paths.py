"""The folder of the data sets. This module imports neither torch nor Detectron2."""

import os
from pathlib import Path


def data_root() -> Path:
    """Return the folder of the data sets, ``DETECTRON2_DATASETS``; the default is ``datasets``."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()
