"""Class fusion: a transformer layer in which the classes at a position are the tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpointed import Checkpointed


class LinearAttention(nn.Module):
    """Multi-head linear attention with the feature map elu(x) + 1, without output projection.

    Attention in time linear in the tokens (Katharopoulos et al., arXiv 2006.16236, eq. 7).

    Args:
        dim: C.
        num_heads: divides C.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    #: Added to the normaliser.
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
        """Let the T tokens of each of the N sequences attend: (N, T, C) -> (N, T, C)."""
        num_tokens = x.shape[1]
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1))  # (N, T, heads, d)
            for layer in (self.q, self.k, self.v)
        )
        q, k = F.elu(q) + 1, F.elu(k) + 1
        # Means over the classes and eps / T: the same quotient, and sums overflow in float16. In
        # float32, because eps / T underflows in float16.
        kv = torch.einsum("nthd,nthe->nhde", k / num_tokens, v)  # (N, heads, d, d)
        normaliser = torch.einsum("nthd,nhd->nth", q, k.mean(dim=1)).float() + self.eps / num_tokens
        y = torch.einsum("nthd,nhde->nthe", q, kv) / normaliser.unsqueeze(-1)
        return y.to(q.dtype).flatten(2)


class ClassAttention(Checkpointed):
    """Class fusion (SED, section 3.2): at each position the T classes attend to each other.

    ``y = pool(x); y += attention(norm1(y)); y += mlp(norm2(y)); x + upsample(y)``. Permuting the
    classes permutes the output, and the weights fit any number of classes.

    Args:
        dim: C.
        num_heads: heads of the attention.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = LinearAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, num_images: int, pooling: tuple[int, int]) -> Tensor:
        """Mix the classes of each image: (B * T, C, H, W) -> (B * T, C, H, W).

        Args:
            x: the features of the classes.
            num_images: B.
            pooling: (height, width) of the cells; a token is the average of one.
        """
        y = F.avg_pool2d(x, pooling) if tuple(pooling) != (1, 1) else x
        height, width = y.shape[-2:]
        y = y.unflatten(0, (num_images, -1)).permute(0, 3, 4, 1, 2)  # (B, h, w, T, C)
        y = y.flatten(0, 2)  # (B * h * w, T, C)
        y = y + self.attention(self.norm1(y))
        y = y + self.mlp(self.norm2(y))
        y = y.unflatten(0, (num_images, height, width)).permute(0, 3, 4, 1, 2).flatten(0, 1)
        if (height, width) != x.shape[-2:]:
            y = F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=True)
        return x + y
