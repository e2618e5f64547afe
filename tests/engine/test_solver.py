import pytest
import torch
from torch import nn

from sed_d2.engine.solver import FullModelClipAdamW, build_optimizer, parameter_groups


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
