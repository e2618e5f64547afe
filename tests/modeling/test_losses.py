import math

import pytest
import torch
from torch.nn import functional as F

from sed_d2.modeling.losses import sem_seg_loss

# Two classes, a row of two pixels: the first has class 1, the second is ignored.
LOGITS = torch.tensor([[[[0.0, 0.0]], [[math.log(3), 0.0]]]])
TARGET = torch.tensor([[[1, 255]]])


def test_ignored_pixels_are_negatives_of_every_class():
    # -log of: 1 - 1/2, 1 - 1/2, sigmoid(log 3) = 3/4, 1 - 1/2
    expected = (3 * math.log(2) + math.log(4 / 3)) / 4
    assert sem_seg_loss(LOGITS, TARGET, 255).item() == pytest.approx(expected)


def test_ignored_pixels_can_be_left_out():
    expected = (math.log(2) + math.log(4 / 3)) / 2
    loss = sem_seg_loss(LOGITS, TARGET, 255, mask_ignored=True)
    assert loss.item() == pytest.approx(expected)
    nothing = torch.full_like(TARGET, 255)
    assert sem_seg_loss(LOGITS, nothing, 255, mask_ignored=True).item() == 0


def test_it_is_torch_s_bce_on_upsampled_logits():
    logits = torch.randn(2, 5, 4, 4, requires_grad=True)
    target = torch.randint(0, 5, (2, 8, 8))
    loss = sem_seg_loss(logits, target, 255)
    (ours,) = torch.autograd.grad(loss, logits)
    upsampled = F.interpolate(logits, size=(8, 8), mode="bilinear", align_corners=False)
    one_hot = F.one_hot(target, 5).permute(0, 3, 1, 2).float()
    reference = F.binary_cross_entropy_with_logits(upsampled, one_hot)
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(ours, torch.autograd.grad(reference, logits)[0])
