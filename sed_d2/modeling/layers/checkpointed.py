"""Activation checkpointing by one attribute."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    """Module that can store only its inputs for the backward pass and recompute the rest.

    Attributes:
        checkpoints: recompute the activations in the backward pass; costs time, saves memory.
    """

    checkpoints = False

    def __call__(self, *args: Any) -> Any:
        """Run ``forward(*args)``, under a checkpoint where a gradient is recorded."""
        if self.checkpoints and torch.is_grad_enabled():
            return checkpoint(super().__call__, *args, use_reentrant=False)
        return super().__call__(*args)


def set_checkpoints(module: nn.Module, enabled: bool) -> None:
    """Switch checkpointing on or off in every :class:`Checkpointed` part of a module."""
    for part in module.modules():
        if isinstance(part, Checkpointed):
            part.checkpoints = enabled
