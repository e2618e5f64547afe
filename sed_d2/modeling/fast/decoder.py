"""The parts of one decoder level: FAM (spatial and class fusion) and SFM (skip-layer fusion).

Every part sees the classes of an image as a batch: ``(N, C, H, W)`` with N = B * T, in
channels-last memory, so that the linear layers work on ``(N, H, W, C)`` without a copy.

``forward`` is what training differentiates. ``update_`` and ``infer`` are the same functions for
inference: they work in place on a few classes or positions at a time.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .linear import add_mlp_, convnext_block_, linear


def conv_to_one(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 3×3 convolution to one channel, for inference.

    In float32 the taps are nine outputs of a linear layer, shifted and added: a convolution with
    so few output channels leaves most of a vector unit idle. In half precision nine roundings
    would show.

    Args:
        x: (N, C, H, W).
        conv: padded by 1.

    Returns:
        (N, 1, H, W).
    """
    if x.dtype != torch.float32:
        return conv(x)
    weight = conv.weight[0].permute(1, 2, 0).flatten(0, 1).contiguous()  # (9, C)
    taps = (weight @ x.flatten(2)).unflatten(2, x.shape[-2:])  # (N, 9, H, W)
    return sum_of_taps(taps, conv.bias).unsqueeze(1)


def sum_of_taps(taps: Tensor, bias: Tensor) -> Tensor:
    """What a 3×3 convolution padded by 1 adds up.

    Args:
        taps: (N, 9, H, W), each of its taps' products with the channels, where the channels are.
        bias: (1,).

    Returns:
        (N, H, W).
    """
    height, width = taps.shape[-2:]
    y = taps[:, 4] + bias
    for tap in (0, 1, 2, 3, 5, 6, 7, 8):
        down, right = tap // 3 - 1, tap % 3 - 1
        top, bottom = max(0, -down), height - max(0, down)
        left, end = max(0, -right), width - max(0, right)
        y[:, top:bottom, left:end] += taps[
            :, tap, top + down : bottom + down, left + right : end + right
        ]
    return y


def as_linear(link: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """Weight (2 * 2 * g, C) and bias of a 2×2 transposed convolution of stride 2, C -> g channels.

    It makes four positions of one, and no two overlap: a linear layer to 2 * 2 * g channels.
    """
    weight = link.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
    return weight, link.bias.repeat(4)


def guidance_chain(links: Sequence[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """2×2 transposed convolutions of stride 2, each followed by ReLU, for inference.

    Args:
        links: L of them, see :func:`as_linear`, the last one with g output channels.
        x: (N, C, H, W) in channels-last memory.

    Returns:
        (N, g, H * 2**L, W * 2**L) in channels-last memory.
    """
    y = x.permute(0, 2, 3, 1)  # (N, H, W, C)
    for weight, bias in links:
        count, height, width, channels = y.shape
        y = F.relu_(linear(y.reshape(-1, channels), weight, bias))
        y = y.view(count, height, width, 2, 2, -1).transpose(2, 3)
        y = y.reshape(count, 2 * height, 2 * width, -1)
    return y.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Spatial fusion: a ConvNeXt block with a large depthwise kernel (SED, section 3.2, FAM).

    ``x + gamma * Linear(GELU(Linear(LayerNorm(DepthwiseConv(x)))))``, hidden width 4 * dim.
    """

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # (N, H, W, C)
        # gamma * (W y + b) = (gamma W) y + gamma b, so that no map is kept for gamma's gradient.
        weight, bias = self.gamma.unsqueeze(1) * self.pwconv2.weight, self.gamma * self.pwconv2.bias
        y = F.linear(F.gelu(self.pwconv1(y)), weight, bias)
        return x + y.permute(0, 3, 1, 2)

    def update_(self, x: Tensor, chunk: int) -> None:
        """:meth:`forward` in place, see :func:`convnext_block_`."""
        convnext_block_(x, self.dwconv, self.norm, self.pwconv1, self.pwconv2, self.gamma, chunk)


class LinearAttention(nn.Module):
    """Softmax-free attention with feature map elu(.) + 1 (Katharopoulos et al. 2020, eq. 5-7).

    Its cost is linear in the number of tokens: the keys and values enter only through the sums
    ``K^T V`` and ``sum(K)``. There is no output projection and no positional encoding.
    """

    eps = 1e-6

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"class attention of width {dim} cannot be split into {num_heads} heads: "
                "choose MODEL.SEM_SEG_HEAD.NUM_HEADS so that it divides the decoder's widths"
            )
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, S, C) -> (B, T, S, C): the T tokens at each of the S positions attend."""
        batch, tokens, positions, _ = x.shape
        layers = (self.q, self.k, self.v)
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        # (3, B * S * heads, T, d): each head of each position is one matrix of T tokens.
        qkv = F.linear(x, weight, bias).view(*x.shape[:3], 3, self.num_heads, -1)
        qkv = qkv.permute(3, 0, 2, 4, 1, 5).flatten(1, 3)
        q, k = (F.elu(qkv[:2]) + 1).unbind()
        # Numerator q (K^T V) and normaliser q sum(K) + eps, both divided by T, so that no sum
        # over the classes overflows in half precision.
        zero = k.new_zeros(1, 1, 1)
        kv = torch.baddbmm(zero, k.transpose(1, 2), qkv[2], beta=0, alpha=1 / tokens)
        y = torch.bmm(q, kv)
        # In float32, because eps / T is nothing in half precision.
        normaliser = torch.bmm(q, k.mean(dim=1).unsqueeze(2)).float() + self.eps / tokens
        y = (y / normaliser).to(y.dtype).view(batch, positions, self.num_heads, tokens, -1)
        return y.permute(0, 3, 1, 2, 4).reshape(x.shape)

    def joined(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of q, k and v as one layer, for :meth:`add_`.

        q and k come in units of ln 2, because in float32 torch's exp2 takes a third of the time of
        exp.
        Each head of v has one more output, which is always 1: what the products make of it is the
        normaliser.
        """
        dim = self.v.in_features
        weight = self.v.weight.view(self.num_heads, -1, dim)
        weight = F.pad(weight, (0, 0, 0, 1)).flatten(0, 1)
        bias = F.pad(self.v.bias.view(self.num_heads, -1), (0, 1), value=1.0).flatten()
        return (
            torch.cat([self.q.weight / math.log(2), self.k.weight / math.log(2), weight]),
            torch.cat([self.q.bias / math.log(2), self.k.bias / math.log(2), bias]),
        )

    def add_(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> None:
        """``x += forward(y)``, position by position, in place.

        Args:
            x: (S, T, C), contiguous.
            y: (S, T, C), contiguous.
            weight: see :meth:`joined`.
            bias: see :meth:`joined`.
        """
        positions, tokens, dim = y.shape
        width = dim // self.num_heads
        qkv = linear(y.flatten(0, 1), weight, bias).view(positions, tokens, -1)
        qk, v = qkv.tensor_split([2 * dim], dim=-1)
        # elu(x) + 1 = exp(min(x, 0)) + max(x, 0), and exp(x) = 2^(x / ln 2)
        qk = qk.clamp(max=0).exp2_().add_(qk.clamp_min_(0), alpha=math.log(2))
        # Narrow heads share a product, in which what one head's k makes of another's v is masked:
        # one product of 32 columns takes less time than four of 8.
        heads = math.gcd(self.num_heads, max(1, 32 // width))
        others = torch.block_diag(*[y.new_ones(width, width + 1)] * heads) == 0
        groups = zip(
            *(z.split(heads * width, dim=-1) for z in qk.chunk(2, dim=-1)),
            v.split(heads * (width + 1), dim=-1),
            x.view(positions, tokens, self.num_heads, width).split(heads, dim=2),
            strict=True,
        )
        unused = y.new_empty(1)
        for q, k, own_v, own_x in groups:
            # Divided by T, as in forward: a sum over many classes would overflow half precision.
            kv = torch.baddbmm(unused, k.transpose(1, 2), own_v, beta=0, alpha=1 / tokens)
            z = torch.bmm(q, kv.masked_fill_(others, 0)).unflatten(-1, (heads, -1)).float()
            # z: (S, T, heads, d + 1). Mixed with half precision addcdiv takes twice the time.
            normaliser = z[..., -1:] + self.eps / tokens
            own_x.copy_(torch.addcdiv(own_x.float(), z[..., :-1], normaliser))


class ClassAttention(nn.Module):
    """Class fusion: at each position the T classes are tokens of a small transformer layer.

    Average pooling bounds the number of positions; nothing depends on the order or the number
    of classes (SED, section 3.2, FAM).
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = LinearAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, num_images: int, pooling: tuple[int, int]) -> Tensor:
        """(B * T, C, H, W) -> the same shape.

        Args:
            x: the classes' features.
            num_images: B.
            pooling: the (height, width) of a cell.
        """
        pooled = x if tuple(pooling) == (1, 1) else F.avg_pool2d(x, pooling)
        height, width = pooled.shape[-2:]
        y = pooled.permute(0, 2, 3, 1).reshape(num_images, -1, height * width, x.shape[1])
        y = y + self.attention(self.norm1(y))
        y = y + self.mlp(self.norm2(y))
        y = y.view(-1, height, width, x.shape[1]).permute(0, 3, 1, 2)
        if pooled is not x:
            y = F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=True)
        return x + y

    def update_(self, x: Tensor, pooling: tuple[int, int], chunk: int) -> None:
        """:meth:`forward` in place, for one image.

        Args:
            x: (T, C, H, W) in channels-last memory.
            pooling: the (height, width) of a cell.
            chunk: elements that are worked on at a time (at least one position).
        """
        pools = tuple(pooling) != (1, 1)
        tokens = (F.avg_pool2d(x, pooling) if pools else x).permute(0, 2, 3, 1)  # (T, h, w, C)
        height, width = tokens.shape[1:3]
        tokens = tokens.flatten(1, 2)
        weight, bias = self.attention.joined()
        first, _, second = self.mlp
        scale = x.new_ones(())
        # Positions are independent of one another, classes are not. A position's tokens side by
        # side are matrices as they are, for each head, and stay in the cache.
        tokens = tokens.transpose(0, 1)
        for part in tokens.split(max(1, chunk // (len(x) * first.out_features))):
            y = part.clone(memory_format=torch.contiguous_format)  # (S, T, C)
            self.attention.add_(y, self.norm1(y), weight, bias)
            rows = y.flatten(0, 1)
            add_mlp_(rows, self.norm2(rows), first, F.relu_, second, scale, chunk)
            if pools:
                part.copy_(y)
            else:
                part += y
        if pools:
            y = tokens.unflatten(0, (height, width)).permute(2, 3, 0, 1)
            classes = max(1, chunk // x[0].numel())
            for x_part, y_part in zip(x.split(classes), y.split(classes), strict=True):
                x_part += F.interpolate(
                    y_part, size=x.shape[-2:], mode="bilinear", align_corners=True
                )


class FAM(nn.Module):
    """Feature aggregation module: spatial fusion, then class fusion."""

    def __init__(self, dim: int, kernel_size: int, num_heads: int):
        super().__init__()
        self.spatial = ConvNeXtBlock(dim, kernel_size)
        self.classes = ClassAttention(dim, num_heads)


class SFM(nn.Module):
    """Skip-layer fusion module: doubles the resolution and mixes in both guidances.

    The upsampled classes (dim - g channels), the image guidance and the cost guidance (g
    channels each) pass two 3×3 convolutions with GroupNorm and ReLU (SED, section 3.2, SFM).

    The first convolution is linear, so ``conv1(cat[up, image, cost])`` is the sum of a part that
    all classes share and two parts of each class: :meth:`shared` makes the first once per image,
    :meth:`forward` adds the others.
    """

    def __init__(self, dim: int, out_dim: int, guidance_dim: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(dim, dim - guidance_dim, 2, stride=2)
        self.conv1 = nn.Conv2d(dim + guidance_dim, out_dim, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(max(out_dim // 16, 1), out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(max(out_dim // 16, 1), out_dim)

    def conv1_parts(self) -> tuple[Tensor, ...]:
        """conv1's weights for the upsampled classes, the image guidance and the cost guidance."""
        up = self.up.out_channels
        guidance = (self.conv1.in_channels - up) // 2
        return self.conv1.weight.split([up, guidance, guidance], dim=1)

    def shared(self, image_guidance: Tensor) -> Tensor:
        """What conv1 makes of the image guidance and of ``up``'s bias, the same for all classes.

        Args:
            image_guidance: (B, g, 2H, 2W).

        Returns:
            (B, out_dim, 2H, 2W) in channels-last memory.
        """
        up_weight, image_weight, _ = self.conv1_parts()
        # The bias is a constant map, but not beyond the border, where conv1 pads with zeros.
        bias = self.up.bias.view(1, -1, 1, 1).expand(1, -1, *image_guidance.shape[-2:])
        y = F.conv2d(image_guidance, image_weight, padding=1) + F.conv2d(bias, up_weight, padding=1)
        return y.contiguous(memory_format=torch.channels_last)

    def composed_weight(self) -> Tensor:
        """``up`` followed by its part of conv1, as one transposed convolution.

        Nothing nonlinear lies between them. With u = up(x), row o of conv1 sums w[t] u[o + t - 1]
        over the taps t, and row i of x adds up[k] x[i] to row 2i + k of u: so it adds
        up[k] w[t] x[i] to row 2i + a - 1, where a = k - t + 2. This is a transposed convolution of
        stride 2 and padding 1 by W[a] = sum over t of up[a + t - 2] w[t], itself a convolution.

        Returns:
            The weight, (dim, out_dim, 4, 4).
        """
        return F.conv2d(self.up.weight, self.conv1_parts()[0], padding=2)

    def forward(
        self,
        x: Tensor,
        shared: Tensor,
        cost_guidance: Tensor,
        composed: Tensor,
        out: Tensor | None = None,
    ) -> Tensor:
        """Fuse one level.

        Args:
            x: (B * T, dim, H, W).
            shared: see :meth:`shared`.
            cost_guidance: (B * T, g, 2H, 2W).
            composed: see :meth:`composed_weight`.
            out: where the answer is written, without gradients; None for a new tensor.

        Returns:
            (B * T, out_dim, 2H, 2W).
        """
        y = F.conv_transpose2d(x, composed, stride=2, padding=1)
        y += F.conv2d(cost_guidance, self.conv1_parts()[2], padding=1)
        y.unflatten(0, (len(shared), -1)).add_(shared.unsqueeze(1))
        y = F.relu(self.norm1(y), inplace=True)
        y = self.norm2(self.conv2(y))
        return F.relu(y, inplace=True) if out is None else torch.clamp_min(y, 0, out=out)
