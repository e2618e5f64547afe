"""The model of SED; importing this package registers it with Detectron2."""

from .clip.convnext import CLIPConvNeXt
from .sed.head import SEDHead
from .segmenter import SED

__all__ = ["SED", "CLIPConvNeXt", "SEDHead"]
