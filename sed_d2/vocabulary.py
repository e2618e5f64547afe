"""Vocabularies: the class names that a model labels pixels with, and their synonyms."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, overload

#: Between the synonyms of a class in the released form of a name, such as "windowpane, window".
SYNONYM_SEPARATOR = ", "


@dataclass(frozen=True)
class Vocabulary(Sequence[tuple[str, ...]]):
    """Ordered list of classes, each with one or more synonyms.

    Attributes:
        classes: the synonyms of each class; ``classes[i][0]`` is the displayed name of class i.
        source: the origin of the names (a file, a data set) for error messages. Equality and hash
            ignore it, so equal vocabularies share cached embeddings.

    Raises:
        ValueError: there is no class, a name is empty, or two classes have the same synonyms.
            The comparison ignores case and order, because CLIP embeds such classes alike.
    """

    classes: tuple[tuple[str, ...], ...]
    source: str = field(default="the caller", compare=False)

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError(f"No class names in {self.source}; give at least one.")
        positions: dict[tuple[str, ...], int] = {}
        for position, synonyms in enumerate(self.classes):
            if not synonyms or not all(name.strip() for name in synonyms):
                raise ValueError(
                    f"Class {position} of {self.source} has an empty name; name it or remove it."
                )
            key = tuple(sorted(name.strip().casefold() for name in synonyms))
            first = positions.setdefault(key, position)
            if first != position:
                raise ValueError(
                    f"{SYNONYM_SEPARATOR.join(synonyms)!r} is class {first} and class {position} "
                    f"of {self.source}; remove one of the two."
                )

    def __len__(self) -> int:
        return len(self.classes)

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[str, ...], ...]: ...

    def __getitem__(self, index: int | slice) -> tuple[str, ...] | tuple[tuple[str, ...], ...]:
        return self.classes[index]

    @property
    def names(self) -> tuple[str, ...]:
        """One string per class in the released form: the synonyms joined with ``", "``."""
        return tuple(SYNONYM_SEPARATOR.join(synonyms) for synonyms in self.classes)

    @classmethod
    def from_names(cls, names: Iterable[str], source: str = "the caller") -> Vocabulary:
        """Make a vocabulary from names in the released form.

        ``"windowpane, window"`` is one class with two synonyms.

        Raises:
            ValueError: ``names`` is one string, or an item is not a string; see also the class.
        """
        if isinstance(names, str):
            raise ValueError(f"The class names of {source} are one string; give a list of names.")
        names = tuple(names)
        for name in names:
            if not isinstance(name, str):
                raise ValueError(f"The class name {name!r} of {source} is not text; quote it.")
        return cls(tuple(tuple(name.split(SYNONYM_SEPARATOR)) for name in names), source)

    @classmethod
    def parse(cls, text: str) -> Vocabulary:
        """Parse the path of an existing file, or names such as ``"cat, windowpane|window, sky"``.

        Commas separate classes and ``|`` separates the synonyms of a class.

        Raises:
            ValueError: see the class and :meth:`from_file`.
        """
        if _is_file(text.strip()):
            return cls.from_file(text.strip())
        if text.strip().endswith((".json", ".txt")):
            raise ValueError(
                f"The class file {text.strip()} does not exist; give an existing file or names."
            )
        classes = (synonyms.split("|") for synonyms in text.split(",")) if text.strip() else ()
        return cls(
            tuple(tuple(name.strip() for name in synonyms) for synonyms in classes),
            "the given class names",
        )

    @classmethod
    def from_file(cls, path: str | Path) -> Vocabulary:
        """Read a class file.

        A ``.json`` file has a list of names in the released form, or
        ``{"classes": [{"names": [...]}, ...]}``. Any other file is text with one class per line;
        commas or ``|`` separate synonyms, and empty lines are skipped.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file has another form; see also the class.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"The class file {path} does not exist; check the path.")
        try:
            text = path.read_text(encoding="utf-8-sig")
            content = json.loads(text) if path.suffix == ".json" else text.splitlines()
        except ValueError as error:
            raise ValueError(f"The class file {path} cannot be read: {error}.") from error
        if path.suffix != ".json":
            lines = (re.split(r"\s*[|,]\s*", line.strip()) for line in content if line.strip())
            return cls(tuple(map(tuple, lines)), str(path))
        if isinstance(content, list):
            return cls.from_names(content, str(path))
        return cls._from_json(content, str(path))

    @classmethod
    def builtin(cls, name: str) -> Vocabulary:
        """Return the vocabulary of a benchmark, such as ``"ade20k_150"``.

        Raises:
            ValueError: the name is unknown; the message lists the known ones.
        """
        return cls._from_json(_builtin_content(name), name)

    @staticmethod
    def builtin_raw_ids(name: str) -> tuple[int, ...]:
        """Return the value of each class of a built-in vocabulary in the original annotation.

        Raises:
            ValueError: the name is unknown, or the vocabulary has no such values.
        """
        try:
            return tuple(entry["raw_id"] for entry in _builtin_content(name)["classes"])
        except KeyError as error:
            raise ValueError(
                f"The vocabulary {name!r} has no raw ids; use its base data set."
            ) from error

    @classmethod
    def of(cls, value: Vocabulary | str | Iterable[str]) -> Vocabulary:
        """Convert any form of a class list to a vocabulary.

        Args:
            value: a vocabulary, a string for :meth:`parse`, or names for :meth:`from_names`.

        Raises:
            FileNotFoundError, ValueError: see :meth:`parse` and :meth:`from_names`.
        """
        if isinstance(value, Vocabulary):
            return value
        return cls.parse(value) if isinstance(value, str) else cls.from_names(value)

    @classmethod
    def of_dataset(cls, name: str) -> Vocabulary:
        """Return the names that a model is given on a registered data set.

        They are the ``vocabulary`` of its metadata, or its ``stuff_classes`` without one.

        Raises:
            ValueError: the metadata has neither; see also the class.
        """
        from detectron2.data import MetadataCatalog

        metadata = MetadataCatalog.get(name)
        names = metadata.get("vocabulary") or metadata.get("stuff_classes")
        if not names:
            raise ValueError(
                f"The data set {name!r} has no class names; register it with stuff_classes."
            )
        return cls.from_names(names, f"data set {name}")

    @classmethod
    def of_any(cls, dataset_names: Iterable[str], class_file: str = "") -> Vocabulary | None:
        """Return the classes of a file, else of the first data set with names, else None.

        Raises:
            FileNotFoundError, ValueError: see :meth:`from_file`.
        """
        from detectron2.data import MetadataCatalog

        if class_file:
            return cls.from_file(class_file)
        for name in dataset_names:
            if MetadataCatalog.get(name).get("stuff_classes"):
                return cls.of_dataset(name)
        return None

    @classmethod
    def _from_json(cls, content: Any, source: str) -> Vocabulary:
        try:
            lists = [entry["names"] for entry in content["classes"]]
            if not all(isinstance(name, str) for names in lists for name in names):
                raise TypeError("a name is not a string")
            if any(isinstance(names, str) for names in lists):
                raise TypeError("the names of a class are not a list")
        except (TypeError, KeyError) as error:
            raise ValueError(
                f'{source} is neither a list of names nor {{"classes": [{{"names": [...]}}, ...]}}.'
            ) from error
        return cls(tuple(map(tuple, lists)), source)


def _builtin_content(name: str) -> dict[str, Any]:
    folder = resources.files(__package__) / "data" / "vocabularies"
    file = folder / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir()))
        raise ValueError(f"There is no built-in vocabulary {name!r}; choose one of {known}.")
    return json.loads(file.read_text(encoding="utf-8"))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # a long list of names is not a valid path on every system
        return False
