"""The internals of timm's ConvNeXt that this package uses; no other file touches them."""

from typing import Any, NamedTuple

from timm.layers.activations import GELU
from timm.layers.mlp import Mlp
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn


class Stage(NamedTuple):
    """Width and stride of a stage's output."""

    channels: int
    stride: int


class MlpBlock(NamedTuple):
    """Layers of a block ``x + gamma * fc2(GELU(fc1(norm(conv_dw(x)))))``."""

    conv_dw: nn.Conv2d
    norm: nn.Module
    fc1: nn.Linear
    fc2: nn.Linear
    gamma: nn.Parameter


class Trunk(NamedTuple):
    """Parts of a trunk, in the order in which they run.

    Attributes:
        stem: images -> features at stride 4.
        stages: the downsampling and the blocks of each stage.
        norm: after the last stage.
        head_norm: of the dense embedding.
    """

    stem: nn.Module
    stages: list[tuple[nn.Module, list[nn.Module]]]
    norm: nn.Module
    head_norm: nn.Module


def stages(trunk: Any) -> list[Stage]:
    """Describe the stages of a trunk, fine to coarse."""
    return [Stage(info["num_chs"], info["reduction"]) for info in trunk.feature_info]


def set_checkpoints(trunk: Any, enabled: bool) -> None:
    """Keep only the inputs of the blocks for the backward pass, and recompute the rest."""
    trunk.set_grad_checkpointing(enabled)


def forward_pyramid(trunk: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Run a trunk on (B, 3, H, W).

    Returns:
        The last stage normalised for the dense embedding, (B, C, H/32, W/32), and the output of
        each stage, fine to coarse.
    """
    last, pyramid = trunk.forward_intermediates(images)
    return trunk.head.norm(last), pyramid


def split_trunk(trunk: Any) -> Trunk:
    """Return the parts that :func:`forward_pyramid` runs."""
    return Trunk(
        trunk.stem,
        [(stage.downsample, list(stage.blocks)) for stage in trunk.stages],
        trunk.norm_pre,
        trunk.head.norm,
    )


def mlp_block(block: Any) -> MlpBlock | None:
    """Return the layers of a block of the base and large towers; None for other kinds of block."""
    if (
        type(block) is ConvNeXtBlock
        and type(block.mlp) is Mlp
        and type(block.mlp.fc1) is type(block.mlp.fc2) is nn.Linear
        and type(block.mlp.act) is GELU
        and isinstance(block.mlp.norm, nn.Identity)
        and isinstance(block.shortcut, nn.Identity)
        and block.gamma is not None
    ):
        return MlpBlock(block.conv_dw, block.norm, block.mlp.fc1, block.mlp.fc2, block.gamma)
    return None
