"""AdamW with the parameter groups and the clipping of SED's recipe."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float = 0.0,
    clip_multiplier: float = 1.0,
) -> list[dict[str, Any]]:
    """Group the trainable parameters of a segmenter by learning rate and weight decay.

    Args:
        model: its image tower is ``model.backbone``.
        base_lr: learning rate of the decoder.
        weight_decay: for all parameters but those of normalisation layers and of embeddings, which
            have none.
        weight_decay_norm: for the parameters of normalisation layers.
        clip_multiplier: the image tower learns at ``base_lr * clip_multiplier``.

    Returns:
        At most one optimizer group for each pair of values, in a fixed order.
    """
    norms = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
    tower = {id(parameter) for parameter in model.get_submodule("backbone").parameters()}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    seen: set[int] = set()
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
            group: dict[str, Any] = {"params": [], "lr": lr, "weight_decay": decay}
            groups.setdefault((lr, decay), group)["params"].append(parameter)
    return list(groups.values())


class FullModelClipAdamW(torch.optim.AdamW):
    """AdamW that first clips the norm of the gradient of all parameters together."""

    def __init__(
        self, params: Any, *, max_norm: float, norm_type: float = 2.0, **kwargs: Any
    ) -> None:
        super().__init__(params, **kwargs)
        self.max_norm = max_norm
        self.norm_type = norm_type

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Clip, then step as AdamW does."""
        parameters = itertools.chain(*(group["params"] for group in self.param_groups))
        nn.utils.clip_grad_norm_(parameters, self.max_norm, self.norm_type)
        return super().step(closure)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of ``cfg.SOLVER``: AdamW, with full-model clipping if it is enabled.

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
