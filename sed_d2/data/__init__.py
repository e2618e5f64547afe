"""Data sets. Importing this package registers the benchmarks with Detectron2."""

from ..paths import data_root
from .benchmarks import SPLITS, Split
from .dataset_mapper import SemSegTestMapper, SemSegTrainMapper

__all__ = ["SPLITS", "SemSegTestMapper", "SemSegTrainMapper", "Split", "data_root"]
