"""Where the time of a run goes, by kinds of torch's operators."""

from collections import Counter
from collections.abc import Callable

import torch

REST = "rest"
#: Kinds of operators, by how their names begin; the first that fits counts.
KINDS = {
    REST: ("expand",),  # a view
    "products": ("addmm", "baddbmm", "bmm", "mm", "linear", "mkldnn_linear", "matmul", "dot"),
    "convolutions": ("conv", "mkldnn_conv", "cudnn_conv", "slow_conv", "thnn_conv"),
    "norms": ("native_layer_norm", "native_group_norm", "layer_norm", "group_norm"),
    "activations": ("gelu", "relu", "clamp", "exp", "sigmoid", "elu", "softmax", "threshold"),
    "sums": ("add", "sub", "mul", "div", "sum", "mean", "maximum"),
    "copies": ("copy", "clone", "contiguous", "index", "cat", "fill", "zero", "masked_fill"),
    "upsampling, labels": ("upsample", "max", "topk", "sort", "unique", "where", "gather"),
}


def kind(operator: str) -> str:
    """The kind of an operator such as "aten::add_"."""
    name = operator.removeprefix("aten::").lstrip("_")
    return next((k for k, starts in KINDS.items() if name.startswith(starts)), REST)


def profile(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds of each kind of operator in one run, by torch's profiler.

    Args:
        run: what is run.
        device: whose time counts.

    Returns:
        Kind -> seconds, those with most first. Views and the calls themselves are in the rest; on a
        CPU the profiler's own time is too.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    attribute = "self_cpu_time_total"
    if device.type != "cpu":
        activities.append(getattr(torch.profiler.ProfilerActivity, device.type.upper()))
        attribute = "self_device_time_total"
    with torch.profiler.profile(activities=activities) as profiler:
        run()
    seconds = Counter()
    for event in profiler.key_averages():
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a GPU's kernels, which count to the operators that start them
        seconds[kind(event.key)] += 1e-6 * getattr(event, attribute)
    return dict(seconds.most_common())
