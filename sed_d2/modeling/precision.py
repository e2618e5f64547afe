"""Inference in half precision, by weights that are cast, not by autocast.

Autocast knows no function that works in place, and casts the weights of every call anew.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast computes in on a device; None where it is off."""
    enabled = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None


def with_parameters(module: nn.Module, parameters: Mapping[Tensor, Tensor]) -> nn.Module:
    """The same module with other tensors in place of some parameters; the module stays as it is."""
    twin = copy.copy(module)
    twin._parameters = {k: parameters.get(p, p) for k, p in module._parameters.items()}
    twin._modules = {k: with_parameters(m, parameters) for k, m in module._modules.items()}
    return twin


def in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same module with parameters of a dtype; the module stays as it is."""
    return with_parameters(module, {p: p.to(dtype) for p in module.parameters()})
