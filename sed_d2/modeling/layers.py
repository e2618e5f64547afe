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
        y = self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


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
        shape = (*x.shape[:3], self.num_heads, -1)
        q = (F.elu(self.q(x)) + 1).view(shape)  # (B, T, S, heads, d)
        k = (F.elu(self.k(x)) + 1).view(shape)
        v = self.v(x).view(shape)
        kv = torch.einsum("btshd,btshe->bshde", k, v)
        normaliser = torch.einsum("btshd,bshd->btsh", q, k.sum(1)) + self.eps
        y = torch.einsum("btshd,bshde->btshe", q, kv) / normaliser.unsqueeze(-1)
        return y.flatten(3)


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
        """(B * T, C, H, W) -> the same shape; ``pooling`` is the (height, width) of a cell."""
        size = x.shape[-2:]
        pooled = x if tuple(pooling) == (1, 1) else F.avg_pool2d(x, pooling)
        height, width = pooled.shape[-2:]
        y = pooled.permute(0, 2, 3, 1).reshape(num_images, -1, height * width, x.shape[1])
        y = y + self.attention(self.norm1(y))  # (B, T, S, C)
        y = y + self.mlp(self.norm2(y))
        y = y.reshape(-1, height, width, x.shape[1]).permute(0, 3, 1, 2)
        if (height, width) != size:
            y = F.interpolate(y, size=size, mode="bilinear", align_corners=True)
        return x + y


class FAM(nn.Module):
    """Feature aggregation module: spatial fusion, then class fusion."""

    def __init__(self, dim: int, kernel_size: int, num_heads: int):
        super().__init__()
        self.spatial = ConvNeXtBlock(dim, kernel_size)
        self.classes = ClassAttention(dim, num_heads)

    def forward(self, x: Tensor, num_images: int, pooling: tuple[int, int]) -> Tensor:
        """(B * T, C, H, W) -> the same shape."""
        return self.classes(self.spatial(x), num_images, pooling)


class SFM(nn.Module):
    """Skip-layer fusion module: doubles the resolution and mixes in both guidances.

    The upsampled classes (dim - g channels), the image guidance and the cost guidance (g
    channels each) pass two 3×3 convolutions with GroupNorm and ReLU (SED, section 3.2, SFM).
    """

    def __init__(self, dim: int, out_dim: int, guidance_dim: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(dim, dim - guidance_dim, 2, stride=2)
        self.conv1 = nn.Conv2d(dim + guidance_dim, out_dim, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(max(out_dim // 16, 1), out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(max(out_dim // 16, 1), out_dim)

    def forward(self, x: Tensor, image_guidance: Tensor, cost_guidance: Tensor) -> Tensor:
        """Fuse one level.

        Args:
            x: (B * T, C, H, W).
            image_guidance: (B, g, 2H, 2W), the same for all classes of an image.
            cost_guidance: (B * T, g, 2H, 2W).

        Returns:
            (B * T, out_dim, 2H, 2W).
        """
        up = self.up(x)
        per_class = torch.cat([up, cost_guidance], dim=1)
        # conv(cat[up, image, cost]) = conv_up,cost(cat[up, cost]) + conv_image(image), because a
        # convolution is linear: the image's part is computed once, not once per class.
        first, last = up.shape[1], up.shape[1] + image_guidance.shape[1]
        weight = self.conv1.weight
        class_weight = torch.cat([weight[:, :first], weight[:, last:]], dim=1)
        shared = F.conv2d(image_guidance, weight[:, first:last], padding=1)
        y = F.conv2d(per_class, class_weight, padding=1)
        y = y.unflatten(0, (shared.shape[0], -1)) + shared.unsqueeze(1)
        y = F.relu(self.norm1(y.flatten(0, 1)))
        return F.relu(self.norm2(self.conv2(y)))
