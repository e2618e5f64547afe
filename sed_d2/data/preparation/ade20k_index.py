"""Reading of ADE20K's pickled index without running code from it."""

from __future__ import annotations

import pickle
from pathlib import Path

#: The callables that the index may name: those in numpy's own pickles, none of which runs code from
#: the file.
_SAFE_CALLABLES = {
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
        if (module, name) not in _SAFE_CALLABLES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which the index never does")
        return super().find_class(module, name)


def read_ade20k_index(path: Path) -> list[tuple[str, str]]:
    """Read the (folder, file name) of every image in ``index_ade20k.pkl`` without running code.

    Raises:
        ValueError: the file is not that index, or it has more than plain data and numpy arrays.
    """
    try:
        with open(path, "rb") as file:
            index = _IndexUnpickler(file).load()
        folders, files = list(index["folder"]), list(index["filename"])
        if len(folders) != len(files) or not all(isinstance(x, str) for x in folders + files):
            raise TypeError("its fields folder and filename are not lists of as many names")
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a corrupt pickle raises almost any exception
        raise ValueError(
            f"{path} is not ADE20K's index ({error}); download it again from the data set's site."
        ) from error
    return list(zip(folders, files, strict=True))
