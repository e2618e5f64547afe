"""Checking a prepared data set: what is missing or wrong, and a digest to compare it by."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from tabulate import tabulate

from .benchmarks import Split, stems_in
from .files import in_parallel, read_image, read_labels


@dataclass
class Report:
    """What was found of a split.

    Attributes:
        name: the registered name.
        expected: the number of label files of a complete preparation; None: not known.
        labels: the number of label files.
        images: how many of these have an image.
        further_images: the number of images without a label file; these are not evaluated.
        histogram: pixels of each class.
        ignored: pixels without a class.
        digest: of the names, sizes and pixel values of all labels, whatever the files' encoding;
            two users with the same digest have the same labels.
        problems: what is wrong, a sentence with the way to mend it for each.
    """

    name: str
    expected: int | None
    labels: int = 0
    images: int = 0
    further_images: int = 0
    histogram: dict[str, int] = field(default_factory=dict)
    ignored: int = 0
    digest: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def absent(self) -> list[str]:
        """The classes that never occur."""
        return [name for name, pixels in self.histogram.items() if not pixels]

    @property
    def ignored_percent(self) -> float:
        """The share of pixels without a class."""
        return 100 * self.ignored / max(self.ignored + sum(self.histogram.values()), 1)

    def summary(self) -> str:
        """One line: images, labels, classes seen, pixels ignored, digest."""
        classes = len(self.histogram)
        return (
            f"{self.name}: {self.images} images, {self.labels} labels, "
            f"{classes - len(self.absent)} of {classes} classes seen, "
            f"{self.ignored_percent:.1f} % of the pixels ignored, digest {self.digest[:12]}"
        )


@dataclass(frozen=True)
class _Finding:
    """What was found of one label file."""

    stem: str
    values: dict[int, int] = field(default_factory=dict)  # label value: pixels
    digest: bytes = b""
    unreadable: str | None = None
    sizes: str | None = None  # the two sizes, where they differ


def verify(split: Split, workers: int, read_images: bool = True) -> Report:
    """Read every label file of a split, and its image, and report on them.

    Args:
        split: what to look at; missing folders are problems like others.
        workers: how many files are read at once.
        read_images: also decode the images, to find broken ones and other sizes.
    """
    report = Report(split.name, split.count)
    for folder in (split.label_folder, split.image_folder):
        if not folder.is_dir():
            report.problems.append(f"The data folder {folder} does not exist; {split.mend}.")
    if not split.label_folder.is_dir():
        return report
    stems = sorted(stems_in(split.label_folder, split.label_suffix))
    images = (
        stems_in(split.image_folder, split.image_suffix) if split.image_folder.is_dir() else set()
    )
    unpaired = [stem for stem in stems if stem not in images]
    report.labels = len(stems)
    report.images = len(stems) - len(unpaired)
    report.further_images = len(images) - report.images

    def look(stem: str) -> _Finding:
        return _look(split, stem, read_images and stem in images)

    findings = in_parallel(look, stems, workers, f"reading {split.name}")
    _count(report, split, findings)
    if not stems:
        report.problems.append(
            f"{split.label_folder} has no {split.label_suffix} file; {split.mend}."
        )
    elif split.count is not None and len(stems) != split.count:
        report.problems.append(
            f"{split.label_folder} has {len(stems)} labels instead of {split.count}; "
            f"{'remove what is too much' if len(stems) > split.count else split.mend}."
        )
    if unpaired and split.image_folder.is_dir():
        report.problems.append(
            f"In {split.label_folder} {_examples(unpaired)} no image in {split.image_folder}; "
            f"{split.mend}."
        )
    return report


def table(reports: Iterable[Report]) -> str:
    """The reports as a text table; the problems are not in it."""
    headers = ("data set", "labels", "expected", "images", "classes", "ignored", "digest", "")
    rows = [
        (
            report.name,
            report.labels,
            "" if report.expected is None else report.expected,
            report.images,
            f"{len(report.histogram) - len(report.absent)} of {len(report.histogram)}",
            f"{report.ignored_percent:.1f} %",
            report.digest[:12],
            f"{len(report.problems)} wrong" if report.problems else "ok",
        )
        for report in reports
    ]
    return tabulate(rows, headers, disable_numparse=True)


def _look(split: Split, stem: str, with_image: bool) -> _Finding:
    path = split.label_folder / (stem + split.label_suffix)
    try:
        labels = read_labels(path)
        if with_image:
            image = read_image(split.image_folder / (stem + split.image_suffix))
    except (OSError, ValueError) as error:
        return _Finding(stem, unreadable=str(error))
    sizes = None
    if with_image and image.shape[:2] != labels.shape:
        sizes = "{1}x{0} and {3}x{2}".format(*image.shape[:2], *labels.shape)
    counts = np.bincount(labels.ravel())
    values = np.flatnonzero(counts)
    content = hashlib.sha256(f"{stem} {labels.shape} ".encode())
    content.update(labels.astype("<u2").tobytes())
    return _Finding(
        stem,
        dict(zip(values.tolist(), counts[values].tolist(), strict=True)),
        content.digest(),
        sizes=sizes,
    )


def _count(report: Report, split: Split, findings: list[_Finding]) -> None:
    """Put the findings together: histogram, ignored pixels, digest and the problems among them."""
    histogram: Counter[int] = Counter()
    digest = hashlib.sha256()
    for finding in findings:
        histogram.update(finding.values)
        digest.update(finding.digest)
    report.digest = digest.hexdigest()
    names = split.stuff_classes
    report.histogram = {name: histogram.pop(value, 0) for value, name in enumerate(names)}
    report.ignored = histogram.pop(split.ignore_label, 0)

    remake = f"remove the files and then {split.mend}"
    unreadable = [finding.unreadable for finding in findings if finding.unreadable]
    if unreadable:
        report.problems.append(f"{unreadable[0]} ({len(unreadable)} such files of {split.name})")
    differing = [f"{finding.stem} ({finding.sizes})" for finding in findings if finding.sizes]
    if differing:
        report.problems.append(
            f"In {split.name} {_examples(differing)} another size as image than as labels; "
            f"{remake}."
        )
    if histogram:  # what is left is neither a class nor ignored
        stems = [finding.stem for finding in findings if histogram.keys() & finding.values.keys()]
        report.problems.append(
            f"In {split.label_folder} {_examples(stems)} label values that are neither 0 to "
            f"{len(names) - 1} nor the ignored {split.ignore_label}: "
            f"{', '.join(str(value) for value in sorted(histogram)[:5])}; {remake}."
        )


def _examples(names: list[str]) -> str:
    """ "a has", or "a and 6 others have"."""
    if len(names) == 1:
        return f"{names[0]} has"
    return f"{names[0]} and {len(names) - 1} other{'s' * (len(names) > 2)} have"
