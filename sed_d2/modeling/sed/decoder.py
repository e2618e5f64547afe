"""Gradual fusion decoder and category early rejection (SED, sections 3.2 and 3.3).

The classes of an image are a batch: maps are (B * T, C, H, W), and only class fusion sees that the
T classes of an image belong together.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.checkpointed import Checkpointed, set_checkpoints
from ..layers.class_attention import ClassAttention
from ..layers.convnext import ConvNeXtBlock
from ..layers.head_output import HeadOutput


class FAM(nn.Module):
    """Feature aggregation module: spatial fusion, then class fusion.

    Args:
        dim: width of input and output.
        kernel_size: depthwise kernel of spatial fusion.
        num_heads: heads of class fusion.
    """

    def __init__(self, dim: int, kernel_size: int, num_heads: int):
        super().__init__()
        self.spatial = ConvNeXtBlock(dim, kernel_size)
        self.classes = ClassAttention(dim, num_heads)

    def forward(self, x: Tensor, num_images: int, pooling: tuple[int, int]) -> Tensor:
        """Mix positions, then classes: (B * T, C, H, W) -> (B * T, C, H, W)."""
        return self.classes(self.spatial(x), num_images, pooling)


class SFM(Checkpointed):
    """Skip-layer fusion module: double the resolution and mix in both guidances.

    Guidance is what a level sees besides its input: the image feature (image guidance) and the cost
    map (cost guidance), each projected to g channels. The module is equal to
    ``relu(norm2(conv2(relu(norm1(conv1(cat[up(x), image guidance, cost guidance]))))))``; conv1 is
    linear, so the part of the image guidance is computed once per image, not once per class.

    Args:
        dim: width of the input.
        out_dim: width of the output.
        guidance_dim: g.
    """

    def __init__(self, dim: int, out_dim: int, guidance_dim: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(dim, dim - guidance_dim, 2, stride=2)
        self.conv1 = nn.Conv2d(dim + guidance_dim, out_dim, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(max(out_dim // 16, 1), out_dim)  # groups of 16 channels
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(max(out_dim // 16, 1), out_dim)

    def split_conv1(self) -> tuple[Tensor, ...]:
        """Return conv1's weights for the upsampled classes, the image and the cost guidance."""
        up_dim = self.up.out_channels
        guidance_dim = (self.conv1.in_channels - up_dim) // 2
        return self.conv1.weight.split([up_dim, guidance_dim, guidance_dim], dim=1)

    def forward(self, x: Tensor, image_guidance: Tensor, cost_guidance: Tensor) -> Tensor:
        """Fuse one level.

        Args:
            x: (B * T, dim, H, W).
            image_guidance: (B, g, 2H, 2W), the same for all classes of an image.
            cost_guidance: (B * T, g, 2H, 2W).

        Returns:
            (B * T, out_dim, 2H, 2W).
        """
        up_weight, image_weight, cost_weight = self.split_conv1()
        y = F.conv2d(self.up(x), up_weight, padding=1)
        y = y + F.conv2d(cost_guidance, cost_weight, padding=1)
        shared = F.conv2d(image_guidance, image_weight, padding=1)  # (B, out_dim, 2H, 2W)
        y = (y.unflatten(0, (len(shared), -1)) + shared.unsqueeze(1)).flatten(0, 1)
        y = F.relu(self.norm1(y))
        return F.relu(self.norm2(self.conv2(y)))


class FusionLevel(nn.Module):
    """Decoder level: FAM at the level's resolution, then SFM to twice that resolution.

    Args:
        dim: width of the level's input.
        out_dim: width of its output.
        image_dim: channels of its image feature.
        cost_dim: channels of the cost map or of the previous level's cost guidance.
        guidance_dim: g, the width of both guidances.
        kernel_size: depthwise kernel of FAM.
        num_heads: heads of class attention.
    """

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
        #: Scores the level's input, for the auxiliary loss and for early rejection.
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
        self, x: Tensor, cost: Tensor, image_feature: Tensor, pooling: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Decode one level.

        Args:
            x: (B * T, dim, H, W).
            cost: (B * T, cost_dim, H, W), the cost map or the previous level's cost guidance.
            image_feature: (B, image_dim, 2H, 2W).
            pooling: (height, width) of class attention's cells.

        Returns:
            (B * T, out_dim, 2H, 2W), and this level's cost guidance (B * T, g, 2H, 2W).
        """
        x = self.fam(x, len(image_feature), pooling)
        cost = self.cost_guidance(cost)
        return self.sfm(x, self.image_guidance(image_feature), cost), cost


class GradualFusionDecoder(nn.Module):
    """Cost map -> logits at eight times its resolution, in three levels.

    Args:
        num_templates: P, the channels of the cost map.
        hidden_dim: width of the first level's input.
        decoder_dims: output width of each level.
        guidance_dims: g, the width of both guidances at each level.
        image_dims: channels of the image feature at each level (res4, res3, res2).
        kernel_sizes: depthwise kernel of FAM at each level.
        num_heads: heads of class attention.
        detach_auxiliary: compute the auxiliary logits on detached input, as released.
        prior_prob: score of the untrained heads, in (0, 1); 0 keeps torch's initial bias, a score
            of about 0.5.
        checkpoints: recompute the activations of spatial fusion, class fusion and SFM in the
            backward pass.

    Raises:
        ValueError: the lists have different lengths, or a value is outside its range.
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
        detach_auxiliary: bool = True,
        prior_prob: float = 0.0,
        checkpoints: bool = False,
    ):
        super().__init__()
        if not 0 <= prior_prob < 1:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.PRIOR_PROB {prior_prob} must be at least 0 and less than 1"
            )
        if not len(decoder_dims) == len(guidance_dims) == len(kernel_sizes) == len(image_dims):
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.DECODER_DIMS, GUIDANCE_PROJ_DIMS and KERNEL_SIZES must have "
                f"{len(image_dims)} entries, one for each image feature"
            )
        self.num_templates = num_templates
        self.detach_auxiliary = detach_auxiliary
        self.cost_conv = nn.Conv2d(num_templates, hidden_dim, 7, padding=3)
        dims = [hidden_dim, *decoder_dims]
        cost_dims = [num_templates, *guidance_dims]
        self.levels: Sequence[FusionLevel] = nn.ModuleList(  # type: ignore[assignment]
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
        if prior_prob:
            # One of T classes is right at a pixel. Heads that start at 0.5 first learn that every
            # class is unlikely (RetinaNet, arXiv 1708.02002, section 4.1).
            bias = math.log(prior_prob / (1 - prior_prob))
            for head in (*(level.aux_head for level in self.levels), self.head):
                nn.init.constant_(head.get_parameter("bias"), bias)
        set_checkpoints(self, checkpoints)

    def forward(
        self,
        cost_map: Tensor,
        image_features: Sequence[Tensor],
        *,
        pooling: tuple[int, int],
        top_k: int = 0,
        auxiliary: bool = False,
    ) -> HeadOutput:
        """Decode a cost map.

        Args:
            cost_map: (B, T, P, H, W), cosine similarities.
            image_features: (B, image_dim, 2H, 2W), (.., 4H, 4W), (.., 8H, 8W): res4, res3, res2.
            pooling: (height, width) of class attention's cells.
            top_k: early rejection keeps this many classes per pixel before each level; 0 keeps
                all. Needs B = 1, because each image has its own survivors.
            auxiliary: also return the auxiliary logits; not together with ``top_k``.

        Returns:
            Logits (B, T', 8H, 8W), survivors (T',), and auxiliary logits (B, T, H, W),
            (B, T, 2H, 2W), (B, T, 4H, 4W), each made of its level's input.

        Raises:
            ValueError: ``top_k`` with B > 1 or with ``auxiliary``.
        """
        num_images, num_classes = cost_map.shape[:2]
        check_early_rejection(top_k, num_images, auxiliary)

        def per_class(logits: Tensor) -> Tensor:  # (B * T, 1, h, w) -> (B, T, h, w)
            return logits.unflatten(0, (num_images, -1)).squeeze(2)

        # Channels last, so that the linear layers see (N, H, W, C) without a copy.
        cost = cost_map.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = self.cost_conv(cost)  # (B * T, dim, H, W)
        survivors = torch.arange(num_classes, device=x.device)
        auxiliary_logits = []
        for level, image_feature in zip(self.levels, image_features, strict=True):
            if top_k:
                keep = union_of_top_k(level.aux_head(x)[:, 0], top_k)
                x, cost, survivors = x[keep], cost[keep], survivors[keep]
            if auxiliary:
                logits = level.aux_head(x.detach() if self.detach_auxiliary else x)
                auxiliary_logits.append(per_class(logits))
            x, cost = level(x, cost, image_feature, pooling)
        return HeadOutput(per_class(self.head(x)), survivors, tuple(auxiliary_logits))


def union_of_top_k(logits: Tensor, k: int) -> Tensor:
    """Return the classes that are among the k best of at least one pixel.

    Args:
        logits: (T, H, W).
        k: at least 1; from T on it returns all classes.

    Returns:
        Ascending class indices, (T',) with min(k, T) <= T' <= T.
    """
    return logits.topk(min(k, len(logits)), dim=0).indices.unique()


def check_early_rejection(top_k: int, num_images: int, auxiliary: bool) -> None:
    """Raise a ValueError for early rejection of a batch, or together with auxiliary logits."""
    if top_k and num_images != 1:
        raise ValueError(
            f"early rejection works on one image at a time, not on {num_images}, because each has "
            "its own survivors: pass one image, or set TEST.FAST_INFERENCE False"
        )
    if top_k and auxiliary:
        raise ValueError("auxiliary logits are of all classes: ask for them without top_k")
