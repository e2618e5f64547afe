"""The arithmetic of a stage, the speed of the machine, and where the time goes."""

import math
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

#: Name -> what runs.
Forms = dict[Any, Callable[[], Any]]

#: Multiply-adds of products and convolutions, and bytes of inputs and outputs.
Work = tuple[int, int]

#: What a machine does in a second: multiply-adds of a matrix product by dtype, "bytes" of a copy.
Machine = dict[str, float]


def count_work(run: Callable[[], Any], inputs: Any = ()) -> Work:
    """Count the work of one run; not counted are element-wise functions, norms and sums."""
    in_place = {torch.ops.aten.baddbmm_: lambda _, a, b, **__: 2 * math.prod(a) * b[-1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        output = run()
    return counter.get_total_flops() // 2, num_bytes((inputs, output))


def num_bytes(value: Any) -> int:
    """Return the bytes of the tensors in nested tuples and dicts."""
    if isinstance(value, Tensor):
        return value.nbytes
    values = value.values() if isinstance(value, dict) else value
    return sum(map(num_bytes, values)) if isinstance(value, dict | tuple) else 0


def measure_machine(device: torch.device, dtypes: Iterable[str]) -> Machine:
    """Time a large matrix product in each dtype, by the faster library, and a large copy."""

    def least_seconds(*calls: Callable[[], Any]) -> float:
        seconds = time_by_turns(dict(enumerate(calls)), device)
        return min(map(min, seconds.values()))

    size = 1024 if device.type == "cpu" else 8192
    machine = {}
    for dtype in dtypes:
        a, b = torch.randn(2, size, size, device=device, dtype=getattr(torch, dtype))
        maps, kernel = a.view(1, size, 1, size).permute(0, 3, 1, 2), b[:, :, None, None]
        products = partial(F.linear, a, b), partial(F.conv2d, maps, kernel)
        machine[dtype] = size**3 / least_seconds(*products)
    source = torch.ones(1 << (26 if device.type == "cpu" else 30), device=device)
    copying = least_seconds(partial(torch.empty_like(source).copy_, source))
    return machine | {"bytes": 2 * source.nbytes / copying}  # read and written


def time_by_turns(
    forms: Forms, device: torch.device, warmup: int = 1, repeats: int = 10, limit: float = math.inf
) -> dict[Any, list[float]]:
    """Return the seconds of each repeat of each form; the first form of a turn alternates.

    After ``limit`` seconds there are no more than two repeats.
    """
    seconds: dict[Any, list[float]] = {form: [] for form in forms}
    start = clock(device)
    for turn in range(-warmup, repeats):
        if turn >= 2 and clock(device) - start > limit:
            break
        for form in forms if turn % 2 else reversed(forms):
            begin = clock(device)
            forms[form]()
            if turn >= 0:
                seconds[form].append(clock(device) - begin)
    return seconds


def clock(device: torch.device) -> float:
    """Return the time in seconds, once the device has finished what was started on it."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
    return time.perf_counter()


def profile(run: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Return the seconds of each operator in one run, in descending order."""
    attribute = f"self_{'cpu' if device.type == 'cpu' else 'device'}_time_total"
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # mutes the profiler's messages
    with torch.profiler.profile(activities=torch.profiler.supported_activities()) as profiler:
        run()
    # A GPU's kernels count to the operators that start them.
    events = [e for e in profiler.key_averages() if e.device_type.name == "CPU"]
    events.sort(key=lambda event: -getattr(event, attribute))
    return {e.key.removeprefix("aten::"): 1e-6 * getattr(e, attribute) for e in events}
