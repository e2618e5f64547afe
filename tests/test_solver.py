import pytest
import torch
from torch import nn

from sed_d2.engine.solver import FullModelClipAdamW, Muon, build_optimizer, parameter_groups


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
        self.backbone[2].requires_grad_(False)
        self.head = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2), nn.GroupNorm(1, 2))


def test_groups_by_hand():
    model = Model()
    groups = parameter_groups(
        model,
        base_lr=1.0,
        weight_decay=0.1,
        weight_decay_norm=0.2,
        clip_multiplier=0.01,
    )
    found = {(g["lr"], g["weight_decay"]): {id(p) for p in g["params"]} for g in groups}
    expected = {
        (0.01, 0.1): model.backbone[0],
        (0.01, 0.2): model.backbone[1],
        (1.0, 0.0): model.head[0],
        (1.0, 0.1): model.head[1],
        (1.0, 0.2): model.head[2],
    }
    assert found == {key: {id(p) for p in m.parameters()} for key, m in expected.items()}


def test_gradients_are_clipped_by_their_common_norm():
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = FullModelClipAdamW(
        [{"params": [first]}, {"params": [second]}], lr=0.1, max_norm=1.0
    )
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optimizer.step()
    assert first.grad.item() == pytest.approx(0.6, rel=1e-4)  # 3 / 5
    assert second.grad.item() == pytest.approx(0.8, rel=1e-4)
    assert first.item() == pytest.approx(-0.1, rel=1e-3)  # Adam's first step is lr long


def test_the_config_decides(tiny_cfg):
    model = Model()
    assert isinstance(build_optimizer(tiny_cfg(), model), FullModelClipAdamW)
    plain = build_optimizer(tiny_cfg("SOLVER.CLIP_GRADIENTS.ENABLED", False), model)
    assert type(plain) is torch.optim.AdamW
    with pytest.raises(ValueError, match="CLIP_TYPE 'value'"):
        build_optimizer(tiny_cfg("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"), model)


def quintic(x: float) -> float:
    """Muon's polynomial, applied three times to a singular value."""
    for _ in range(3):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return x


def test_muon_makes_singular_values_alike():
    """The polynomial acts on each singular value by itself: 3 and 4, of Frobenius norm 5."""
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.diag(torch.tensor([3.0, 4.0]))
    optimizer.step()
    update = torch.diag(torch.tensor([quintic(0.6), quintic(0.8)]))
    torch.testing.assert_close(weight.data, 0.95 * torch.ones(2, 2) - 0.1 * update)


def test_muon_takes_a_convolution_as_a_matrix_and_scales_by_its_form():
    """Four outputs of one input: the step is sqrt(4) as long; without gradient there is none."""
    weight = nn.Parameter(torch.zeros(4, 1, 1, 1).to(memory_format=torch.channels_last))
    idle = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight, idle], lr=0.1)
    weight.grad = torch.tensor([0.0, 3.0, 4.0, 0.0]).view(4, 1, 1, 1)
    optimizer.step()
    direction = torch.tensor([0.0, 0.6, 0.8, 0.0])
    torch.testing.assert_close(weight.data.flatten(), -0.1 * 2 * quintic(1.0) * direction)
    assert torch.equal(idle.data, torch.ones(2, 2))


def test_muon_keeps_its_momentum():
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
