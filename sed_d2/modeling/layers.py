"""The parts of one decoder level: FAM (spatial and class fusion) and SFM (skip-layer fusion).

Every part sees the classes of an image as a batch: ``(N, C, H, W)`` with N = B * T, in
channels-last memory, so that the linear layers work on ``(N, H, W, C)`` without a copy.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        y = F.gelu(self.pwconv1(y))
        # gamma * (W y + b) = (gamma W) y + gamma b: scale the small weight, not the large result.
        weight = self.gamma.unsqueeze(1) * self.pwconv2.weight
        y = F.linear(y, weight, self.gamma * self.pwconv2.bias)
        return x + y.permute(0, 3, 1, 2)


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
        qkv = F.linear(x, weight, bias).view(*x.shape[:3], 3, self.num_heads, -1)
        # (3, B * S * heads, T, d): each head of each position is one matrix of T tokens.
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

    def forward(
        self, x: Tensor, num_images: int, pooling: tuple[int, int], chunk: int = 0
    ) -> Tensor:
        """(B * T, C, H, W) -> the same shape.

        Args:
            x: the classes' features.
            num_images: B.
            pooling: the (height, width) of a cell.
            chunk: in inference, the elements of x that attend at a time; 0 for all at once.
        """
        size = x.shape[-2:]
        pooled = x if tuple(pooling) == (1, 1) else F.avg_pool2d(x, pooling)
        height, width = pooled.shape[-2:]
        y = pooled.permute(0, 2, 3, 1).reshape(num_images, -1, height * width, x.shape[1])
        if torch.is_grad_enabled() or not chunk:
            y = self.attend(y)
        else:
            # Positions are independent of one another, classes are not.
            step = max(1, chunk // (y.shape[0] * y.shape[1] * y.shape[3]))
            attended = torch.empty_like(y)
            for part, out in zip(y.split(step, 2), attended.split(step, 2), strict=True):
                out.copy_(self.attend(part))
            y = attended
        y = y.view(-1, height, width, x.shape[1]).permute(0, 3, 1, 2)
        if (height, width) != size:
            y = F.interpolate(y, size=size, mode="bilinear", align_corners=True)
        return x + y

    def attend(self, x: Tensor) -> Tensor:
        """The transformer layer on (B, T, S, C); every position is on its own."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


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
            (B, out_dim, 2H, 2W).
        """
        up_weight, image_weight, _ = self.conv1_parts()
        # The bias is a constant map, but not beyond the border, where conv1 pads with zeros.
        bias = self.up.bias.view(1, -1, 1, 1).expand(1, -1, *image_guidance.shape[-2:])
        return F.conv2d(image_guidance, image_weight, padding=1) + F.conv2d(
            bias, up_weight, padding=1
        )

    def composed_weight(self) -> Tensor:
        """``up`` followed by its part of conv1, as one 2×2 convolution, (4 * out_dim, dim, 2, 2).

        Nothing nonlinear lies between them. With u = up(x), output row 2i + r of conv1 sums
        u[2i + r + t - 1] over the taps t = 0, 1, 2. Row 2i + r + t - 1 of u comes from row
        i + (r + t - 1) // 2 of x, by tap (r + t - 1) % 2 of ``up``: two rows of x, i - 1 and i for
        r = 0, i and i + 1 for r = 1. Columns alike; the four (r, s) are output channels.
        """
        # How tap a of the composition, conv1's tap t and up's tap k meet, for r = 0 and 1.
        meet = self.up.weight.new_zeros(2, 2, 3, 2)  # (r, a, t, k)
        for r in range(2):
            for t in range(3):
                row, k = divmod(r + t - 1, 2)
                meet[r, row + 1 - r, t, k] = 1
        up_weight, _, _ = self.conv1_parts()
        weight = torch.einsum("outv,cukl,ratk,sbvl->rsocab", up_weight, self.up.weight, meet, meet)
        return weight.flatten(0, 2)

    def forward(self, x: Tensor, shared: Tensor, cost_guidance: Tensor, composed: Tensor) -> Tensor:
        """Fuse one level.

        Args:
            x: (B * T, dim, H, W).
            shared: see :meth:`shared`.
            cost_guidance: (B * T, g, 2H, 2W).
            composed: see :meth:`composed_weight`.

        Returns:
            (B * T, out_dim, 2H, 2W).
        """
        num_images, out_dim, height, width = shared.shape
        y = F.conv2d(cost_guidance, self.conv1_parts()[2], padding=1)
        y = y.unflatten(0, (num_images, -1)).add_(shared.unsqueeze(1))
        # Rows i - 1 and i of x make row i of parity 0, rows i and i + 1 that of parity 1: with a
        # border of zeros, parity 1 is what the convolution gives one row further.
        up = F.conv2d(x, composed, padding=1)  # (N, 4 * out_dim, H + 1, W + 1)
        up = up.unflatten(1, (2, 2, out_dim))
        y = y.flatten(0, 1)
        for r in range(2):
            for s in range(2):
                part = up[:, r, s, :, r : r + height // 2, s : s + width // 2]
                y[:, :, r::2, s::2] += part
        y = F.relu(self.norm1(y), inplace=True)
        return F.relu(self.norm2(self.conv2(y)), inplace=True)
