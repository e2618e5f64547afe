"""The training loss: binary cross-entropy per class over all decoder levels."""

from torch import Tensor
from torch.nn import functional as F


def sem_seg_loss(
    logits: Tensor, target: Tensor, ignore_value: int, mask_ignored: bool = False
) -> Tensor:
    """Mean binary cross-entropy of every class at every pixel (SED, section 3.2).

    The logits are upsampled to the labels. As in the released model an ignored pixel counts as
    a negative of every class; ``mask_ignored`` leaves it out instead.

    Args:
        logits: (B, T, h, w).
        target: (B, H, W) integers, 0..T-1 or ``ignore_value``.
        ignore_value: the label of pixels without a class.
        mask_ignored: leave ignored pixels out of the mean.

    Returns:
        A scalar; 0 when ``mask_ignored`` leaves no pixel.
    """
    logits = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
    labelled = (target != ignore_value).unsqueeze(1)  # (B, 1, H, W)
    index = target.unsqueeze(1).where(labelled, 0)
    # BCE(x, y) = softplus(x) - x y, and y is 1 only at the label: no one-hot tensor is needed.
    negative = F.softplus(logits)
    positive = logits.gather(1, index) * labelled
    if mask_ignored:
        pixels = labelled.sum().clamp(min=1)
        return ((negative * labelled).sum() - positive.sum()) / (pixels * logits.shape[1])
    return negative.mean() - positive.sum() / logits.numel()
