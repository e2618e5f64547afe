"""The table that an evaluation over several data sets ends with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from detectron2.data import MetadataCatalog
from tabulate import tabulate

from ..data.files import write_whole

# The paper's mIoU by CLIP model: with the full decoder, and with early rejection (k = 8).
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
PAPER_TOPK = 8


@dataclass(frozen=True)
class Row:
    """The results on one data set, in percent; None where a figure does not exist."""

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
    """The paper's mIoU, or None where it has none.

    Args:
        dataset: the registered name.
        clip_name: open_clip's name of the CLIP model.
        topk: the classes that each pixel keeps in early rejection; None: the full decoder.
    """
    if topk not in (None, PAPER_TOPK):
        return None
    figures = PAPER.get(clip_name, {}).get(dataset)
    return None if figures is None else figures[topk is not None]


def make_row(
    dataset: str,
    metrics: Mapping[str, float],
    images: int,
    ms_per_image: float | None = None,
    paper: float | None = None,
) -> Row:
    """The row of a data set.

    Args:
        dataset: the registered name, with ``stuff_classes`` in its metadata.
        metrics: what :func:`segmentation_metrics` returns.
        images: the number of images evaluated.
        ms_per_image: the model's time for an image, in milliseconds.
        paper: the mIoU to print beside ours.
    """
    return Row(
        dataset,
        images,
        len(MetadataCatalog.get(dataset).stuff_classes),
        *(metrics[key] for key in ("mIoU", "fwIoU", "mACC", "pACC")),
        ms_per_image,
        paper,
    )


def render(rows: Sequence[Row], style: str = "simple") -> str:
    """The rows as a table; ``style`` is one of tabulate's, such as "simple" or "github"."""
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
    """Write ``results.json`` and ``results.md`` into a folder, which is made if it is missing."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps([asdict(row) for row in rows], indent=2)
    for name, text in (("results.json", content), ("results.md", render(rows, "github"))):
        write_whole(folder / name, lambda file, text=text: file.write(f"{text}\n".encode()))
