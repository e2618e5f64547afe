"""Weights in another precision, and whether they have changed."""

import copy
from typing import TypeVar

import torch
from torch import nn

from ..versions import tensor_versions

#: Type of a module.
M = TypeVar("M", bound=nn.Module)


class Weights:
    """The parameters of a module, read anew at each look, without walking the module tree.

    Args:
        module: its submodules must stay the same ones; their parameters may be replaced.
    """

    def __init__(self, module: nn.Module):
        self._owners = [part._parameters for part in module.modules() if part._parameters]

    def versions(self) -> tuple:
        """Return a value that differs whenever a parameter was changed in place or replaced."""
        return tensor_versions(
            parameter
            for owner in self._owners
            for parameter in owner.values()
            if parameter is not None
        )


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
