"""The gradual fusion decoder and category early rejection (SED, sections 3.2 and 3.3)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .layers import FAM, SFM


class DecoderOutput(NamedTuple):
    """What the decoder answers.

    Attributes:
        logits: (B, T', 8H, 8W) of the T' surviving classes (all T without early rejection).
        survivors: (T',) indices into the vocabulary, ascending.
        auxiliary: logits (B, T, H, W), (B, T, 2H, 2W), (B, T, 4H, 4W), or () if not asked for.
    """

    logits: Tensor
    survivors: Tensor
    auxiliary: tuple[Tensor, ...] = ()


class FusionLevel(nn.Module):
    """One decoder level: FAM at the level's resolution, then SFM to twice that resolution."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        image_dim: int,
        cost_dim: int,
        guidance_dim: int,
        kernel_size: int,
        num_heads: int,
    ):
        super().__init__()
        self.aux_head = nn.Conv2d(dim, 1, 3, padding=1)
        self.fam = FAM(dim, kernel_size, num_heads)
        self.image_guidance = nn.Sequential(
            nn.Conv2d(image_dim, guidance_dim, 3, padding=1), nn.ReLU()
        )
        self.cost_guidance = nn.Sequential(
            nn.ConvTranspose2d(cost_dim, guidance_dim, 2, stride=2), nn.ReLU()
        )
        self.sfm = SFM(dim, out_dim, guidance_dim)

    def forward(
        self, x: Tensor, cost_guidance: Tensor, image_feature: Tensor, pooling: tuple[int, int]
    ) -> Tensor:
        """Fuse (B * T, dim, H, W) into (B * T, out_dim, 2H, 2W).

        Args:
            x: the classes' features, (B * T, dim, H, W).
            cost_guidance: (B * T, g, 2H, 2W).
            image_feature: (B, image_dim, 2H, 2W). Detached: the skip path must not train the
                image encoder (SED, section 3.2).
            pooling: the cell that class attention averages over.
        """
        image_guidance = self.image_guidance(image_feature.detach())
        x = self.fam(x, len(image_feature), pooling)
        return self.sfm(x, image_guidance, cost_guidance)


class GradualFusionDecoder(nn.Module):
    """Cost map -> logits at eight times its resolution, in three levels.

    Args:
        num_templates: P, the channels of the cost map.
        hidden_dim: width of the first level's input.
        decoder_dims: output width of each level.
        guidance_dims: g, the width of the two guidances at each level.
        image_dims: channels of the image features at each level (res4, res3, res2).
        kernel_sizes: depthwise kernel of FAM at each level.
        num_heads: heads of class attention.
    """

    def __init__(
        self,
        num_templates: int,
        hidden_dim: int,
        decoder_dims: Sequence[int],
        guidance_dims: Sequence[int],
        image_dims: Sequence[int],
        kernel_sizes: Sequence[int],
        num_heads: int,
    ):
        super().__init__()
        self.cost_conv = nn.Conv2d(num_templates, hidden_dim, 7, padding=3)
        dims = [hidden_dim, *decoder_dims]
        cost_dims = [num_templates, *guidance_dims]
        self.levels = nn.ModuleList(
            FusionLevel(
                dims[i],
                dims[i + 1],
                image_dim=image_dims[i],
                cost_dim=cost_dims[i],
                guidance_dim=guidance_dims[i],
                kernel_size=kernel_sizes[i],
                num_heads=num_heads,
            )
            for i in range(len(decoder_dims))
        )
        self.head = nn.Conv2d(dims[-1], 1, 3, padding=1)

    def forward(
        self,
        cost_map: Tensor,
        image_features: Sequence[Tensor],
        *,
        pooling: tuple[int, int],
        top_k: int = 0,
        auxiliary: bool = False,
    ) -> DecoderOutput:
        """Decode a cost map.

        Args:
            cost_map: (B, T, P, H, W), cosine similarities.
            image_features: (B, image_dim, 2H, 2W), (.., 4H, 4W), (.., 8H, 8W): res4, res3, res2.
            pooling: the (height, width) of class attention's cells.
            top_k: classes that each pixel keeps before each level; 0 keeps all. Needs B = 1,
                because survivors are an image's own.
            auxiliary: also return the auxiliary logits, computed on detached input.
        """
        num_images, num_classes = cost_map.shape[:2]
        if top_k and num_images != 1:
            raise ValueError(f"early rejection works on one image at a time, not on {num_images}")
        guidance = cost_map.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = self.cost_conv(guidance)  # (B * T, hidden_dim, H, W)
        survivors = torch.arange(num_classes, device=x.device)
        aux_logits = []
        for level, image_feature in zip(self.levels, image_features, strict=True):
            if auxiliary:
                logits = level.aux_head(x.detach())  # (B * T, 1, H, W)
                aux_logits.append(logits.view(num_images, -1, *logits.shape[-2:]))
            if top_k and top_k < len(x):
                keep = union_of_top_k(level.aux_head(x)[:, 0], top_k)
                x, guidance, survivors = x[keep], guidance[keep], survivors[keep]
            guidance = level.cost_guidance(guidance)  # (B * T', g, 2H, 2W)
            x = level(x, guidance, image_feature, pooling)
        logits = self.head(x)
        logits = logits.view(num_images, -1, *logits.shape[-2:])
        return DecoderOutput(logits, survivors, tuple(aux_logits))


def union_of_top_k(logits: Tensor, k: int) -> Tensor:
    """The classes that are among the k best of at least one pixel.

    Args:
        logits: (T, H, W).
        k: 1 <= k <= T.

    Returns:
        Ascending class indices, (T',) with k <= T' <= T.
    """
    return logits.topk(k, dim=0).indices.unique()
