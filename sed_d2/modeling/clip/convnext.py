"""CLIPConvNeXt: open_clip's ConvNeXt image tower as a Detectron2 backbone."""

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from open_clip import CLIP
from torch import Tensor, nn

from . import open_clip_adapter, timm_adapter
from .build import build_clip

#: ``MODEL.CLIP.FINETUNE`` -> what the names of the trained parameters of the image tower contain.
FINETUNE_PARTS = {
    "full": ("",),
    "frozen": (),
    "conv": ("conv_dw.", "downsample.1.", "stem.0."),
    "mlp": (".mlp.",),
    "last_stage": ("trunk.stages.3.", "trunk.head.", "head."),
}


@BACKBONE_REGISTRY.register()
class CLIPConvNeXt(Backbone):
    """Feature pyramid and dense embedding of CLIP's image tower.

    It owns the whole CLIP model. The text tower is frozen; the
    :class:`~sed_d2.modeling.clip.text.TextEncoder` uses it.

    Args:
        clip: an open_clip model with a timm ConvNeXt image tower.
        finetune: the trained part of the image tower, a key of ``FINETUNE_PARTS``.
        pretrained: whether ``clip`` has trained weights, which a checkpoint may then leave out.
        checkpoints: in training, keep only the inputs of the trunk's blocks and recompute the rest
            in the backward pass.

    Raises:
        ValueError: ``finetune`` is unknown.
    """

    @configurable
    def __init__(
        self,
        *,
        clip: CLIP,
        finetune: str = "full",
        pretrained: bool = False,
        checkpoints: bool = False,
    ):
        super().__init__()
        if finetune not in FINETUNE_PARTS:
            raise ValueError(
                f"MODEL.CLIP.FINETUNE '{finetune}' is unknown: use one of "
                f"{', '.join(FINETUNE_PARTS)}"
            )
        self.clip = clip
        self.pretrained = pretrained
        # The linear layers read channels last; with all maps so, the convolutions need no copies.
        clip.visual.to(memory_format=torch.channels_last)
        timm_adapter.set_checkpoints(clip.visual.trunk, checkpoints)
        clip.requires_grad_(False)
        for name, parameter in clip.visual.named_parameters():
            parameter.requires_grad = any(part in name for part in FINETUNE_PARTS[finetune])
        stages = timm_adapter.stages(clip.visual.trunk)
        shapes = {f"res{i + 2}": stage for i, stage in enumerate(stages)}
        width = open_clip_adapter.embedding_width(clip)
        shapes["embedding"] = timm_adapter.Stage(width, stages[-1].stride)
        self._out_features = list(shapes)
        self._out_feature_channels = {name: stage.channels for name, stage in shapes.items()}
        self._out_feature_strides = {name: stage.stride for name, stage in shapes.items()}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read the arguments from ``cfg.MODEL.CLIP``."""
        pretrained = cfg.MODEL.CLIP.PRETRAINED
        if cfg.MODEL.WEIGHTS and cfg.MODEL.WEIGHTS_STRICT and not Path(pretrained).is_file():
            pretrained = ""  # a full checkpoint brings CLIP's weights too; they need no download
        return {
            "clip": build_clip(cfg.MODEL.CLIP.NAME, pretrained),
            "finetune": cfg.MODEL.CLIP.FINETUNE,
            "pretrained": bool(pretrained),
            "checkpoints": cfg.MODEL.CLIP.CHECKPOINT,
        }

    @property
    def size_divisibility(self) -> int:
        """The sides of an image must be multiples of this."""
        return self._out_feature_strides["embedding"]

    def train(self, mode: bool = True) -> "CLIPConvNeXt":
        """Set the training mode; a tower that is not trained keeps its drop path off."""
        trained = any(parameter.requires_grad for parameter in self.parameters())
        return super().train(mode and trained)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encode normalised images.

        Args:
            images: (B, 3, H, W), H and W multiples of 32.

        Returns:
            "res2" to "res5" at strides 4 to 32, and "embedding" (B, C, H/32, W/32): the trunk
            head's norm and the tower's projection at every position, not of unit length.
        """
        visual = self.clip.visual
        images = images.contiguous(memory_format=torch.channels_last)
        last, stages = timm_adapter.forward_pyramid(visual.trunk, images)
        features = {f"res{i + 2}": stage for i, stage in enumerate(stages)}
        features["embedding"] = embed_dense(visual, last)
        return features


def embed_dense(visual: nn.Module, last: Tensor) -> Tensor:
    """Project the normalised last stage at every position: (B, C', h, w) -> (B, C, h, w)."""
    return open_clip_adapter.project_dense(visual, last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
