"""The levels that SED is to reach against its plain form, and whether a run met them."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from tools.benchmarking.stages import Case

SAME_LABELS = 0.999
"""Least share of pixels with plain's label, in float32."""
SAME_LABELS_HALF = 0.99
"""The same in half precision, with trained weights."""
SAME_NUMBERS = 1e-4
"""Greatest difference of scores, or of features in standard deviations, in float32."""
FAST_MACHINE = 115e9
"""Multiply-adds a second of a machine that a level in seconds is asked of (230 GFLOP/s)."""


@dataclass(frozen=True)
class Level:
    """A line of the table of levels.

    Attributes:
        name: the work.
        case: what is measured.
        ratio: plain's median time over ours, at least; None if not asked for.
        gigabytes: our peak memory in 10^9 bytes, at most; None if not asked for.
        seconds: our median time, at most; None if not asked for.
    """

    name: str
    case: Case
    ratio: float | None = None
    gigabytes: float | None = None
    seconds: float | None = None

    @property
    def asked(self) -> str:
        """What is asked for, in words."""
        parts = [
            "" if self.ratio is None else f">= {self.ratio:g} times",
            "" if self.seconds is None else f"<= {1e3 * self.seconds:g} ms",
            "" if self.gigabytes is None else f"<= {self.gigabytes:g} GB",
        ]
        return ", ".join(part for part in parts if part) or "runs"


class Verdict(NamedTuple):
    """Whether a level was met, what failed, and what could not be judged."""

    met: bool
    failed: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = "met" if self.met else "not met: " + "; ".join(self.failed)
        return f"{text} ({'; '.join(self.open)})" if self.open else text


def levels(device: str, top_k: int, survivors: int, text_classes: int) -> list[Level]:
    """The levels, in the order of their table.

    Args:
        device: "cpu", or a GPU, where ours has half precision and a limit on the whole image.
        top_k: TEST.TOPK.
        survivors: classes at level 1; 0 for the model's own choice.
        text_classes: how many of the 847 classes stand for all of them in the text level.
    """
    early = f"k={top_k}"
    alive = f", {survivors} survivors at level 1" if survivors else ""
    decoders = [
        Level("decoder, full, T=150", Case("decoder", 150), 4, 1.5),
        Level("decoder, full, T=459", Case("decoder", 459), 4, 2),
        Level("decoder, full, T=847", Case("decoder", 847, plain=False), None, 3),
        Level(f"decoder, {early}, T=459{alive}", Case("decoder", 459, "early"), 8, 1),
        Level(f"decoder, {early}, T=847{alive}", Case("decoder", 847, "early"), 8, 1.5, 2.3),
    ]
    encoder = Level("encoder", Case("encoder"), 1.5)
    whole = Level(f"whole image, {early}, T=150", Case("whole image", 150, "early"), 4)
    text = [
        Level(
            f"text, cold ({text_classes} of 847 classes with synonyms)",
            Case("text", text_classes),
            6,
        ),
        Level(
            "second start, 847 classes, no text pass",
            Case("second start", 847, plain=False),
            seconds=1,
        ),
    ]
    half = in_half(whole, "bfloat16", ratio=12)
    if device == "cpu":
        return [*decoders, encoder, whole, half, *text]
    halves = [in_half(level, "float16", level.ratio) for level in [*decoders, encoder]]
    return [*halves, replace(in_half(whole, "float16", 12), seconds=0.012), half, *text]


def in_half(level: Level, dtype: str, ratio: float | None) -> Level:
    """The same level with ours in another dtype."""
    case = replace(level.case, dtype=dtype)
    return replace(level, name=f"{level.name}, {dtype}", case=case, ratio=ratio)


def judge(level: Level, result: dict, speed: float, trained: bool) -> Verdict:
    """Compare a result with what is asked.

    Args:
        level: what is asked.
        result: of `case.measure`, or {"error": why there is none}.
        speed: the machine's multiply-adds a second in float32.
        trained: whether the weights are; the labels of random ones say nothing in half precision.
    """
    if "error" in result:
        return Verdict(False, (result["error"],))
    failed, unknown = [], []
    ours, checks = result["ours"], result["checks"]
    seconds = float(np.median(ours["seconds"]))
    if level.ratio is not None:
        if "plain" not in result:
            failed.append("plain was not run")
        elif (ratio := speed_up(result)) < level.ratio:
            failed.append(f"{ratio:.2f} < {level.ratio:g} times")
    if level.gigabytes is not None:
        if ours["peak_bytes"] is None:
            unknown.append("memory not measured here")
        elif ours["peak_bytes"] > 1e9 * level.gigabytes:
            failed.append(f"{ours['peak_bytes'] / 1e9:.2f} > {level.gigabytes:g} GB")
    if level.seconds is not None and seconds > level.seconds:
        text = f"{1e3 * seconds:.3g} > {1e3 * level.seconds:g} ms"
        if level.case.stage == "decoder" and speed < FAST_MACHINE:
            unknown.append(f"{text}, but the machine is slower than the asked one")
        else:
            failed.append(text)
    half = level.case.dtype != "float32"
    if half and not trained and "argmax_equal" in checks:
        unknown.append("labels not judged, random weights")
    else:
        least = SAME_LABELS_HALF if half else SAME_LABELS
        if checks.get("argmax_equal", 1) < least:
            failed.append(f"argmax equal on {100 * checks['argmax_equal']:.2f} %")
    if not half:
        for name in ("max_difference", "relative_difference"):
            if not checks.get(name, 0) <= SAME_NUMBERS:
                failed.append(f"{name.replace('_', ' ')} {checks[name]:.1e}")
        if "plain_survivors" in checks:
            failed.append("other survivors than plain's")
    if checks.get("text_passes"):
        failed.append(f"{checks['text_passes']} text passes")
    return Verdict(not failed, tuple(failed), tuple(unknown))


class Spread(NamedTuple):
    """The median of some numbers and their lower and upper quartile."""

    median: float
    low: float
    high: float


def spread(numbers: list[float]) -> Spread:
    """Median and quartiles, interpolated between neighbours."""
    return Spread(*(float(q) for q in np.quantile(numbers, [0.5, 0.25, 0.75])))


def speed_up(result: dict) -> float:
    """Plain's median time over ours."""
    return spread(result["plain"]["seconds"]).median / spread(result["ours"]["seconds"]).median


class Line(NamedTuple):
    """A line through points, and the share of the variance that it explains."""

    start: float
    slope: float
    r_squared: float


def fit_line(x: list[float], y: list[float]) -> Line:
    """Least squares through two or more points."""
    slope, start = np.polyfit(x, y, 1)
    rest = np.var(np.subtract(y, start + slope * np.asarray(x)))
    return Line(float(start), float(slope), float(1 - rest / np.var(y)))
