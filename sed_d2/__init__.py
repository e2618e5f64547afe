"""SED, open-vocabulary semantic segmentation, as a Detectron2 project.

Importing the package registers the model and the data sets with Detectron2.
"""

import warnings

# fvcore compiles two helpers with torch.jit.script, which SED never runs.
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "sed_d2 needs Detectron2, which is not installed: run "
        "'python tools/install_detectron2.py' in the sed_d2 checkout"
    ) from error

from . import data, modeling, shapes
from .config import add_sed_config, get_sed_cfg
from .vocabulary import Vocabulary

__all__ = ["Vocabulary", "add_sed_config", "data", "get_sed_cfg", "modeling", "shapes"]
