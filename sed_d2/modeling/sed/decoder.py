"""The gradual fusion decoder and category early rejection (SED, sections 3.2 and 3.3)."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..fast.decoder import FAM, SFM, as_linear, conv_to_one, guidance_chain, sum_of_taps
from ..fast.spectral import spectral_conv
from ..fast.weights import autocast_dtype, in_dtype, with_parameters


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
        self,
        x: Tensor,
        cost: Tensor,
        image_feature: Tensor,
        pooling: tuple[int, int],
        checkpoints: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Decode one level in a form that can be differentiated.

        Args:
            x: (B * T, dim, H, W).
            cost: (B * T, cost_dim, H, W), the cost map or the last level's cost guidance.
            image_feature: (B, image_dim, 2H, 2W).
            pooling: the (height, width) of class attention's cells.
            checkpoints: keep the inputs of the level's three parts alone, and compute what is in
                them again when it is differentiated.

        Returns:
            (B * T, out_dim, 2H, 2W), and this level's cost guidance (B * T, g, 2H, 2W).
        """
        run = partial(checkpoint, use_reentrant=False) if checkpoints else _call
        x = run(self.fam.spatial, x.contiguous(memory_format=torch.channels_last))
        x = run(self.fam.classes, x, len(image_feature), pooling)
        return run(self._fuse, x, cost, image_feature)

    def _fuse(self, x: Tensor, cost: Tensor, image_feature: Tensor) -> tuple[Tensor, Tensor]:
        shared = self.sfm.shared(self.image_guidance(image_feature))
        cost = self.cost_guidance(cost.contiguous(memory_format=torch.channels_last))
        return self.sfm(x, shared, cost, self.sfm.composed_weight()), cost

    def infer(
        self,
        x: Tensor,
        cost_map: Tensor,
        image_feature: Tensor,
        *,
        links: Sequence[tuple[Tensor, Tensor]],
        head: nn.Conv2d | None,
        pooling: tuple[int, int],
        chunk: int,
    ) -> Tensor:
        """The same for one image in bounded memory, without gradients.

        Args:
            x: (T, dim, H, W) in channels-last memory; it is overwritten.
            cost_map: (T, P, H0, W0) in channels-last memory.
            image_feature: (1, image_dim, 2H, 2W).
            links: what makes this level's cost guidance of the cost map, one after another, see
                :func:`as_linear`. Made anew for each few classes it costs little time, and is never
                held for all of them.
            head: what follows the last level.
            pooling: the (height, width) of class attention's cells.
            chunk: elements that are worked on at a time.

        Returns:
            (T, out_dim, 2H, 2W) in channels-last memory, or (T, 1, 2H, 2W) with a head.
        """
        shared = self.sfm.shared(self.image_guidance(image_feature))
        self.fam.spatial.update_(x, chunk)
        self.fam.classes.update_(x, pooling, chunk)
        composed = self.sfm.composed_weight()
        out_dim, height, width = (1 if head else shared.shape[1]), *shared.shape[-2:]
        output = x.new_empty(len(x), height, width, out_dim).permute(0, 3, 1, 2)
        classes = max(1, chunk // shared.numel())
        parts = (tensor.split(classes) for tensor in (x, cost_map, output))
        for x_part, cost, out in zip(*parts, strict=True):
            guidance = guidance_chain(links, cost)
            if head:
                out.copy_(conv_to_one(self.sfm(x_part, shared, guidance, composed), head))
            else:
                self.sfm(x_part, shared, guidance, composed, out=out)
        return output


def _call(function: Callable, *args):
    return function(*args)


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
        detach_auxiliary: whether the auxiliary logits are computed on detached input.
        prior_prob: the score that the untrained heads give, in (0, 1); 0 leaves torch's, about 0.5.
        chunk_elements: in inference, the elements of a feature map that are worked on at a time;
            0 chooses for the device. Besides some maps of that size only the cost map and a
            level's input and output are held for all classes, 2.1 MB a class at 24×24.
        checkpoints: in training, keep only the inputs of the levels' parts and compute the rest
            again in the backward pass.
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
        chunk_elements: int = 0,
        checkpoints: bool = False,
    ):
        super().__init__()
        if chunk_elements < 0:
            raise ValueError(
                f"TEST.CHUNK_ELEMENTS {chunk_elements} is negative: use a number of elements, or 0 "
                "to let the device choose"
            )
        self.chunk_elements = chunk_elements
        self.checkpoints = checkpoints
        self.detach_auxiliary = detach_auxiliary
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
        if not 0 <= prior_prob < 1:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.PRIOR_PROB {prior_prob} must be at least 0 and less than 1"
            )
        if prior_prob:
            # Of T classes a pixel has one: heads that first have to learn that no class is likely
            # learn late which one is (RetinaNet, arXiv 1708.02002, section 4.1).
            for head in (*(level.aux_head for level in self.levels), self.head):
                nn.init.constant_(head.bias, math.log(prior_prob / (1 - prior_prob)))

    def forward(
        self,
        cost_map: Tensor,
        image_features: Sequence[Tensor],
        *,
        pooling: tuple[int, int],
        top_k: int = 0,
        auxiliary: bool = False,
        basis: Tensor | None = None,
    ) -> DecoderOutput:
        """Decode a cost map.

        In inference under autocast all of it is computed in autocast's precision.

        Args:
            cost_map: (B, T, P, H, W), cosine similarities.
            image_features: (B, image_dim, 2H, 2W), (.., 4H, 4W), (.., 8H, 8W): res4, res3, res2.
            pooling: the (height, width) of class attention's cells.
            top_k: classes that each pixel keeps before each level; 0 keeps all. Needs B = 1,
                because survivors are an image's own.
            auxiliary: also return the auxiliary logits; not together with top_k.
            basis: (P, r), where the cost map has r channels that stand for ``basis @ channels``
                templates; None where it has the templates.
        """
        parameters = {}
        if basis is not None:
            # Both layers that read the templates are linear: conv(basis @ x) = (conv basis) @ x.
            link = self.levels[0].cost_guidance[0].weight
            parameters[self.cost_conv.weight] = torch.einsum(
                "ophw,pr->orhw", self.cost_conv.weight, basis
            )
            parameters[link] = torch.einsum("pohw,pr->rohw", link, basis)
        decoder = with_parameters(self, parameters) if parameters else self
        dtype = None if torch.is_grad_enabled() else autocast_dtype(cost_map.device)
        if dtype is None:
            return decoder.decode(cost_map, image_features, pooling, top_k, auxiliary)
        cost_map = cost_map.to(dtype)
        image_features = [feature.to(dtype) for feature in image_features]
        with torch.autocast(cost_map.device.type, enabled=False):
            decoder = in_dtype(decoder, dtype)
            return decoder.decode(cost_map, image_features, pooling, top_k, auxiliary)

    def decode(
        self,
        cost_map: Tensor,
        image_features: Sequence[Tensor],
        pooling: tuple[int, int],
        top_k: int,
        auxiliary: bool,
    ) -> DecoderOutput:
        """:meth:`forward` in the precision of its parameters."""
        num_images, num_classes = cost_map.shape[:2]
        if top_k and num_images != 1:
            raise ValueError(f"early rejection works on one image at a time, not on {num_images}")
        if top_k and auxiliary:
            raise ValueError("auxiliary logits are of all classes: ask for them without top_k")
        chunk = self.chunk_elements or (1 << 20 if cost_map.device.type == "cpu" else 1 << 25)
        if torch.is_grad_enabled() or num_images != 1:
            chunk = 0
        cost = cost_map.flatten(0, 1)
        x = None  # (B * T, dim, H, W), the input of a level
        survivors = torch.arange(num_classes, device=cost.device)
        aux_logits, links = [], []
        for level, image_feature in zip(self.levels, image_features, strict=True):
            if top_k and top_k < len(cost):
                scores = self.score(level.aux_head, x, cost, chunk)
                keep = union_of_top_k(scores, top_k)
                if len(keep) < len(cost):
                    cost, survivors = cost.index_select(0, keep), survivors[keep]
                    if x is not None:
                        x = x.permute(0, 2, 3, 1).index_select(0, keep).permute(0, 3, 1, 2)
            if x is None:
                x = self.conv7(cost, self.cost_conv.weight, self.cost_conv.bias, chunk)
            if auxiliary:
                # As released the auxiliary losses train nothing but their heads.
                own = x.detach() if self.detach_auxiliary else x
                logits = level.aux_head(own)  # (B * T, 1, H, W)
                aux_logits.append(logits.view(num_images, -1, *logits.shape[-2:]))
            if chunk:
                links.append(as_linear(level.cost_guidance[0]))
                cost = cost.contiguous(memory_format=torch.channels_last)
                x = level.infer(
                    x,
                    cost,
                    image_feature,
                    links=links,
                    head=self.head if level is self.levels[-1] else None,
                    pooling=pooling,
                    chunk=chunk,
                )
            else:
                x, cost = level(x, cost, image_feature, pooling, self.checkpoints)
        logits = x if chunk else self.head(x)
        return DecoderOutput(
            logits.view(num_images, -1, *logits.shape[-2:]), survivors, tuple(aux_logits)
        )

    def conv7(self, cost: Tensor, weight: Tensor, bias: Tensor, chunk: int) -> Tensor:
        """A 7×7 convolution of (N, P, H, W), in channels-last memory and the weight's precision."""
        # Transforming the weights pays from about this many classes on. The transforms' rounding
        # is float32's, so that half precision has to do without.
        if chunk and len(cost) >= 16 and weight.dtype == torch.float32:
            classes = max(32, chunk // cost[0].numel())
            return spectral_conv(cost, weight, bias, classes)
        cost = cost.to(weight.dtype, memory_format=torch.channels_last)
        x = F.conv2d(cost, weight, bias, padding=3)
        return x.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def score(self, head: nn.Conv2d, x: Tensor | None, cost: Tensor, chunk: int) -> Tensor:
        """The logits (T, H, W) of a level's auxiliary head.

        Args:
            head: the auxiliary head.
            x: (T, dim, H, W), the level's input; None before the first level, where it is the 7×7
                convolution of the cost map.
            cost: (T, P, H, W), the cost map.
            chunk: elements that are worked on at a time; 0 for all.
        """
        if x is None:
            # Head and convolution are linear. The head's nine taps go into the convolution, which
            # then has nine output channels instead of hidden_dim, for classes that may be rejected.
            taps = head.weight[0].flatten(1).float()  # (hidden_dim, 9)
            weight = torch.einsum("ct,cpij->tpij", taps, self.cost_conv.weight.float())
            bias = self.cost_conv.bias.float() @ taps
            return sum_of_taps(self.conv7(cost, weight, bias, chunk), head.bias.float())
        if not chunk:
            return head(x)[:, 0]
        parts = x.split(max(1, chunk // x[0].numel()))
        return torch.cat([conv_to_one(part, head)[:, 0] for part in parts])


def union_of_top_k(logits: Tensor, k: int) -> Tensor:
    """The classes that are among the k best of at least one pixel.

    Args:
        logits: (T, H, W).
        k: 1 <= k <= T.

    Returns:
        Ascending class indices, (T',) with k <= T' <= T.
    """
    return logits.topk(k, dim=0).indices.unique()
