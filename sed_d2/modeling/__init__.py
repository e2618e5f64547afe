"""The model of SED; importing this package registers it with Detectron2."""

from .clip_backbone import CLIPConvNeXt
from .head import SEDHead
from .meta_arch import SED

__all__ = ["SED", "CLIPConvNeXt", "SEDHead"]
