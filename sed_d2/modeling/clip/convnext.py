"""CLIPConvNeXt: open_clip's ConvNeXt image tower as a Detectron2 backbone."""

import contextlib
import difflib
import logging
from pathlib import Path

import open_clip
import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.layers import Mlp
from timm.layers.activations import GELU
from torch import Tensor, nn

from ..fast.linear import convnext_block_
from ..fast.weights import autocast_dtype, in_dtype

#: Which parameters of the image tower each ``MODEL.CLIP_FINETUNE`` trains, by parts of their names.
FINETUNE_PARTS = {
    "full": ("",),
    "frozen": (),
    "conv": ("conv_dw.", "downsample.1.", "stem.0."),
    "mlp": (".mlp.",),
    "last_stage": ("trunk.stages.3.", "trunk.head.", "head."),
}


def build_clip(name: str, pretrained: str = "") -> nn.Module:
    """Build an open_clip model, both towers, in float32 on the CPU.

    Args:
        name: an open_clip model with a timm ConvNeXt image tower.
        pretrained: an open_clip tag, a weight file, or "" for random weights.

    Raises:
        ValueError: an unknown model, another kind of image tower, or weights that cannot be read.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.0)
        raise ValueError(
            f"MODEL.CLIP.NAME '{name}' is no open_clip model: did you mean {' or '.join(near)}?"
        )
    tower = config["vision_cfg"].get("timm_model_name", "")
    if not tower.startswith("convnext"):
        raise ValueError(
            f"MODEL.CLIP.NAME '{name}' has no ConvNeXt image tower, which SED needs for its "
            "feature pyramid: use convnext_base_w_320 or convnext_large_d_320"
        )
    try:
        with _quiet_root_logger():
            return open_clip.create_model(name, pretrained=pretrained or None)
    except Exception as error:
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED '{pretrained}' of '{name}' cannot be loaded "
            f"({_first_line(error)}): give a tag of open_clip.list_pretrained_tags_by_model("
            f"'{name}'), a weight file of that model, or \"\" with a full SED checkpoint in "
            "MODEL.WEIGHTS"
        ) from error


@contextlib.contextmanager
def _quiet_root_logger():
    """Mute open_clip's warning of random weights, which come from MODEL.WEIGHTS later."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


@BACKBONE_REGISTRY.register()
class CLIPConvNeXt(Backbone):
    """Feature pyramid and dense embedding of CLIP's image tower.

    It owns the whole CLIP model, built once; the text tower is frozen and used by
    :class:`~sed_d2.modeling.clip.text.TextEncoder`.

    Args:
        clip: an open_clip model with a timm ConvNeXt image tower.
        finetune: what of the image tower is trained, a key of ``FINETUNE_PARTS``.
        pretrained: whether ``clip`` has trained weights, which a SED checkpoint may then leave out.
        checkpoints: in training, keep only the inputs of the trunk's blocks and compute the rest
            again in the backward pass.
    """

    @configurable
    def __init__(
        self,
        *,
        clip: nn.Module,
        finetune: str = "full",
        pretrained: bool = False,
        checkpoints: bool = False,
    ):
        super().__init__()
        if finetune not in FINETUNE_PARTS:
            raise ValueError(
                f"MODEL.CLIP_FINETUNE '{finetune}' is unknown: use one of "
                f"{', '.join(FINETUNE_PARTS)}"
            )
        self.clip = clip
        self.pretrained = pretrained
        # The linear layers see the channels last in any case; so the convolutions need no copies.
        clip.visual.to(memory_format=torch.channels_last)
        clip.visual.trunk.set_grad_checkpointing(checkpoints)
        clip.requires_grad_(False)
        for name, parameter in clip.visual.named_parameters():
            parameter.requires_grad = any(part in name for part in FINETUNE_PARTS[finetune])
        stages = clip.visual.trunk.feature_info
        self._out_features = [f"res{i + 2}" for i in range(len(stages))] + ["embedding"]
        self._out_feature_channels = {f"res{i + 2}": s["num_chs"] for i, s in enumerate(stages)}
        self._out_feature_strides = {f"res{i + 2}": s["reduction"] for i, s in enumerate(stages)}
        self._out_feature_channels["embedding"] = clip.text_projection.shape[1]
        self._out_feature_strides["embedding"] = stages[-1]["reduction"]

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        """The arguments from ``cfg.MODEL.CLIP`` and ``cfg.MODEL.CLIP_FINETUNE``."""
        pretrained = cfg.MODEL.CLIP.PRETRAINED
        if cfg.MODEL.WEIGHTS and cfg.MODEL.WEIGHTS_STRICT and not Path(pretrained).is_file():
            pretrained = ""  # a full checkpoint brings CLIP's weights too; they need no download
        return {
            "clip": build_clip(cfg.MODEL.CLIP.NAME, pretrained),
            "finetune": cfg.MODEL.CLIP_FINETUNE,
            "pretrained": bool(pretrained),
            "checkpoints": cfg.MODEL.CLIP.CHECKPOINT,
        }

    @property
    def size_divisibility(self) -> int:
        """What the sides of an image must be multiples of."""
        return self._out_feature_strides["embedding"]

    def train(self, mode: bool = True):
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
        if self.training or torch.is_grad_enabled():
            last, stages = visual.trunk.forward_intermediates(images)
        else:
            dtype = autocast_dtype(images.device) or images.dtype
            with torch.autocast(images.device.type, enabled=False):
                last, stages = infer_trunk(visual.trunk, images, dtype)
        dense = visual.trunk.head.norm(last).permute(0, 2, 3, 1)  # (B, H/32, W/32, C')
        features = {f"res{i + 2}": stage for i, stage in enumerate(stages)}
        features["embedding"] = visual.head(dense).permute(0, 3, 1, 2)
        return features


def infer_trunk(
    trunk: nn.Module, images: Tensor, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """``trunk.forward_intermediates(images)`` for inference, most blocks in place.

    Hooks of these blocks, their MLPs and the layers of those do not run.

    Args:
        trunk: timm's ConvNeXt.
        images: (B, 3, H, W) in channels-last memory.
        dtype: the precision of the layers; what they add up to has the images' own.

    Returns:
        The features after the last norm, and those of the stages at strides 4 to 32.
    """
    # More than the decoder works on at a time, since products with these large weights are slow
    # for few rows. On a CPU it is 32 MB of float32, about its last cache.
    chunk = 1 << (23 if images.device.type == "cpu" else 25)

    def run(module: nn.Module, x: Tensor) -> Tensor:
        return in_dtype(module, dtype)(x.to(dtype)).to(images)

    x, stages = run(trunk.stem, images), []
    for stage in trunk.stages:
        x = run(stage.downsample, x).contiguous(memory_format=torch.channels_last)
        for block in stage.blocks:
            if has_linear_mlp(block):
                layers = (block.conv_dw, block.norm, block.mlp.fc1, block.mlp.fc2)
                layers = [in_dtype(layer, dtype) for layer in layers]
                convnext_block_(x, *layers, block.gamma, chunk)
            else:
                with torch.autocast(x.device.type, dtype, enabled=dtype != x.dtype):
                    x = block(x)
        stages.append(x)
    return trunk.norm_pre(x), stages


def has_linear_mlp(block: nn.Module) -> bool:
    """Whether a block of timm's is ``x + gamma * fc2(GELU(fc1(norm(conv_dw(x)))))``.

    It is in the base and large towers; others have convolutions in place of linear layers, or more
    layers.
    """
    return (
        type(block.mlp) is Mlp
        and type(block.mlp.fc1) is type(block.mlp.fc2) is nn.Linear
        and type(block.mlp.act) is GELU
        and isinstance(block.mlp.norm, nn.Identity)
        and isinstance(block.shortcut, nn.Identity)
        and block.gamma is not None
    )
