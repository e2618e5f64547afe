"""Training loss: binary cross-entropy per class, over all classes or a sample of them."""

import torch
from torch import Tensor
from torch.nn import functional as F


def sem_seg_loss(
    logits: Tensor, target: Tensor, ignore_value: int, mask_ignored: bool = False
) -> Tensor:
    """Mean binary cross-entropy of every class at every pixel (SED, section 3.2).

    The logits are upsampled to the labels. As released, an ignored pixel is a negative of every
    class; ``mask_ignored`` excludes it instead.

    Args:
        logits: (B, T, h, w).
        target: (B, H, W) int64, 0..T-1 or ``ignore_value``.
        ignore_value: the label of pixels without a class.
        mask_ignored: exclude ignored pixels from the mean.

    Returns:
        A scalar; 0 if ``mask_ignored`` leaves no pixel.
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


def sample_classes(
    target: Tensor, num_classes: int, count: int, ignore_value: int
) -> tuple[Tensor, Tensor]:
    """Draw the classes of the labels and random others, ``count`` in all.

    The federated loss of large vocabularies (Zhou et al., arXiv 2103.07461), drawn uniformly.

    Args:
        target: (B, H, W) int64, 0..num_classes-1 or ``ignore_value``.
        num_classes: T.
        count: if the labels have more classes, exactly these are taken.
        ignore_value: the label of pixels without a class.

    Returns:
        (T',) ascending class indices, and the target as indices into them.
    """
    labelled = target != ignore_value
    # Classes of the labels come first, all others in random order.
    rank = torch.randperm(num_classes, device=target.device)
    present = target[labelled].unique()
    rank[present] = -1
    chosen = rank.argsort()[: max(count, len(present))].sort().values
    position = torch.full_like(rank, ignore_value)
    position[chosen] = torch.arange(len(chosen), device=target.device)
    return chosen, position[target.where(labelled, 0)].where(labelled, ignore_value)
