"""The best device, the check of a device, and the reuse of freed memory."""

import platform
import subprocess
import sys

import pytest

from sed_d2.device import best_device, check_device


def test_the_best_device_passes_the_check():
    check_device(best_device())


def test_an_unusable_device_is_named_with_a_usable_one():
    with pytest.raises(ValueError, match=f"device 'no_such_device' here .*: use {best_device()}$"):
        check_device("no_such_device")


PAGE_FAULTS = """
import resource
import torch
from sed_d2.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(1 << 24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults()
keep_freed_memory("cpu")
faults()  # The heap grows once.
print(default, faults())
"""


def test_freed_memory_is_reused_by_the_next_tensor():
    done = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, check=True
    )
    default, reused = map(int, done.stdout.split())
    # Without glibc the function does nothing.
    assert reused < default / 4 or platform.libc_ver()[0] != "glibc"
