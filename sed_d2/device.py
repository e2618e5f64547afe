"""The device that torch computes on, and glibc's handling of freed CPU memory."""

import ctypes
import os

import torch

#: Option of glibc's mallopt: the maximum number of blocks that are allocated with mmap.
M_MMAP_MAX = -4
#: Option of mallopt: the free bytes at the top of the heap above which the heap shrinks; -1 is
#: never.
M_TRIM_THRESHOLD = -1
#: Option of mallopt: the extra bytes of each growth of the heap.
M_TOP_PAD = -2


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
    """Make this process reuse freed CPU memory instead of returning it to the system.

    By default glibc returns large blocks to the system, and the kernel clears every page again at
    the next allocation. This takes nearly half of the time of a training step on a CPU. In
    exchange the process stays at its peak size, or slightly above it if sizes vary. Commands call
    this function; the library does not change the allocator.

    Args:
        device: the device of the model, as in ``MODEL.DEVICE``. The function does nothing unless
            it is a CPU.
    """
    if os.name != "posix" or not device.startswith("cpu"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 1 << 26)):
            mallopt(option, value)
