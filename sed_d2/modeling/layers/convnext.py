"""ConvNeXt block (Liu et al., CVPR 2022, arXiv 2201.03545)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpointed import Checkpointed


class ConvNeXtBlock(Checkpointed):
    """``x + gamma * Linear(GELU(Linear(LayerNorm(DepthwiseConv(x)))))``, hidden width 4 * dim.

    Args:
        dim: C.
        kernel_size: side of the depthwise kernel, odd.

    Raises:
        ValueError: the kernel size is even.
    """

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(
                f"the kernel size {kernel_size} of a ConvNeXt block is even: use odd numbers in "
                "MODEL.SEM_SEG_HEAD.KERNEL_SIZES"
            )
        self.dwconv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of each map: (N, C, H, W) -> (N, C, H, W)."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # (N, H, W, C)
        # Fold gamma into the second layer, so that the backward pass stores no map for it.
        weight, bias = self.gamma.unsqueeze(1) * self.pwconv2.weight, self.gamma * self.pwconv2.bias
        y = F.linear(F.gelu(self.pwconv1(y)), weight, bias)  # (N, H, W, C)
        return x + y.permute(0, 3, 1, 2)
