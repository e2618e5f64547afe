"""Evaluation of several data sets, each with its own classes, ending in one table."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch import Tensor, nn

from ..evaluation.table import make_row, paper_miou, render, write_results
from ..vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class LabelInference(nn.Module):
    """Asks a model, possibly a distributed one, for labels of given classes, and times it.

    Args:
        model: a segmenter, or one wrapped in DistributedDataParallel.
        vocabulary: the classes; they are embedded at once.

    Attributes:
        images: number of images segmented in this process.
        seconds: the time that they took.
    """

    def __init__(self, model: nn.Module, vocabulary: Vocabulary):
        super().__init__()
        self.model = model
        self.training = model.training
        unwrapped: Any = getattr(model, "module", model)
        self.text: Tensor = unwrapped.text_embeddings(vocabulary)
        self.images, self.seconds = 0, 0.0

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Return a list of {"labels": (height, width)}."""
        start = time.perf_counter()
        output = self.model(batched_inputs, text=self.text, labels_only=True)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.images += len(batched_inputs)
        self.seconds += time.perf_counter() - start
        return output


def evaluate_all(
    cfg: CfgNode, model: nn.Module, evaluate: Callable[[CfgNode, nn.Module, int], dict[str, Any]]
) -> dict[str, Any]:
    """Evaluate each of ``cfg.DATASETS.TEST`` with its own classes and write the table of results.

    The table is logged and written to ``OUTPUT_DIR/inference`` as ``results.json`` and
    ``results.md``.

    Args:
        cfg: the whole config.
        model: the model, possibly a distributed one.
        evaluate: evaluates a model on the only data set of a config, the i-th of ``cfg``'s.

    Returns:
        As Detectron2's ``DefaultTrainer.test``: results by data set, or those of the only one.
    """
    results, rows = OrderedDict(), []
    for i, name in enumerate(cfg.DATASETS.TEST):
        single = cfg.clone()
        single.defrost()
        single.DATASETS.TEST = (name,)
        vocabulary = dataset_vocabulary(name, cfg.MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON)
        inference = LabelInference(model, vocabulary)
        results[name] = evaluate(single, inference, i)
        totals = comm.all_gather((inference.images, inference.seconds))
        images, seconds = map(sum, zip(*totals, strict=True))
        if comm.is_main_process() and "sem_seg" in results[name]:
            top_k = cfg.TEST.TOPK if cfg.TEST.FAST_INFERENCE else None
            paper = paper_miou(name, cfg.MODEL.CLIP.NAME, top_k)
            milliseconds = 1000 * seconds / images
            rows.append(make_row(name, results[name]["sem_seg"], images, milliseconds, paper))
    if rows:
        write_results(rows, f"{cfg.OUTPUT_DIR}/inference")
        logger.info("Results, also in %s/inference:\n%s", cfg.OUTPUT_DIR, render(rows))
    return next(iter(results.values())) if len(results) == 1 else results


def dataset_vocabulary(dataset_name: str, class_file: str = "") -> Vocabulary:
    """Return the classes of a data set: those of ``class_file``, else the data set's.

    Raises:
        ValueError: there is no such data set, or the file has another number of classes.
    """
    if dataset_name not in DatasetCatalog.list():
        raise ValueError(
            f"there is no data set '{dataset_name}': DATASETS.TRAIN and TEST name registered ones, "
            f"which are {', '.join(name for name in DatasetCatalog.list() if 'sem_seg' in name)}"
        )
    registered = Vocabulary.of_dataset(dataset_name)
    if not class_file:
        return registered
    vocabulary = Vocabulary.from_file(class_file)
    if len(vocabulary) != len(registered):
        raise ValueError(
            f"class file '{class_file}' has {len(vocabulary)} classes but data set "
            f"'{dataset_name}' has {len(registered)}: list one name per class, in the order of the "
            "labels"
        )
    return vocabulary
