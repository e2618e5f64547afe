"""The same functions in less time and memory, for inference.

Each form takes a module in eval mode and computes what its ``forward`` computes, up to rounding.
Weights are cast and folded once for each precision, and again after they change. The package may
be deleted: ``modeling/segmenter.py``, the only file that knows of it, then runs the modules' own
``forward``.
"""

from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch import nn

from ..clip.convnext import CLIPConvNeXt
from ..sed.head import SEDHead
from .clip_convnext import FastCLIPConvNeXt
from .sed_head import build_sed_head
from .weights import is_patched, module_state

__all__ = ["Accelerator"]

#: A callable with the signature of a module's ``forward``.
Form = Callable[..., Any]

#: Module -> what builds its fast form, or None. Subclasses may compute something else and are not
#: accelerated.
FORMS: dict[type[nn.Module], Callable[..., Form | None]] = {
    CLIPConvNeXt: FastCLIPConvNeXt,
    SEDHead: build_sed_head,
}


class Accelerator:
    """Builds the fast forms of modules and keeps them while the weights stay the same.

    Several threads may call it at once. A copy of it starts empty.

    Args:
        chunk_elements: elements of a feature map that a head works on at a time, which bounds its
            memory; 0 chooses for the device.
    """

    def __init__(self, chunk_elements: int = 0):
        self.chunk_elements = chunk_elements
        self._forms: dict[tuple[nn.Module, torch.dtype], tuple[tuple, Form | None]] = {}
        self._lock = Lock()

    def __deepcopy__(self, memo: dict) -> "Accelerator":
        return type(self)(self.chunk_elements)

    def __reduce__(self) -> tuple:
        return type(self), (self.chunk_elements,)

    def __call__(self, module: nn.Module, precision: torch.dtype) -> Form | None:
        """Return the fast form of a module.

        There is none for other classes of modules, in training mode, and where a part has forward
        hooks or a ``forward`` that is not its class's: these would not run.

        Args:
            module: backbone or head.
            precision: float32, bfloat16 or float16.

        Returns:
            A callable with the module's signature, or None.
        """
        build = FORMS.get(type(module))
        if build is None or module.training:
            return None
        parts = inference_parts(module)
        if any(map(is_patched, parts)):
            return None
        state = module_state(parts)
        with self._lock:
            known, form = self._forms.get((module, precision), (None, None))
            if known != state:
                device = next(module.parameters()).device.type
                # Weights are folded in their precision, whatever the caller's mode.
                autocast = torch.autocast(device, enabled=False)
                with torch.inference_mode(False), torch.no_grad(), autocast:
                    form = build(module, precision, self.chunk_elements)
                self._forms[module, precision] = (state, form)
            return form

    def clear(self) -> None:
        """Free the cast and folded weights."""
        with self._lock:
            self._forms.clear()


def inference_parts(module: nn.Module) -> list[nn.Module]:
    """List a module and its parts that inference runs; CLIP's text tower is none of a backbone."""
    if isinstance(module, CLIPConvNeXt):
        return [module, *module.clip.visual.modules()]
    return list(module.modules())
