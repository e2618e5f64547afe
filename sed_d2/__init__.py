"""Dense open-vocabulary labelling, as a Detectron2 project.

The public names load on first use. With the first of them the models and the data sets are
registered with Detectron2, so that ``import sed_d2`` itself needs neither torch nor Detectron2.
A program that uses none of them calls :func:`register`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import PACKAGES, register

if TYPE_CHECKING:
    from .config import add_sed_config, get_sed_cfg
    from .predictor import OpenVocabPredictor, Prediction
    from .vocabulary import Vocabulary

__all__ = [
    "OpenVocabPredictor",
    "Prediction",
    "Vocabulary",
    "add_sed_config",
    "get_sed_cfg",
    "register",
]

#: Public name -> its module.
_MODULES = {
    "OpenVocabPredictor": "predictor",
    "Prediction": "predictor",
    "Vocabulary": "vocabulary",
    "add_sed_config": "config",
    "get_sed_cfg": "config",
}


def __getattr__(name: str) -> Any:
    if name in PACKAGES:
        register()
        return importlib.import_module(f".{name}", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
