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
        chunk = chunk_elements(cost_map)
        cost_map = cost_map.flatten(0, 1)
        x = by_class(self.cost_conv, chunk, cost_map)  # (B * T, hidden_dim, H, W)
        survivors = torch.arange(num_classes, device=x.device)
        aux_logits = []
        guide = nn.Identity()
        for level, image_feature in zip(self.levels, image_features, strict=True):
            if auxiliary:
                logits = level.aux_head(x.detach())  # (B * T, 1, H, W)
                aux_logits.append(logits.view(num_images, -1, *logits.shape[-2:]))
            if top_k and top_k < len(x):
                keep = union_of_top_k(by_class(level.aux_head, chunk, x)[:, 0], top_k)
                x, cost_map, survivors = x[keep], cost_map[keep], survivors[keep]
            # Detached: the skip path must not train the image encoder (SED, section 3.2).
            shared = level.sfm.shared(level.image_guidance(image_feature.detach()))
            # The cost guidance of a level is the chain of links up to it. Made anew for each few
            # classes it costs little time, and no level's has to be kept for all of them.
            guide = nn.Sequential(guide, level.cost_guidance)
            head = self.head if level is self.levels[-1] else nn.Identity()
            fuse = FuseClasses(level.sfm, shared, guide, head)
            x = by_class(level.fam.spatial, chunk, x)
            x = level.fam.classes(x, num_images, pooling, chunk)
            x = by_class(fuse, chunk, x, cost_map)  # (B * T', out_dim, 2H, 2W)
        logits = x.view(num_images, -1, *x.shape[-2:])
        return DecoderOutput(logits, survivors, tuple(aux_logits))


class FuseClasses:
    """SFM of some classes with what all of them share, and after the last level the head."""

    def __init__(self, sfm: SFM, shared: Tensor, guide: nn.Module, head: nn.Module):
        self.sfm, self.shared, self.guide, self.head = sfm, shared, guide, head
        self.composed = sfm.composed_weight()

    def __call__(self, x: Tensor, cost_map: Tensor) -> Tensor:
        """(N, dim, H, W) and (N, P, H0, W0) -> (N, out_dim or 1, 2H, 2W)."""
        return self.head(self.sfm(x, self.shared, self.guide(cost_map), self.composed))


def chunk_elements(cost_map: Tensor) -> int:
    """The elements of a feature map that inference works on at a time; 0 for all at once.

    A CPU is fastest while a few classes stay in its caches; other devices want large pieces, that
    bound the memory. An image's classes are independent but in class attention, so that a batch
    of several images is not cut.
    """
    if torch.is_grad_enabled() or len(cost_map) != 1:
        return 0
    return 1 << 19 if cost_map.device.type == "cpu" else 1 << 25


def by_class(function, chunk: int, *tensors: Tensor) -> Tensor:
    """``function(*tensors)`` for some classes at a time, in channels-last memory.

    Args:
        function: maps (N, ...) tensors to one (N, ...) tensor, each class on its own.
        chunk: the elements of the first tensor at a time (at least one class); 0 for all.
        tensors: (N, C, H, W).
    """
    classes = max(1, chunk // tensors[0][0].numel()) if chunk else len(tensors[0])
    output = None
    for start in range(0, len(tensors[0]), classes):
        parts = (tensor[start : start + classes] for tensor in tensors)
        part = function(*(p.contiguous(memory_format=torch.channels_last) for p in parts))
        if classes >= len(tensors[0]):
            return part
        if output is None:
            output = torch.empty(
                (len(tensors[0]), *part.shape[1:]),
                dtype=part.dtype,
                device=part.device,
                memory_format=torch.channels_last,
            )
        output[start : start + classes] = part
    return output


def union_of_top_k(logits: Tensor, k: int) -> Tensor:
    """The classes that are among the k best of at least one pixel.

    Args:
        logits: (T, H, W).
        k: 1 <= k <= T.

    Returns:
        Ascending class indices, (T',) with k <= T' <= T.
    """
    return logits.topk(k, dim=0).indices.unique()
