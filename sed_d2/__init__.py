"""Dense open-vocabulary labelling, as a Detectron2 project.

The public names load on first use. With the first of them the models and the data sets are
registered with Detectron2, so that ``import sed_d2`` itself needs neither torch nor Detectron2.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import add_sed_config, get_sed_cfg
    from .predictor import OpenVocabPredictor, Prediction
    from .vocabulary import Vocabulary

__all__ = ["OpenVocabPredictor", "Prediction", "Vocabulary", "add_sed_config", "get_sed_cfg"]

#: Public name -> its module.
_MODULES = {
    "OpenVocabPredictor": "predictor",
    "Prediction": "predictor",
    "Vocabulary": "vocabulary",
    "add_sed_config": "config",
    "get_sed_cfg": "config",
}

#: Importing these packages registers models, data sets and the embedded CLIP.
_REGISTERED = ("modeling", "data", "shapes")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _register()
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    """Register everything with Detectron2."""
    with warnings.catch_warnings():
        # fvcore compiles two helpers with torch.jit.script, which this package never runs.
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
        try:
            importlib.import_module("detectron2")
        except ImportError as error:
            raise ImportError(
                "sed_d2 needs Detectron2, which is not installed: run "
                "'python tools/install_detectron2.py' in the sed_d2 checkout"
            ) from error
        for package in _REGISTERED:
            importlib.import_module(f".{package}", __name__)
