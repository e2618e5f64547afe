"""The device that torch computes on, and the memory that its CPU tensors free."""

import ctypes
import os

import torch

# Options of glibc's mallopt: the number of blocks with a mapping each, the free bytes at the top
# of the heap above which they are returned to the system (-1: never), and the bytes by which the
# heap grows.
M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -4, -1, -2


def best_device() -> str:
    """Return "cuda", "mps" or "cpu": the first that torch can use on this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raise a ValueError that names a usable device unless torch can compute on ``device``."""
    try:
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError) as error:  # an AssertionError in builds without CUDA
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise ValueError(
            f"torch cannot use the device '{device}' here ({reason}): use {best_device()}"
        ) from error


def keep_freed_memory(device: str) -> None:
    """Let this process keep freed CPU memory for its next tensors instead of returning it.

    By default glibc returns large blocks to the system, and the kernel clears every page again at
    the next allocation. This costs nearly half of the time of a training step on a CPU. In
    exchange the process stays at its peak size, or slightly above it where sizes vary. Programs
    call it; a library leaves the allocator alone. On other devices it does nothing.

    Args:
        device: the device of the model, as in ``MODEL.DEVICE``.
    """
    if os.name != "posix" or not device.startswith("cpu"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 1 << 26)):
            mallopt(option, value)
