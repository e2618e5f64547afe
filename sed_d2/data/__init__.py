"""Data sets: importing this package registers the benchmarks with Detectron2."""

from .benchmarks import SPLITS, Split, data_root
from .dataset_mapper import SemSegTestMapper, SemSegTrainMapper

__all__ = ["SPLITS", "SemSegTestMapper", "SemSegTrainMapper", "Split", "data_root"]
