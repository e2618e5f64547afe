"""The same module with other parameters: for inference in half precision, and for folded weights.

In inference autocast only says which precision is asked for: it knows no function that works in
place, and would cast folded weights again for every few classes.
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
    if all(p.dtype == dtype for p in module.parameters()):
        return module
    return with_parameters(module, {p: p.to(dtype) for p in module.parameters()})
