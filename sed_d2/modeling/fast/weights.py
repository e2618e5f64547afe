"""Weights in another precision, and whether modules have changed."""

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import nn

from ..versions import tensor_versions

#: Type of a module.
M = TypeVar("M", bound=nn.Module)


def module_state(parts: Iterable[nn.Module]) -> tuple:
    """Return what changes with the parts, with their parameters, and with the values of these."""
    parts = list(parts)
    parameters = (
        parameter
        for part in parts
        for parameter in part._parameters.values()
        if parameter is not None
    )
    return tuple(map(id, parts)), tensor_versions(parameters)


def is_patched(part: nn.Module) -> bool:
    """Tell whether calling a module runs more than its class's ``forward``: hooks, or another."""
    hooks = part._forward_hooks or part._forward_pre_hooks
    return bool(hooks) or "forward" in part.__dict__


def in_dtype(module: M, dtype: torch.dtype) -> M:
    """Return a module of the same form with parameters of a dtype.

    Parameters that have the dtype already are shared with the module, which stays as it is.
    """
    if all(parameter.dtype == dtype for parameter in module.parameters()):
        return module
    twin = copy.copy(module)
    twin._parameters = {
        name: parameter if parameter is None else nn.Parameter(parameter.to(dtype), False)
        for name, parameter in module._parameters.items()
    }
    twin._modules = {
        name: part if part is None else in_dtype(part, dtype)
        for name, part in module._modules.items()
    }
    return twin
