"""The readout of words: which words names share, and what it does not teach."""

import numpy as np
import torch
from torch.nn import functional as F

from sed_d2.shapes.readout import WordReadout, attribute_values, soft_cross_entropy
from sed_d2.shapes.words import TRAIN_CLASSES

NAMES = list(TRAIN_CLASSES)


def test_attribute_values_share_words():
    (colours, _), (patterns, _), (forms, _) = map(attribute_values, range(3))
    assert (colours.shape[1], patterns.shape[1], forms.shape[1]) == (8 + 7, 8 + 2, 8 + 6)
    first, second = NAMES.index("red square"), NAMES.index("red striped circle")
    assert torch.equal(colours[first], colours[second])
    assert not torch.equal(patterns[first], patterns[second])
    assert not torch.equal(forms[first], forms[second])
    assert colours[NAMES.index("sky")] @ colours.sum(0) == 1  # a background shares no value


def test_values_that_make_a_held_out_name_are_known():
    """Of plain red things, circle and ring are held out; the others are trained."""
    forms, held_out = attribute_values(2)
    square = NAMES.index("red square")
    for shape in ("ring", "circle"):
        assert held_out[square, forms[NAMES.index(f"white striped {shape}")].argmax()] == 1
    assert held_out[square].sum() == 2
    assert held_out[NAMES.index("sky")].sum() == 0


def test_readout_does_not_teach_what_is_held_out():
    """A red square beside grass says nothing about circles and rings, but about crosses."""
    readout = WordReadout(4)
    targets = torch.zeros(1, len(NAMES))
    targets[0, NAMES.index("red square")] = targets[0, NAMES.index("grass")] = 0.5
    readout(F.normalize(torch.ones(1, 4), dim=-1), targets).backward()
    forms, _ = attribute_values(2)
    gradient = readout.layers[2].weight.grad.abs().sum(1)
    of_name = {name: gradient[row.argmax()] for name, row in zip(NAMES, forms, strict=True)}
    assert of_name["blue circle"] == of_name["blue ring"] == 0
    assert of_name["red cross"] > 0 and of_name["sky"] > 0


def test_soft_cross_entropy_of_known_probabilities():
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    targets = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    rows = [0.5 * np.log(2) + 0.5 * np.log(4), -np.log(0.8)]
    loss = soft_cross_entropy(logits, targets)
    np.testing.assert_allclose(loss, np.mean(rows), rtol=1e-6)
    loss = soft_cross_entropy(logits, targets, torch.tensor([3.0, 1.0]))
    np.testing.assert_allclose(loss, (3 * rows[0] + rows[1]) / 4, rtol=1e-6)
