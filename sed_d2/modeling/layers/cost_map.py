"""Cosine cost map of image and text embeddings."""

import torch
from torch import Tensor
from torch.nn import functional as F


def cost_map(embedding: Tensor, text: Tensor) -> Tensor:
    """Compute the cosine of every position with every class and template, without a logit scale.

    Args:
        embedding: (B, C, H, W), of any length.
        text: (T, P, C), unit vectors for cosines.

    Returns:
        (B, T, P, H, W) in [-1, 1] up to rounding.
    """
    unit = F.normalize(embedding.float(), dim=1)  # in float32: squares overflow in float16
    return torch.einsum("bchw,tpc->btphw", unit.to(embedding.dtype), text.to(embedding.dtype))
