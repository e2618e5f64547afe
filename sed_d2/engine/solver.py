"""AdamW with the parameter groups and the clipping of SED's recipe, and Muon for small towers."""

import itertools

import torch
from torch import Tensor, nn


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float = 0.0,
    clip_multiplier: float = 1.0,
) -> list[dict]:
    """Group the trainable parameters of a SED model by learning rate and weight decay.

    Args:
        model: its image tower is ``model.backbone``.
        base_lr: learning rate of the decoder.
        weight_decay: for all but the following and embeddings, which have none.
        weight_decay_norm: for the parameters of normalisation layers.
        clip_multiplier: the image tower learns at ``base_lr * clip_multiplier``.

    Returns:
        At most one optimizer group for each pair of values, in a fixed order.
    """
    norms = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
    tower = {id(parameter) for parameter in model.backbone.parameters()}
    groups: dict[tuple[float, float], dict] = {}
    seen = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            lr = base_lr * clip_multiplier if id(parameter) in tower else base_lr
            decay = weight_decay
            if isinstance(module, norms):
                decay = weight_decay_norm
            elif isinstance(module, nn.Embedding):
                decay = 0.0
            group = {"params": [], "lr": lr, "weight_decay": decay}
            groups.setdefault((lr, decay), group)["params"].append(parameter)
    return list(groups.values())


class FullModelClipAdamW(torch.optim.AdamW):
    """AdamW that first clips the norm of the gradient of all parameters together."""

    def __init__(self, params, *, max_norm: float, norm_type: float = 2.0, **kwargs):
        super().__init__(params, **kwargs)
        self.max_norm = max_norm
        self.norm_type = norm_type

    @torch.no_grad()
    def step(self, closure=None):
        """Clip, then step as AdamW does."""
        parameters = itertools.chain(*(group["params"] for group in self.param_groups))
        nn.utils.clip_grad_norm_(parameters, self.max_norm, self.norm_type)
        return super().step(closure)


def build_optimizer(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of ``cfg.SOLVER``: AdamW, with full-model clipping if it is enabled.

    Raises:
        ValueError: gradient clipping is enabled with another type than "full_model".
    """
    solver = cfg.SOLVER
    groups = parameter_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        clip_multiplier=solver.CLIP_MULTIPLIER,
    )
    clip = solver.CLIP_GRADIENTS
    if not clip.ENABLED:
        return torch.optim.AdamW(groups, lr=solver.BASE_LR)
    if clip.CLIP_TYPE != "full_model":
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE '{clip.CLIP_TYPE}' is not supported: use "
            "'full_model', or set SOLVER.CLIP_GRADIENTS.ENABLED False"
        )
    return FullModelClipAdamW(
        groups, lr=solver.BASE_LR, max_norm=clip.CLIP_VALUE, norm_type=clip.NORM_TYPE
    )


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) in float32.

    The optimizers of this name in torch and timm iterate in bfloat16, which takes a CPU without
    bfloat16 units 30 times as long.

    Args:
        params: weights of two or more dimensions; a convolution's count as (out, in · kh · kw).
        lr: learning rate; an update has a spectral norm of about `lr`, or `lr` · sqrt(out / in)
            where there are more outputs than inputs.
        momentum: of Nesterov's kind.
        weight_decay: decoupled, as AdamW's.
    """

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
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
    """A matrix of the same shape and singular vectors whose singular values are nearer to 1."""
    # The odd polynomial a x + b x³ + c x⁵ pushes singular values of 0 to 1 towards 1.
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
