"""Table of the results of an evaluation over several data sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from detectron2.data import MetadataCatalog
from tabulate import tabulate

from ..data.files import write_text_whole

#: CLIP model -> data set -> the paper's mIoU with the full decoder and with early rejection.
PAPER = {
    "convnext_base_w_320": {
        "ade20k_full_sem_seg_freq_val_all": (11.2, 11.4),
        "context_459_test_sem_seg": (18.6, 18.6),
        "ade20k_150_test_sem_seg": (31.8, 31.6),
        "context_59_test_sem_seg": (57.7, 57.3),
        "voc_2012_test_sem_seg": (94.4, 94.4),
    },
    "convnext_large_d_320": {
        "ade20k_full_sem_seg_freq_val_all": (13.7, 13.9),
        "context_459_test_sem_seg": (22.1, 22.6),
        "ade20k_150_test_sem_seg": (35.3, 35.2),
        "context_59_test_sem_seg": (60.9, 60.6),
        "voc_2012_test_sem_seg": (96.1, 96.1),
    },
}
#: The k of early rejection in the paper's table.
PAPER_TOPK = 8


@dataclass(frozen=True)
class Row:
    """Results on one data set, in percent; None for an unknown value."""

    dataset: str
    images: int
    classes: int
    mIoU: float
    fwIoU: float
    mACC: float
    pACC: float
    ms_per_image: float | None = None
    paper_mIoU: float | None = None


def paper_miou(dataset: str, clip_name: str, topk: int | None) -> float | None:
    """Return the paper's mIoU, or None if the paper has none.

    Args:
        dataset: the registered name.
        clip_name: open_clip's name of the CLIP model.
        topk: the k of early rejection; None is the full decoder.
    """
    if topk not in (None, PAPER_TOPK):
        return None
    results = PAPER.get(clip_name, {}).get(dataset)
    return None if results is None else results[topk is not None]


def make_row(
    dataset: str,
    metrics: Mapping[str, float],
    images: int,
    ms_per_image: float | None = None,
    paper: float | None = None,
) -> Row:
    """Make the row of a data set.

    Args:
        dataset: a registered name whose metadata has ``stuff_classes``.
        metrics: the result of :func:`segmentation_metrics`.
        images: the number of evaluated images.
        ms_per_image: the model's time for an image, in milliseconds.
        paper: the paper's mIoU.
    """
    return Row(
        dataset,
        images,
        len(MetadataCatalog.get(dataset).stuff_classes),
        mIoU=metrics["mIoU"],
        fwIoU=metrics["fwIoU"],
        mACC=metrics["mACC"],
        pACC=metrics["pACC"],
        ms_per_image=ms_per_image,
        paper_mIoU=paper,
    )


def render(rows: Sequence[Row], style: str = "simple") -> str:
    """Format the rows as a table in a style of tabulate, such as "simple" or "github"."""
    headers = (
        "data set", "images", "classes", "mIoU", "fwIoU", "mACC", "pACC", "ms/image", "paper mIoU",
    )  # fmt: skip
    cells = [
        ["" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell)
         for cell in asdict(row).values()]
        for row in rows
    ]  # fmt: skip
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(cells, headers, style, disable_numparse=True, colalign=align if rows else None)


def write_results(rows: Sequence[Row], output_dir: str | Path) -> None:
    """Write ``results.json`` and ``results.md`` into a folder, and create the folder if needed."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("results.json", json.dumps([asdict(row) for row in rows], indent=2)),
        ("results.md", render(rows, "github")),
    ):
        write_text_whole(folder / name, f"{text}\n")
