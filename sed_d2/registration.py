"""Registration with Detectron2, as a plugin does it."""

import importlib
import warnings

#: Importing these packages registers models, data sets and the embedded CLIP.
PACKAGES = ("modeling", "data", "shapes")


def register() -> None:
    """Register the models and data sets with Detectron2; once, however often it is called.

    The packages are named, not imported by this file, so that any file may call it.

    Raises:
        ImportError: Detectron2 is not installed; the message says how to install it.
    """
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
        for package in PACKAGES:
            importlib.import_module(f".{package}", __package__)
