import math

import pytest
import torch
from torch.nn import functional as F

from sed_d2.modeling.losses import sample_classes, sem_seg_loss

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


def test_a_sample_has_the_classes_of_the_labels_and_others():
    target = torch.tensor([[[3, 7], [255, 3]]])
    seen = set()
    for _ in range(50):
        chosen, positions = sample_classes(target, 10, 4, ignore_value=255)
        assert len(chosen) == 4 and {3, 7} < set(chosen.tolist())
        assert torch.equal(chosen, chosen.sort().values)
        assert torch.equal(chosen[positions[0, [0, 0, 1], [0, 1, 1]]], torch.tensor([3, 7, 3]))
        assert positions[0, 1, 0] == 255
        seen |= set(chosen.tolist())
    assert seen == set(range(10))


def test_a_sample_leaves_out_no_class_of_the_labels():
    target = torch.tensor([[[3, 7], [255, 3]]])
    chosen, positions = sample_classes(target, 10, 1, ignore_value=255)
    assert chosen.tolist() == [3, 7]
    assert positions.tolist() == [[[0, 1], [255, 0]]]


def test_labels_without_a_class_sample_any():
    chosen, positions = sample_classes(torch.full((1, 2, 2), 255), 10, 3, ignore_value=255)
    assert len(chosen.unique()) == 3
    assert (positions == 255).all()
