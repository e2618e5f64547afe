"""Muon in float32, for the image tower of the small CLIP."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) in float32.

    The Muon of torch and of timm iterates in bfloat16, which is 30 times as slow on a CPU without
    bfloat16 units.

    Args:
        params: weights of two or more dimensions; a convolution's weight is taken as a matrix
            (out, in · kh · kw).
        lr: learning rate. The spectral norm of an update is about ``lr``, or ``lr`` · sqrt(out /
            in) for more outputs than inputs.
        momentum: Nesterov momentum.
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["mean"] = torch.zeros_like(weight)
                mean = state["mean"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalize(weight.grad.lerp(mean, group["momentum"]).flatten(1))
                gain = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.reshape(weight.shape), alpha=-group["lr"] * gain)
        return loss


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return a matrix with the same singular vectors and singular values nearer to 1."""
    # The odd polynomial a x + b x³ + c x⁵ pushes singular values of 0 to 1 towards 1.
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
