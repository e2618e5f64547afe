"""Muon: its updates by hand."""

import torch
from torch import nn

from sed_d2.shapes.muon import Muon


def quintic(x: float) -> float:
    """Muon's polynomial, applied three times to a singular value."""
    for _ in range(3):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return x


def test_it_makes_singular_values_alike():
    """The polynomial acts on each singular value by itself: 3 and 4, of Frobenius norm 5."""
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.diag(torch.tensor([3.0, 4.0]))
    optimizer.step()
    update = torch.diag(torch.tensor([quintic(0.6), quintic(0.8)]))
    torch.testing.assert_close(weight.data, 0.95 * torch.ones(2, 2) - 0.1 * update)


def test_a_convolution_is_a_matrix_and_more_outputs_make_a_longer_step():
    """Four outputs of one input: the step is sqrt(4) as long; without gradient there is none."""
    weight = nn.Parameter(torch.zeros(4, 1, 1, 1).to(memory_format=torch.channels_last))
    idle = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight, idle], lr=0.1)
    weight.grad = torch.tensor([0.0, 3.0, 4.0, 0.0]).view(4, 1, 1, 1)
    optimizer.step()
    direction = torch.tensor([0.0, 0.6, 0.8, 0.0])
    torch.testing.assert_close(weight.data.flatten(), -0.1 * 2 * quintic(1.0) * direction)
    assert torch.equal(idle.data, torch.ones(2, 2))


def test_the_momentum_is_nesterovs():
    """m = 0.05 g1, then 0.95 m + 0.05 g2; Nesterov's update is 0.05 g2 + 0.95 m."""
    weight = nn.Parameter(torch.zeros(1, 2))
    optimizer = Muon([weight], lr=1.0)
    weight.grad = torch.tensor([[1.0, 0.0]])
    optimizer.step()
    first = weight.data.clone()
    weight.grad = torch.tensor([[0.0, 1.0]])
    optimizer.step()
    mean = torch.tensor([0.95 * 0.05, 0.05])
    update = 0.05 * torch.tensor([0.0, 1.0]) + 0.95 * mean
    torch.testing.assert_close(first - weight.data, (quintic(1.0) * update / update.norm())[None])
