"""Versions of tensors: whatever is derived from weights is stale once they differ."""

from collections.abc import Iterable

from torch import Tensor


def tensor_versions(tensors: Iterable[Tensor]) -> tuple:
    """Return a value that differs whenever a tensor was changed in place, replaced or moved.

    A change behind autograd's back, through ``tensor.data``, goes unseen. Tensors made in inference
    mode count no changes; each of them gets an object that equals no other.
    """
    return tuple(
        (tensor.data_ptr(), object() if tensor.is_inference() else tensor._version)
        for tensor in tensors
    )
