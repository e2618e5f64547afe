"""Models; importing this package registers them with Detectron2."""

from .clip.convnext import CLIPConvNeXt
from .sed.head import SEDHead
from .segmenter import SED, OpenVocabSegmenter

__all__ = ["SED", "CLIPConvNeXt", "OpenVocabSegmenter", "SEDHead"]
