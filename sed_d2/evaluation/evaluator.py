"""Evaluator of semantic segmentation for large vocabularies and 16-bit labels."""

from __future__ import annotations

import json
import logging
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation import SemSegEvaluator as Detectron2SemSegEvaluator
from detectron2.utils import comm

from ..data.files import check_labels, read_labels, write_text_whole
from .metrics import ConfusionMatrix, segmentation_metrics

logger = logging.getLogger(__name__)


class SemSegEvaluator(Detectron2SemSegEvaluator):
    """Evaluator of a registered data set: mIoU, fwIoU, mACC and pACC under Detectron2's keys.

    It differs from Detectron2's: it accepts labels instead of a (T, H, W) array of scores, checks
    every label value, stores no predictions, and averages over the classes in the labels on every
    version of Detectron2. If the data set's ``vocabulary`` has more names than its
    ``stuff_classes``, each further name counts as the last class (VOC with background).

    Args:
        dataset_name: a registered name whose metadata has ``stuff_classes`` and
            ``ignore_label``.
        output_dir: the folder that ``<dataset_name>.json`` is written into; None writes no
            file.
        distributed: sum the counts over all processes.

    Raises:
        FileNotFoundError: files of the data set are missing.
        ValueError: ``ignore_label`` is the value of a class.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, distributed: bool = True
    ) -> None:
        super().__init__(dataset_name, distributed=distributed, output_dir=output_dir)
        vocabulary = MetadataCatalog.get(dataset_name).get("vocabulary") or ()
        self._has_background = len(vocabulary) > self._num_classes
        if self._ignore_label < self._num_classes:
            raise ValueError(
                f"The ignored value {self._ignore_label} of the data set {dataset_name!r} is the "
                f"value of a class (0 to {self._num_classes - 1}); register {self._num_classes} or "
                "a larger value."
            )
        self.reset()

    def reset(self) -> None:
        """Reset the counts."""
        self._confusion = ConfusionMatrix(self._num_classes)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the pixels of a batch.

        Args:
            inputs: records with ``file_name`` and ``labels``, (H, W); without ``labels`` the label
                file is read.
            outputs: dicts with ``labels``, (H, W) class indices, or ``sem_seg``, (T, H, W) scores.

        Raises:
            ValueError: a label or a prediction is out of range, or the sizes differ; the message
                names the image or the label file.
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

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return the metrics in percent over all processes; None outside the main process."""
        confusion = self._confusion.numpy()
        if self._distributed:
            gathered = comm.gather(confusion)
            if not comm.is_main_process():
                return None
            confusion = sum(gathered)
        metrics = segmentation_metrics(confusion, self._class_names)
        if self._output_dir:
            self._write(metrics, Path(self._output_dir))
        logger.info(
            "%s: %s",
            self._dataset_name,
            ", ".join(f"{key} {metrics[key]:.2f}" for key in ("mIoU", "fwIoU", "mACC", "pACC")),
        )
        return OrderedDict({"sem_seg": metrics})

    def _write(self, metrics: dict[str, float], folder: Path) -> None:
        """Write the metrics as JSON; the value of a class that does not occur is null."""
        content = {key: None if math.isnan(value) else value for key, value in metrics.items()}
        folder.mkdir(parents=True, exist_ok=True)
        write_text_whole(folder / f"{self._dataset_name}.json", json.dumps(content, indent=2))

    def _read_labels(self, record: dict[str, Any]) -> torch.Tensor:
        path = self.input_file_to_gt_file[record["file_name"]]
        labels = read_labels(path)
        check_labels(labels, self._num_classes, self._ignore_label, path)
        return torch.from_numpy(labels.astype("int32"))


def build_evaluator(dataset_name: str, output_dir: str | None = None) -> DatasetEvaluator:
    """Build the evaluator that the ``evaluator_type`` of a data set names.

    Raises:
        ValueError: the type is not "sem_seg".
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind != "sem_seg":
        raise ValueError(
            f"The data set {dataset_name!r} has the evaluator_type {kind!r}; register it with "
            "'sem_seg'."
        )
    return SemSegEvaluator(dataset_name, output_dir)
