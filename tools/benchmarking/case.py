"""Measures cases of `tools/benchmark.py` in a process of its own: JSON file in, JSON file out.

    python tools/benchmarking/case.py JOB RESULTS

Each case has a fresh process, in which ours comes first, so that no memory that plain gave back to
the allocator hides what ours takes.
"""

import ctypes
import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

# Run as a script, the folder of `tools` is not among those that modules are looked for in.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sed_d2 import get_sed_cfg  # noqa: E402
from sed_d2.cli.errors import one_sentence
from sed_d2.device import keep_freed_memory  # noqa: E402
from sed_d2.modeling import decoder as decoder_module  # noqa: E402
from tools.benchmarking import plain  # noqa: E402
from tools.benchmarking.floor import clock, measure_machine  # noqa: E402
from tools.benchmarking.operators import profile  # noqa: E402
from tools.benchmarking.stages import Bench, Case  # noqa: E402


@dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
        config_file: of the model.
        opts: ``KEY VALUE`` pairs.
        device: where.
        threads: of torch on the CPU.
        survivors: classes that early rejection keeps; 0: the model's own choice.
        warmup: runs of each form that are not timed; at least 1.
        repeats: timed runs of each form.
        seconds: no more repeats after this time, but at least 2.
        structured: random texts and features, and chosen survivors, for trained weights too.
        keeps_memory: whether the process keeps freed memory, as the programs do.
        profiles: whether one more run of ours is profiled.
    """

    config_file: str
    opts: tuple[str, ...]
    device: str
    threads: int
    survivors: int
    warmup: int = 1
    repeats: int = 5
    seconds: float = 120.0
    structured: bool = False
    keeps_memory: bool = False
    profiles: bool = False


class Survivors:
    """Watches, and where a number is chosen decides, which classes survive, in both forms alike.

    The auxiliary heads and the choice of the model's own run in any case, so that their time
    counts. With a chosen number, so many classes, evenly spaced in the vocabulary, survive the
    first level and all further ones.
    """

    def __init__(self, chosen: int):
        self.chosen = chosen
        self.counts: list[int] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand in for both forms' choice."""
        with (
            patch.object(
                decoder_module, "union_of_top_k", self._around(decoder_module.union_of_top_k)
            ),
            patch.object(plain, "plain_union_of_top_k", self._around(plain.plain_union_of_top_k)),
        ):
            yield

    def _around(self, own):
        def union_of_top_k(logits: Tensor, k: int) -> Tensor:
            keep = own(logits, k)
            if self.chosen:
                count = min(self.chosen, len(logits))
                keep = torch.arange(count, device=logits.device) * len(logits) // count
            self.counts.append(len(keep))
            return keep

        return union_of_top_k


class Memory:
    """The peak of memory above what was held at the start.

    On the CPU it is the process's resident memory, whose peak Linux keeps and lets one reset; on
    other systems it is not measured. On a GPU it is what torch has allocated.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.reset()
        self.start = self._read("VmRSS", "memory_allocated")

    def reset(self) -> None:
        """Forget the peak, and give back what was freed: a run would take it unseen."""
        gc.collect()
        if self.device.type == "cpu":
            with suppress(OSError, AttributeError):  # not Linux
                ctypes.CDLL(None).malloc_trim(0)
                Path("/proc/self/clear_refs").write_text("5")
        else:
            module = torch.get_device_module(self.device)
            module.empty_cache()
            module.reset_peak_memory_stats(self.device)

    def peak(self) -> int | None:
        """Bytes above the start since the reset; None where they cannot be known."""
        peak = self._read("VmHWM", "max_memory_allocated")
        return None if peak is None else peak - self.start

    def _read(self, of_process: str, of_device: str) -> int | None:
        if self.device.type != "cpu":
            return getattr(torch.get_device_module(self.device), of_device)(self.device)
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            return None
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields[of_process].split()[0]) * 1024


class Runner:
    """Runs one form of a case.

    Args:
        bench: the model.
        run: the form.
        dtype: of autocast.
        parts: how many parts each run has; 0 where only the whole is timed.
    """

    def __init__(self, bench: Bench, run, dtype: str, parts: int):
        self.bench, self.run, self.dtype, self.parts = bench, run, dtype, parts
        self.seconds: list[float] = []
        self.part_seconds: list[list[float]] = []

    def __call__(self):
        """The answer; its time is kept."""
        device, marks = self.bench.device, self.bench.marks
        marks.clear()
        start = clock(device)
        with self.bench.autocast(self.dtype):
            answer = self.run()
        end = clock(device)
        self.seconds.append(end - start)
        if self.parts:
            if len(marks) + 1 != self.parts:
                raise RuntimeError(
                    f"the decoder's levels asked {len(marks)} times for image guidance, not "
                    f"{self.parts - 1} times: the times of its levels cannot be told apart"
                )
            times = [start, *marks, end]
            self.part_seconds.append([b - a for a, b in pairwise(times)])
        return answer

    def forget(self) -> None:
        """Forget the times of the warm-up."""
        self.seconds.clear()
        self.part_seconds.clear()


@torch.no_grad()
def measure(bench: Bench, case: Case, settings: Settings) -> dict:
    """Check a case, then time its two forms by turns.

    Returns:
        "case"; for "ours" and, where it was run, "plain" the "seconds" of each repeat, "parts"
        (seconds of each part of each repeat) and "peak_bytes" (inputs and answer counted, weights
        not); "checks", "survivors" of each level, "work" of each part and the "part_names".
    """
    memory = Memory(bench.device)
    survivors = Survivors(settings.survivors if bench.structured else 0)
    with survivors.installed():
        pair = bench.pair(case)
        forms = {"ours": Runner(bench, pair.ours, case.dtype, len(pair.parts))}
        if case.plain and pair.plain is not None:
            forms["plain"] = Runner(bench, pair.plain, "float32", len(pair.parts))
        answers, peaks, counts = {}, {}, {}
        for name, form in forms.items():
            survivors.counts.clear()
            memory.reset()
            answers[name] = form()
            peaks[name] = memory.peak()
            # All images of a batch are the same.
            counts[name] = survivors.counts[: len(survivors.counts) // case.batch]
        checks = {}
        if "plain" in forms or pair.plain is None:
            checks = pair.check(answers.get("plain"), answers["ours"])
        if counts.get("plain", counts["ours"]) != counts["ours"]:
            checks["plain_survivors"] = counts["plain"]
        answers.clear()
        time_by_turns(list(forms.values()), settings)
        kinds = {}
        if settings.profiles:
            with bench.autocast(case.dtype):
                kinds["profile"] = profile(pair.ours, bench.device)
    return {
        "case": asdict(case),
        **{
            name: {
                "seconds": form.seconds,
                "parts": form.part_seconds,
                "peak_bytes": peaks[name],
            }
            for name, form in forms.items()
        },
        "checks": checks,
        "survivors": counts["ours"],
        "part_names": pair.parts,
        "work": pair.work(counts["ours"]),
        **kinds,
    }


def time_by_turns(forms: list[Runner], settings: Settings) -> None:
    """Warm up (each form has run once) and repeat all forms by turns, the first one alternating."""
    for form in forms * (settings.warmup - 1):
        form()
    for form in forms:
        form.forget()
    start = clock(forms[0].bench.device)
    for repeat in range(settings.repeats):
        late = clock(forms[0].bench.device) - start > settings.seconds
        if repeat >= 2 and late:
            break
        for form in forms if repeat % 2 else forms[::-1]:
            form()


@one_sentence()
def main(arguments=None) -> None:
    """Run a job: {"settings", "cases"} or {"settings", "machine": dtypes}."""
    job_file, results_file = arguments or sys.argv[1:]
    job = json.loads(Path(job_file).read_text())
    settings = Settings(**job["settings"])
    torch.set_num_threads(settings.threads)
    if settings.keeps_memory:
        keep_freed_memory(settings.device)
    if "machine" in job:
        results = measure_machine(torch.device(settings.device), job["machine"])._asdict()
    else:
        cases = [Case(**case) for case in job["cases"]]
        cfg = get_sed_cfg(settings.config_file, settings.opts)
        cfg.MODEL.DEVICE = settings.device
        needs_plain = any(case.plain for case in cases)
        bench = Bench(cfg, needs_plain, settings.structured)
        results = [measure(bench, case, settings) for case in cases]
    Path(results_file).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
