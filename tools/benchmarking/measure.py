"""Time and memory of the benchmark's cases, in fresh processes."""

import ctypes
import gc
import multiprocessing
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from sed_d2 import get_sed_cfg
from sed_d2.cli.errors import is_users, sentence
from sed_d2.device import keep_freed_memory
from tools.benchmarking.floor import Work, count_work, profile, time_by_turns
from tools.benchmarking.stages import Case, Stages, chosen_survivors, compare


@dataclass
class Result:
    """What was measured of a case; ``seconds`` and ``peak_bytes`` are of "fast" and "plain"."""

    case: Case
    seconds: dict[str, list[float]] = field(default_factory=dict)  # of each repeat
    peak_bytes: dict[str, int | None] = field(default_factory=dict)  # above the loaded model
    checks: dict[str, float] = field(default_factory=dict)  # see stages.compare
    work: Work = (0, 0)  # of the fast form
    profile: dict[str, float] = field(default_factory=dict)  # operator -> seconds of the fast form
    error: str = ""  # why a form has no times

    def __str__(self) -> str:
        times = [f"{form} {self.median(form):.4g} s" for form in self.seconds]
        return f"{self.case}: {', '.join(filter(None, [*times, self.error]))}"

    def quartiles(self, form: str) -> list[float]:
        """Return lower quartile, median and upper quartile; [] without times."""
        seconds = self.seconds.get(form)
        return np.quantile(seconds, [0.25, 0.5, 0.75]).tolist() if seconds else []

    def median(self, form: str) -> float | None:
        """Return the median time; None without times."""
        return self.quartiles(form)[1] if form in self.seconds else None

    @property
    def speed_up(self) -> float | None:
        """The plain form's median time by the fast form's; None without both."""
        plain, fast = self.median("plain"), self.median("fast")
        return plain / fast if plain and fast else None


def run_cases(args: Namespace, cases: Sequence[Case]) -> list[Result]:
    """Measure cases, each in a fresh process unless ``args.quick``, and print each result."""
    cases = [case._replace(plain=case.plain and args.vs == "plain") for case in cases]
    results: list[Result] = []
    for group in [cases] if args.quick and cases else [[case] for case in cases]:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                results += pool.submit(measure_cases, args, group).result()
            except (MemoryError, RuntimeError) as error:  # also if the process was killed
                results += [Result(case, error=sentence(error)) for case in group]
        print(*results[-len(group) :], sep="\n", flush=True)
    return results


def measure_cases(args: Namespace, cases: Sequence[Case]) -> list[Result]:
    """Set up this process, build the model and measure cases."""
    torch.set_num_threads(args.threads)
    if args.keep_memory:
        keep_freed_memory(args.device)
    free = read_proc("/proc/meminfo", "MemAvailable")
    if args.device.startswith("cpu") and free is not None:
        import resource  # not on Windows

        # A form that needs more raises an error, and the system need not kill a process.
        limit = (read_proc("/proc/self/status", "VmData") or 0) + int(0.8 * free)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        cfg = get_sed_cfg(args.config_file, args.opts)
        cfg.MODEL.DEVICE = args.device
        stages = Stages(cfg, args.random_inputs)
        return [measure(stages, case, args) for case in cases]
    except Exception as error:
        if is_users(error):  # told by its traceback, which the parent does not get
            raise ValueError(sentence(error)) from error
        raise


@torch.no_grad()
def measure(stages: Stages, case: Case, args: Namespace) -> Result:
    """Compare the two forms of a case, time them by turns, count and profile the fast one."""
    device, result, outputs = stages.device, Result(case), {}
    half = case.dtype != "float32"
    autocast = torch.autocast(device.type, getattr(torch, case.dtype) if half else None, half)
    with chosen_survivors(args.survivors if stages.random_inputs else 0):
        reset_peak(device)
        start = memory(device, peak=False)
        inputs, forms = stages.build(case)
        forms["fast"] = autocast(forms["fast"])
        for form in list(forms) if case.plain else ["fast"]:
            reset_peak(device)
            try:
                outputs[form] = forms[form]()
            except (MemoryError, RuntimeError) as error:
                if form == "fast":
                    raise
                result.error = f"plain: {sentence(error)}"
                continue
            peak = memory(device, peak=True)
            result.peak_bytes[form] = peak - start if peak and start else None
        if len(outputs) == 2:
            result.checks = compare(outputs["plain"], outputs["fast"])
        timed = {form: forms[form] for form in outputs}
        outputs.clear()
        result.seconds = time_by_turns(timed, device, args.warmup - 1, args.repeats, args.seconds)
        result.work = count_work(forms["fast"], inputs)
        result.profile = profile(forms["fast"], device)
    return result


def memory(device: torch.device, peak: bool) -> int | None:
    """Return the bytes in use, or their peak: resident on a CPU (None but on Linux)."""
    if device.type == "cpu":
        return read_proc("/proc/self/status", "VmHWM" if peak else "VmRSS")
    module = torch.get_device_module(device)
    return module.max_memory_allocated(device) if peak else module.memory_allocated(device)


def reset_peak(device: torch.device) -> None:
    """Forget the peak, and return freed memory, which a run could take again unseen."""
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
        torch.get_device_module(device).reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def read_proc(path: str, field: str) -> int | None:
    """Read a field in kB of a file of Linux's /proc, in bytes; None on other systems."""
    if not Path(path).is_file():
        return None
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
