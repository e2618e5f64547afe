"""Verification of a prepared data set: problems, statistics and a digest of its labels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from tabulate import tabulate

from .benchmarks import Split
from .files import in_parallel, read_image, read_labels, stems_in


@dataclass
class Report:
    """Result of verifying a split.

    Attributes:
        name: the registered name.
        expected: the number of label files of a complete preparation; None if it is not known.
        labels: the number of label files.
        images: the number of label files that have an image.
        further_images: the number of images without a label file, which evaluation leaves out.
        histogram: the number of pixels of each class.
        ignored: the number of pixels without a class.
        digest: the SHA-256 of the names, sizes and pixel values of all labels. It does not depend
            on the encoding of the files, so equal digests mean equal labels.
        problems: one sentence for each problem, with what to do about it.
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
        """Classes without a pixel."""
        return [name for name, pixels in self.histogram.items() if not pixels]

    @property
    def ignored_percent(self) -> float:
        """Percentage of the pixels that have no class."""
        return 100 * self.ignored / max(self.ignored + sum(self.histogram.values()), 1)

    def summary(self) -> str:
        """Return one line with images, labels, occurring classes, ignored pixels and digest."""
        classes = len(self.histogram)
        return (
            f"{self.name}: {self.images} images, {self.labels} labels, "
            f"{classes - len(self.absent)} of {classes} classes seen, "
            f"{self.ignored_percent:.1f} % of the pixels ignored, digest {self.digest[:12]}"
        )


@dataclass(frozen=True)
class _LabelFile:
    """Content and problems of one label file and its image.

    Attributes:
        stem: the name of the file without its suffix.
        histogram: label value -> number of pixels.
        digest: the SHA-256 of the stem, the size and the pixel values.
        read_error: why the label file or the image cannot be read.
        sizes: the sizes of image and labels, if they differ.
    """

    stem: str
    histogram: dict[int, int] = field(default_factory=dict)
    digest: bytes = b""
    read_error: str | None = None
    sizes: str | None = None


def verify(split: Split, workers: int, read_images: bool = True) -> Report:
    """Read every label file of a split and its image, and report on them.

    Args:
        split: the split; a missing folder is one of the reported problems.
        workers: the number of files that are read at a time.
        read_images: also decode the images, to find corrupt files and differing sizes.
    """
    report = Report(split.name, split.count)
    for folder in (split.label_folder, split.image_folder):
        if not folder.is_dir():
            report.problems.append(f"The data folder {folder} does not exist; {split.how_to_fix}.")
    if not split.label_folder.is_dir():
        return report
    stems = sorted(stems_in(split.label_folder, split.label_suffix))
    images = (
        stems_in(split.image_folder, split.image_suffix) if split.image_folder.is_dir() else set()
    )
    without_image = [stem for stem in stems if stem not in images]
    report.labels = len(stems)
    report.images = len(stems) - len(without_image)
    report.further_images = len(images) - report.images

    def read(stem: str) -> _LabelFile:
        return _read_label_file(split, stem, read_images and stem in images)

    _summarize(report, split, in_parallel(read, stems, workers, f"reading {split.name}"))
    if not stems:
        report.problems.append(
            f"{split.label_folder} has no {split.label_suffix} file; {split.how_to_fix}."
        )
    elif split.count is not None and len(stems) != split.count:
        how_to_fix = "remove the others" if len(stems) > split.count else split.how_to_fix
        report.problems.append(
            f"{split.label_folder} has {len(stems)} labels instead of {split.count}; {how_to_fix}."
        )
    if without_image and split.image_folder.is_dir():
        report.problems.append(
            f"In {split.label_folder} {_subject(without_image)} no image in {split.image_folder}; "
            f"{split.how_to_fix}."
        )
    return report


def format_table(reports: Iterable[Report]) -> str:
    """Return the reports, without their problems, as a text table."""
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


def _read_label_file(split: Split, stem: str, with_image: bool) -> _LabelFile:
    path = split.label_folder / (stem + split.label_suffix)
    sizes = None
    try:
        labels = read_labels(path)
        if with_image:
            image = read_image(split.image_folder / (stem + split.image_suffix))
            if image.shape[:2] != labels.shape:
                sizes = "{1}x{0} and {3}x{2}".format(*image.shape[:2], *labels.shape)
    except (OSError, ValueError) as error:
        return _LabelFile(stem, read_error=str(error))
    counts = np.bincount(labels.ravel())
    values = np.flatnonzero(counts)
    content = hashlib.sha256(f"{stem} {labels.shape} ".encode())
    content.update(labels.astype("<u2").tobytes())
    return _LabelFile(
        stem,
        dict(zip(values.tolist(), counts[values].tolist(), strict=True)),
        content.digest(),
        sizes=sizes,
    )


def _summarize(report: Report, split: Split, files: list[_LabelFile]) -> None:
    """Add the histogram, the ignored pixels, the digest and the files' problems to a report."""
    histogram: Counter[int] = Counter()
    digest = hashlib.sha256()
    for file in files:
        histogram.update(file.histogram)
        digest.update(file.digest)
    report.digest = digest.hexdigest()
    names = split.stuff_classes
    report.histogram = {name: histogram.pop(value, 0) for value, name in enumerate(names)}
    report.ignored = histogram.pop(split.ignore_label, 0)

    how_to_fix = f"remove the files and then {split.how_to_fix}"
    read_errors = [file.read_error for file in files if file.read_error]
    if read_errors:
        report.problems.append(f"{read_errors[0]} ({len(read_errors)} such files of {split.name})")
    differing = [f"{file.stem} ({file.sizes})" for file in files if file.sizes]
    if differing:
        report.problems.append(
            f"In {split.name} {_subject(differing)} an image and labels of different sizes; "
            f"{how_to_fix}."
        )
    if histogram:  # The values left are neither classes nor ignored.
        stems = [file.stem for file in files if histogram.keys() & file.histogram.keys()]
        report.problems.append(
            f"In {split.label_folder} {_subject(stems)} label values that are neither 0 to "
            f"{len(names) - 1} nor the ignored {split.ignore_label}: "
            f"{', '.join(str(value) for value in sorted(histogram)[:5])}; {how_to_fix}."
        )


def _subject(names: list[str]) -> str:
    """Return the subject and verb of a sentence: "a has" or "a and 6 others have"."""
    if len(names) == 1:
        return f"{names[0]} has"
    return f"{names[0]} and {len(names) - 1} other{'s' * (len(names) > 2)} have"
