"""CLIP's ConvNeXt image tower, most blocks in place."""

import copy

import torch
from torch import Tensor, nn

from ..clip import timm_adapter
from ..clip.convnext import CLIPConvNeXt, embed_dense
from .convnext import convnext_block_
from .weights import in_dtype

#: Elements that a block works on at a time, on a CPU and elsewhere. It is more than the head's,
#: because products with these large weights are slow for few rows: 32 MB of float32 is about the
#: last cache of a CPU.
CPU_CHUNK, CHUNK = 1 << 23, 1 << 25


class FastCLIPConvNeXt:
    """``CLIPConvNeXt.forward``; hooks of the blocks and of their layers do not run.

    Args:
        backbone: in eval mode.
        precision: of the layers; the residual stream has that of the images.
        chunk_elements: not used, see ``CPU_CHUNK``.
    """

    def __init__(self, backbone: CLIPConvNeXt, precision: torch.dtype, chunk_elements: int = 0):
        visual = backbone.clip.visual
        self.precision = precision
        self.trunk = timm_adapter.split_trunk(visual.trunk)
        self.stem = in_dtype(self.trunk.stem, precision)
        self.stages = [
            (in_dtype(downsample, precision), [_cast_block(block, precision) for block in blocks])
            for downsample, blocks in self.trunk.stages
        ]
        self.visual = copy.copy(visual)
        self.visual._modules = {**visual._modules, "head": in_dtype(visual.head, precision)}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Encode (B, 3, H, W); the pyramid has the images' precision, "embedding" the layers'."""
        chunk = CPU_CHUNK if images.device.type == "cpu" else CHUNK
        x = images.contiguous(memory_format=torch.channels_last)
        features = {}
        with torch.autocast(images.device.type, enabled=False):
            x = self._run(self.stem, x)
            for i, (downsample, blocks) in enumerate(self.stages):
                x = self._run(downsample, x).contiguous(memory_format=torch.channels_last)
                for block in blocks:
                    if isinstance(block, timm_adapter.MlpBlock):
                        convnext_block_(x, *block, chunk)
                    else:
                        half = self.precision != x.dtype
                        with torch.autocast(x.device.type, self.precision, enabled=half):
                            x = block(x)
                features[f"res{i + 2}"] = x
            last = self.trunk.head_norm(self.trunk.norm(x))
            features["embedding"] = embed_dense(self.visual, last.to(self.precision))
        return features

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        return module(x.to(self.precision)).to(x.dtype)


def _cast_block(block: nn.Module, precision: torch.dtype) -> timm_adapter.MlpBlock | nn.Module:
    """Cast the layers of a block; a block of another kind stays as it is, for autocast."""
    layers = timm_adapter.mlp_block(block)
    if layers is None:
        return block
    return timm_adapter.MlpBlock(
        in_dtype(layers.conv_dw, precision),
        in_dtype(layers.norm, precision),
        in_dtype(layers.fc1, precision),
        in_dtype(layers.fc2, precision),
        layers.gamma,
    )
