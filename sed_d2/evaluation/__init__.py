"""Evaluation of semantic segmentation: confusion matrix, metrics, evaluator, table of results."""

from .evaluator import SemSegEvaluator, build_evaluator
from .metrics import ConfusionMatrix, segmentation_metrics
from .table import Row, make_row, paper_miou, render, write_results

__all__ = [
    "ConfusionMatrix",
    "Row",
    "SemSegEvaluator",
    "build_evaluator",
    "make_row",
    "paper_miou",
    "render",
    "segmentation_metrics",
    "write_results",
]
