"""Registration of users' data sets, which YAML files describe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ..vocabulary import Vocabulary
from .benchmarks import Split, register

#: Keys that a description must have.
REQUIRED = ("name", "images", "labels", "classes", "ignore_label")
#: Keys that a description may have.
OPTIONAL = ("image_suffix", "label_suffix")


def register_custom(paths: Iterable[str | Path]) -> None:
    """Register the data sets of ``DATASETS.CUSTOM``; a second call with a file does nothing.

    Args:
        paths: YAML files, see :func:`register_from_yaml`.

    Raises:
        FileNotFoundError, ValueError: see :func:`register_from_yaml`.
    """
    for path in paths:
        register_from_yaml(path)


def register_from_yaml(path: str | Path) -> str:
    """Register the data set that a YAML file describes; see ``datasets/README.md``.

    The file has the keys ``name``; ``images`` and ``labels``, two folders; ``classes``, a list of
    names or a class file; ``ignore_label``, the label value of pixels without a class. The keys
    ``image_suffix`` (default ``.jpg``) and ``label_suffix`` (default ``.png``) are optional.
    Relative paths are relative to the YAML file.

    Returns:
        The name under which Detectron2 knows the data set.

    Raises:
        FileNotFoundError: the file or its class file does not exist.
        ValueError: the description is malformed, or another data set has its name.
    """
    path = Path(path).resolve()
    description = _read(path)
    folder = path.parent
    classes = description["classes"]
    vocabulary = (
        Vocabulary.from_file(folder / classes)
        if isinstance(classes, str)
        else Vocabulary.from_names(classes, str(path))
    )
    split = Split(
        description["name"],
        str(folder / description["images"]),
        str(folder / description["labels"]),
        description["ignore_label"],
        vocabulary,
        f"correct the paths, or image_suffix and label_suffix, in {path}",
        **{key: description[key] for key in OPTIONAL if key in description},
    )
    register(split)
    return split.name


def _read(path: Path) -> dict[str, Any]:
    """Read a description and check its keys and the types of their values."""
    if not path.is_file():
        raise FileNotFoundError(f"The data set description {path} does not exist; check the path.")
    try:
        description = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"The data set description {path} is not valid YAML ({reason}); correct it."
        ) from error
    if not isinstance(description, dict):
        raise ValueError(f"{path} describes no data set; give it the keys {', '.join(REQUIRED)}.")
    for key in REQUIRED:
        if key not in description:
            raise ValueError(f"The data set description {path} lacks the key {key!r}; add it.")
    for key, value in description.items():
        if key not in REQUIRED + OPTIONAL:
            known = ", ".join(REQUIRED + OPTIONAL)
            raise ValueError(f"{path} has the unknown key {key!r}; the keys are {known}.")
        types = {"ignore_label": (int,), "classes": (list, str)}.get(key, (str,))
        if not isinstance(value, types):
            expected = " or ".join(kind.__name__ for kind in types)
            raise ValueError(
                f"The value {value!r} of {key!r} in {path} has the wrong type; give {expected}."
            )
    return description
