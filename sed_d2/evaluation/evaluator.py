"""Detectron2's semantic segmentation evaluator for large vocabularies and 16-bit labels."""

from __future__ import annotations

import json
import logging
import math
from collections import OrderedDict
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation import SemSegEvaluator as Detectron2SemSegEvaluator
from detectron2.utils import comm

from ..data.files import check_labels, read_labels, write_whole
from .metrics import ConfusionMatrix, segmentation_metrics

logger = logging.getLogger(__name__)


class SemSegEvaluator(Detectron2SemSegEvaluator):
    """mIoU, fwIoU, mACC and pACC of a registered data set, with Detectron2's result keys.

    Unlike Detectron2's it takes labels without a (T, H, W) array, checks every label value, keeps
    no predictions, and averages over the classes that occur in the labels on every version of
    Detectron2. Where the data set's ``vocabulary`` has more names than it has ``stuff_classes``,
    each further name counts as the last class (VOC with background).
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, distributed: bool = True):
        """
        Args:
            dataset_name: its metadata has ``stuff_classes`` and ``ignore_label``.
            output_dir: where ``<dataset_name>.json`` is written; None: nowhere.
            distributed: add up the counts of all processes.

        Raises:
            FileNotFoundError: the data set's files are missing.
            ValueError: ``ignore_label`` is one of the classes' values.
        """
        super().__init__(dataset_name, distributed=distributed, output_dir=output_dir)
        vocabulary = MetadataCatalog.get(dataset_name).get("vocabulary") or ()
        self._has_background = len(vocabulary) > self._num_classes
        if self._ignore_label < self._num_classes:
            raise ValueError(
                f"The ignored value {self._ignore_label} of the data set {dataset_name!r} is one "
                f"of its {self._num_classes} classes; register one of {self._num_classes} or more."
            )
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._confusion = ConfusionMatrix(self._num_classes)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of a batch.

        Args:
            inputs: each with ``file_name`` and, where the data loader has read it, ``labels``,
                (H, W); else the label file is read.
            outputs: each with ``labels``, (H, W) class indices, or ``sem_seg``, (T, H, W) scores.

        Raises:
            ValueError: a label or predicted value is out of range, or the sizes differ; the
                message names the image or label file.
        """
        for record, output in zip(inputs, outputs, strict=True):
            predictions = output["labels"] if "labels" in output else output["sem_seg"].argmax(0)
            if self._has_background:
                predictions = predictions.clamp(max=self._num_classes - 1)
            labels = record["labels"] if "labels" in record else self._read_labels(record)
            try:
                self._confusion.add(predictions, labels)
            except ValueError as error:
                raise ValueError(f"{record['file_name']}: {error}") from error

    def evaluate(self) -> OrderedDict | None:
        """The metrics over all processes' images, in percent; None but in the main process."""
        confusion = self._confusion.numpy()
        if self._distributed:
            gathered = comm.gather(confusion)
            if not comm.is_main_process():
                return None
            confusion = sum(gathered)
        metrics = segmentation_metrics(confusion, self._class_names)
        if self._output_dir:
            self._write(metrics)
        logger.info(
            "%s: %s",
            self._dataset_name,
            ", ".join(f"{key} {metrics[key]:.2f}" for key in ("mIoU", "fwIoU", "mACC", "pACC")),
        )
        return OrderedDict({"sem_seg": metrics})

    def _write(self, metrics: dict[str, float]) -> None:
        """Write the metrics as JSON, a class that does not occur as null."""
        content = {key: None if math.isnan(value) else value for key, value in metrics.items()}
        folder = Path(self._output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(
            folder / f"{self._dataset_name}.json",
            lambda file: file.write(json.dumps(content, indent=2).encode()),
        )

    def _read_labels(self, record: dict) -> torch.Tensor:
        path = self.input_file_to_gt_file[record["file_name"]]
        labels = read_labels(path)
        check_labels(labels, self._num_classes, self._ignore_label, path)
        return torch.from_numpy(labels.astype("int32"))


def build_evaluator(dataset_name: str, output_dir: str | None = None) -> DatasetEvaluator:
    """The evaluator that a data set's metadata asks for with ``evaluator_type``.

    Raises:
        ValueError: it asks for another one than "sem_seg".
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind != "sem_seg":
        raise ValueError(
            f"The data set {dataset_name!r} asks for the evaluator {kind!r}; register it with "
            "evaluator_type='sem_seg'."
        )
    return SemSegEvaluator(dataset_name, output_dir)
