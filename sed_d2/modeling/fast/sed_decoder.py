"""SED's decoder in place, a few classes or positions at a time."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.head_output import HeadOutput
from ..sed import decoder as plain
from .class_attention import class_attention_, fuse_qkv
from .conv import conv_to_one, cost_guidance, sum_taps, up_as_linear
from .convnext import convnext_block_
from .spectral import spectral_conv
from .weights import in_dtype

#: Elements of a feature map that are worked on at a time: 4 MB of float32 suit the caches of a
#: CPU, 128 MB keep a large device busy.
CPU_CHUNK, CHUNK = 1 << 20, 1 << 25

#: Classes from which on the spectral convolution pays for the transform of its weights.
LEAST_SPECTRAL_CLASSES = 16


class InputLayers(NamedTuple):
    """The layers that read the cost map, for its P templates or their R components.

    Attributes:
        cost_weight: (dim, R, 7, 7).
        cost_bias: (dim,).
        up: the first level's cost guidance, see :func:`up_as_linear`.
        score_weight: (9, R, 7, 7) float32; the nine taps of the first auxiliary head after the
            7×7 convolution. Both are linear, so that classes that may be rejected need nine output
            channels instead of dim.
        score_bias: (9,) float32.
    """

    cost_weight: Tensor
    cost_bias: Tensor
    up: tuple[Tensor, Tensor]
    score_weight: Tensor
    score_bias: Tensor


class FastDecoder:
    """``GradualFusionDecoder.forward`` of one image, in place and in bounded memory.

    Args:
        decoder: the plain form.
        precision: of all that is computed.
        chunk_elements: see :class:`FastSEDHead`.
    """

    def __init__(
        self, decoder: plain.GradualFusionDecoder, precision: torch.dtype, chunk_elements: int
    ):
        self.plain = decoder
        self.precision = precision
        on_cpu = decoder.cost_conv.weight.device.type == "cpu"
        self.chunk = chunk_elements or (CPU_CHUNK if on_cpu else CHUNK)
        # The transforms round as float32 does, which half precision cannot afford.
        self.spectral = on_cpu
        self.levels = [FastLevel(level, precision, self.chunk) for level in decoder.levels]
        self.head = in_dtype(decoder.head, precision)
        self.input_layers = self.fold_input(None)

    def fold_input(self, basis: Tensor | None) -> InputLayers:
        """Fold a basis (P, R) of the templates into the layers that read them: they are linear."""
        conv, level = self.plain.cost_conv, self.plain.levels[0]
        up = level.cost_guidance[0]
        weight: Tensor = conv.weight
        bias: Tensor = conv.get_parameter("bias")
        up_weight: Tensor = up.get_parameter("weight")
        if basis is not None:
            weight = torch.einsum("ophw,pr->orhw", weight, basis)
            up_weight = torch.einsum("pohw,pr->rohw", up_weight, basis)
        taps = level.aux_head.weight[0].flatten(1)  # (dim, 9)
        up_weight, up_bias = up_as_linear(up, up_weight)
        return InputLayers(
            weight.to(self.precision),
            bias.to(self.precision),
            (up_weight.to(self.precision), up_bias.to(self.precision)),
            torch.einsum("ct,cpij->tpij", taps, weight),
            bias @ taps,
        )

    def __call__(
        self,
        cost: Tensor,
        image_features: Sequence[Tensor],
        layers: InputLayers,
        *,
        pooling: tuple[int, int],
        top_k: int,
    ) -> HeadOutput:
        """Decode the cost map (T, R, H, W) of one image; all has the form's precision."""
        survivors = torch.arange(len(cost), device=cost.device)
        x: Tensor | None = None
        ups: list[tuple[Tensor, Tensor]] = []
        for i, (level, image_feature) in enumerate(zip(self.levels, image_features, strict=True)):
            if top_k and top_k < len(cost):
                scores = self._score(cost, layers) if x is None else level.score(x)
                keep = plain.union_of_top_k(scores, top_k)
                if len(keep) < len(cost):
                    cost, survivors = cost.index_select(0, keep), survivors[keep]
                    if x is not None:
                        x = x.permute(0, 2, 3, 1).index_select(0, keep).permute(0, 3, 1, 2)
            if x is None:
                x = self._conv7(cost, layers.cost_weight, layers.cost_bias)
                cost = cost.contiguous(memory_format=torch.channels_last)
            ups.append(layers.up if i == 0 else level.up)
            last = level is self.levels[-1]
            x = level(x, cost, image_feature, ups, self.head if last else None, pooling)
        assert x is not None  # there is a level
        return HeadOutput(x.transpose(0, 1), survivors)

    def _score(self, cost: Tensor, layers: InputLayers) -> Tensor:
        """Compute the first auxiliary head's logits (T, H, W) before the 7×7 convolution."""
        taps = self._conv7(cost, layers.score_weight, layers.score_bias)
        return sum_taps(taps, self.plain.levels[0].aux_head.get_parameter("bias").float())

    def _conv7(self, cost: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Convolve (N, R, H, W) in the weight's precision, to channels last."""
        spectral = self.spectral and weight.dtype == torch.float32
        if spectral and len(cost) >= LEAST_SPECTRAL_CLASSES:
            return spectral_conv(cost, weight, bias, max(32, self.chunk // cost[0].numel()))
        cost = cost.to(weight.dtype, memory_format=torch.channels_last)
        x = F.conv2d(cost, weight, bias, padding=weight.shape[-1] // 2)
        return x.contiguous(memory_format=torch.channels_last)


class FastLevel:
    """``FusionLevel.forward`` of one image.

    Args:
        level: the plain form.
        precision: of all that is computed.
        chunk: elements that are worked on at a time.
    """

    def __init__(self, level: plain.FusionLevel, precision: torch.dtype, chunk: int):
        self.chunk = chunk
        self.plain = in_dtype(level, precision)
        self.qkv = fuse_qkv(self.plain.fam.classes.attention)
        self.up = up_as_linear(self.plain.cost_guidance[0])
        self.sfm = FastSFM(level.sfm, self.plain.sfm)

    def score(self, x: Tensor) -> Tensor:
        """Compute the auxiliary head's logits (T, H, W)."""
        parts = x.split(max(1, self.chunk // x[0].numel()))
        return torch.cat([conv_to_one(part, self.plain.aux_head)[:, 0] for part in parts])

    def __call__(
        self,
        x: Tensor,
        cost: Tensor,
        image_feature: Tensor,
        ups: Sequence[tuple[Tensor, Tensor]],
        head: nn.Conv2d | None,
        pooling: tuple[int, int],
    ) -> Tensor:
        """Decode one level.

        Args:
            x: (T, dim, H, W) channels last; it is overwritten.
            cost: (T, R, H0, W0), the cost map, channels last.
            image_feature: (1, image_dim, 2H, 2W).
            ups: the layers of :func:`cost_guidance` up to this level. Computing it anew for a few
                classes costs little time, and it is never held for all of them.
            head: follows the last level.
            pooling: (height, width) of class attention's cells.

        Returns:
            (T, out_dim, 2H, 2W) channels last, or (T, 1, 2H, 2W) with a head.
        """
        block = self.plain.fam.spatial
        layers = (block.dwconv, block.norm, block.pwconv1, block.pwconv2, block.gamma)
        convnext_block_(x, *layers, self.chunk)
        class_attention_(self.plain.fam.classes, self.qkv, x, pooling, self.chunk)
        shared = self.sfm.shared(self.plain.image_guidance(image_feature))
        out_dim, height, width = (1 if head else shared.shape[1]), *shared.shape[-2:]
        output = x.new_empty(len(x), height, width, out_dim).permute(0, 3, 1, 2)
        step = max(1, self.chunk // shared.numel())
        parts = (tensor.split(step) for tensor in (x, cost, output))
        for x_part, cost_part, out in zip(*parts, strict=True):
            guidance = cost_guidance(ups, cost_part)
            if head:
                out.copy_(conv_to_one(self.sfm(x_part, shared, guidance), head))
            else:
                self.sfm(x_part, shared, guidance, out=out)
        return output


class FastSFM:
    """``SFM.forward``, with ``up`` folded into conv1.

    Args:
        sfm: in the precision that weights are folded in.
        cast: the same in the precision that is computed.
    """

    def __init__(self, sfm: plain.SFM, cast: plain.SFM):
        self.cast = cast
        up_weight, _, _ = sfm.split_conv1()
        _, self.image_weight, self.cost_weight = (w.contiguous() for w in cast.split_conv1())
        self.up_weight = compose_up(sfm.up.weight, up_weight).to(cast.up.weight.dtype)
        # conv1 of up's bias, a constant map but for the border, where conv1 pads with zeros.
        self.bias_weight = torch.einsum("i,oihw->ohw", sfm.up.bias, up_weight).unsqueeze(1)
        self.bias_weight = self.bias_weight.to(cast.up.weight.dtype)

    def shared(self, image_guidance: Tensor) -> Tensor:
        """Compute conv1's part that all classes share: image guidance and ``up``'s bias.

        Args:
            image_guidance: (1, g, 2H, 2W).

        Returns:
            (1, out_dim, 2H, 2W) channels last.
        """
        ones = image_guidance.new_ones(1, 1, *image_guidance.shape[-2:])
        y = F.conv2d(image_guidance, self.image_weight, padding=1)
        y = y + F.conv2d(ones, self.bias_weight, padding=1)
        return y.contiguous(memory_format=torch.channels_last)

    def __call__(
        self, x: Tensor, shared: Tensor, guidance: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """Fuse some classes.

        Args:
            x: (n, dim, H, W).
            shared: see :meth:`shared`.
            guidance: the cost guidance (n, g, 2H, 2W).
            out: where the result is written; None for a new tensor.

        Returns:
            (n, out_dim, 2H, 2W).
        """
        y = F.conv_transpose2d(x, self.up_weight, stride=2, padding=1)
        y += F.conv2d(guidance, self.cost_weight, padding=1)
        y += shared
        y = F.relu(self.cast.norm1(y), inplace=True)
        y = self.cast.norm2(self.cast.conv2(y))
        return F.relu(y, inplace=True) if out is None else torch.clamp_min(y, 0, out=out)


def compose_up(up_weight: Tensor, conv_weight: Tensor) -> Tensor:
    """Compose a 2×2 transposed convolution of stride 2 and a 3×3 convolution padded by 1.

    With u = up(x), row o of the convolution sums w[t] u[o + t - 1] over the taps t, and row i of x
    adds up[k] x[i] to row 2i + k of u: so it adds up[k] w[t] x[i] to row 2i + a - 1, where
    a = k - t + 2. This is a transposed convolution of stride 2 and padding 1 by
    W[a] = sum over t of up[a + t - 2] w[t], itself a convolution.

    Args:
        up_weight: (dim, up_dim, 2, 2).
        conv_weight: (out_dim, up_dim, 3, 3).

    Returns:
        W, (dim, out_dim, 4, 4).
    """
    return F.conv2d(up_weight, conv_weight, padding=2)
