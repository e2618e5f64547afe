"""One's own data sets, described by a YAML file instead of Python."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from ..vocabulary import Vocabulary
from .benchmarks import Split, register

REQUIRED = ("name", "images", "labels", "classes", "ignore_label")
OPTIONAL = ("image_suffix", "label_suffix")


def register_from_yaml(path: str | Path) -> str:
    """Register the data set that a YAML file describes; see ``datasets/README.md``.

    Keys: ``name``; ``images`` and ``labels``, folders; ``classes``, a list of names or a class
    file; ``ignore_label``, the label value of pixels without a class; and, if they are not
    ``.jpg`` and ``.png``, ``image_suffix`` and ``label_suffix``. Relative paths are relative to
    the YAML file.

    Returns:
        the name under which Detectron2 knows the data set.

    Raises:
        FileNotFoundError: there is no such file, or no such class file.
        ValueError: the description is not in this form, or its name is taken.
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
        f"mend the paths, or image_suffix and label_suffix, in {path}",
        **{key: description[key] for key in OPTIONAL if key in description},
    )
    register(split)
    return split.name


def _read(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"The data set description {path} does not exist; check the path.")
    try:
        description = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The data set description {path} is no valid YAML: {reason}.") from error
    if not isinstance(description, dict):
        raise ValueError(f"{path} describes no data set; give it the keys {', '.join(REQUIRED)}.")
    for key in REQUIRED:
        if key not in description:
            raise ValueError(f"The data set description {path} lacks the key {key!r}; add it.")
    for key, value in description.items():
        if key not in REQUIRED + OPTIONAL:
            known = ", ".join(REQUIRED + OPTIONAL)
            raise ValueError(f"{path} has the unknown key {key!r}; the keys are {known}.")
        kind = {"ignore_label": int, "classes": (list, str)}.get(key, str)
        if not isinstance(value, kind):
            raise ValueError(f"The value {value!r} of {key!r} in {path} is of the wrong kind.")
    return description


def register_custom(paths: Iterable[str | Path]) -> None:
    """Register the data sets of ``DATASETS.CUSTOM``; those registered before stay.

    Args:
        paths: YAML files, see :func:`register_from_yaml`.

    Raises:
        FileNotFoundError, ValueError: see :func:`register_from_yaml`.
    """
    for path in paths:
        register_from_yaml(path)
