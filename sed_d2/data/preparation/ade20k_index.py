"""Reading ADE20K's pickled index without running what a pickle may hide."""

from __future__ import annotations

import pickle
from pathlib import Path

# What numpy's own pickles consist of; nothing here runs code that the file brings along.
_HARMLESS = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which an index never does")
        return super().find_class(module, name)


def read_ade20k_index(path: Path) -> list[tuple[str, str]]:
    """The (folder, file name) of every image in ``index_ade20k.pkl``.

    Raises:
        ValueError: the file is no such index, or asks for anything else than plain data and numpy
            arrays; nothing of it is run.
    """
    try:
        with open(path, "rb") as file:
            index = _IndexUnpickler(file).load()
        folders, files = list(index["folder"]), list(index["filename"])
        if len(folders) != len(files) or not all(isinstance(x, str) for x in folders + files):
            raise TypeError("its fields folder and filename are no lists of as many names")
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a broken pickle raises almost anything
        raise ValueError(
            f"{path} is not ADE20K's index ({error}); download it again from the data set's site."
        ) from error
    return list(zip(folders, files, strict=True))
