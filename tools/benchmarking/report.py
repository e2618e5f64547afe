"""The levels that SED is to reach, the tables and the plot of the benchmark."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from tabulate import tabulate

from tools.benchmarking.floor import Machine
from tools.benchmarking.measure import Result
from tools.benchmarking.stages import FIXED_CLASSES, Case

matplotlib.use("Agg")

from matplotlib import pyplot

#: The limits of the checks in float32, and in half precision with trained weights.
FLOAT32_CHECKS = {"labels equal": 0.999, "max difference": 1e-4, "relative difference": 1e-4}
FLOAT32_CHECKS |= {"other survivors": 0}
HALF_CHECKS = {"labels equal": 0.99}

#: Figures whose limit is the least value; the limit of the others is the largest one.
LEAST = ("times", "labels equal")


def levels(on_cpu: bool) -> dict[Case, dict[str, float]]:
    """Return how many times as fast as the plain form, in how much time and memory, a case runs."""
    dtype = "float32" if on_cpu else "float16"
    return {
        Case("head", 150, dtype=dtype): {"times": 4, "GB": 1.5},
        Case("head", 459, dtype=dtype): {"times": 4, "GB": 2},
        Case("head", 847, dtype=dtype, plain=False): {"GB": 3},
        Case("head", 459, "early", dtype): {"times": 8, "GB": 1},
        Case("head", 847, "early", dtype): {"times": 8, "s": 2.3, "GB": 1.5},
        Case("encoder", dtype=dtype): {"times": 1.5},
        Case("whole image", 150, "early", dtype): {"times": 4}
        if on_cpu
        else {"times": 12, "s": 0.012},
        Case("whole image", 150, "early", "bfloat16"): {"times": 12},
        Case("text", FIXED_CLASSES["text"]): {"times": 6},
        Case("second start", FIXED_CLASSES["second start"], plain=False): {"s": 1},
    }


def judge(limits: dict[str, float], result: Result, trained: bool) -> str:
    """Return "met", or "not met" and why, or in brackets what was not measured.

    Args:
        limits: of :func:`levels`; those of the checks are added.
        result: what was measured.
        trained: the weights are; in half precision the labels of random ones are arbitrary.
    """
    if not result.seconds:
        return f"not met: {result.error}"
    peak = result.peak_bytes["fast"]
    figures = {"times": result.speed_up, "s": result.median("fast"), "GB": peak and 1e-9 * peak}
    measured = result.checks | {name: x for name, x in figures.items() if x is not None}
    if result.case.dtype == "float32":
        limits = limits | FLOAT32_CHECKS
    elif trained:
        limits = limits | HALF_CHECKS
    failed = [
        f"{measured[name]:.4g} {name}"
        for name, limit in limits.items()
        if name in measured
        and not (measured[name] >= limit if name in LEAST else measured[name] <= limit)  # or NaN
    ]
    missing = [name for name in limits if name in figures.keys() - measured.keys()]
    verdict = f"not met: {', '.join(failed)}" if failed else "met"
    return f"{verdict} (not measured: {', '.join(missing)})" if missing else verdict


def number(value: float | None, scale: float = 1.0) -> str:
    """Format a number; "" for None and 0."""
    return f"{scale * value:.4g}" if value else ""


def stage_rows(results: Iterable[Result], machine: Machine) -> list[dict[str, str]]:
    """Return a row for each result; the floor is the time of its arithmetic or of its bytes."""
    rows = []
    for result in results:
        fast, (multiply_adds, num_bytes) = result.median("fast"), result.work
        floor = max(multiply_adds / machine[result.case.dtype], num_bytes / machine["bytes"])
        row = {
            "stage": str(result.case),
            "plain s": number(result.median("plain")),
            "fast s": number(fast),
            "quartiles": "-".join(map(number, result.quartiles("fast")[::2])),
            "plain / fast": number(result.speed_up),
            "peak plain GB": number(result.peak_bytes.get("plain"), 1e-9),
            "peak fast GB": number(result.peak_bytes.get("fast"), 1e-9),
            "floor s": number(floor),
            "fast / floor": number(fast / floor if fast and floor else None),
            "check": ", ".join(f"{value:.4g} {name}" for name, value in result.checks.items()),
            "error": result.error,
        }
        rows.append(row)
    return rows


def level_rows(
    results: Sequence[Result], limits: Iterable[dict[str, float]], machine: Machine, trained: bool
) -> list[dict[str, str]]:
    """Return the table of levels, with the largest operators of those that were not met."""
    rows = stage_rows(results, machine)
    for row, result, limit in zip(rows, results, limits, strict=True):
        for header in ("quartiles", "peak plain GB", "check"):
            del row[header]
        words = (f"{'≥' if name in LEAST else '≤'} {x:g} {name}" for name, x in limit.items())
        row |= {"required": ", ".join(words), "verdict": judge(limit, result, trained)}
        total, largest = sum(result.profile.values()), list(result.profile.items())[:5]
        shares = ", ".join(f"{seconds / total:.0%} {name}" for name, seconds in largest)
        row["largest operators"] = "" if row["verdict"].startswith("met") else shares
    return rows


def fit_lines(curve: Iterable[Result]) -> dict[str, tuple[Any, ...]]:
    """Return lines through the times of each mode: formula -> classes, seconds, coefficients."""
    lines = {}
    for mode, group in groupby((r for r in curve if r.seconds), lambda r: r.case.mode):
        x, y = zip(*((r.case.classes, r.median("fast")) for r in group), strict=True)
        slope, start = line = np.polyfit(x, y, 1)
        text = f"{start:.4g} + {slope:.4g} T s, R² = {np.corrcoef(x, y)[0, 1] ** 2:.4f}"
        lines[f"{mode}: {text}"] = (x, y, line)
    return lines


def render(notes: Iterable[str], tables: dict[str, list[dict[str, str]]], style: str) -> str:
    """Format notes and tables without their empty columns; ``style`` is tabulate's."""
    parts = list(notes)
    for title, rows in tables.items():
        used = [header for header in rows[0] if any(row[header] for row in rows)] if rows else []
        cells = [[row[header] for header in used] for row in rows]
        table = tabulate(cells, used, style, disable_numparse=True)
        parts.append(f"{'### ' if style == 'github' else ''}{title}\n\n{table}")
    return "\n\n".join(parts)


def plot(path: Path, results: Sequence[Result], curve: Iterable[Result]) -> None:
    """Draw the times of both forms, and the fast head's time by number of classes."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.5), width_ratios=(3, 2))
    for form, color in (("plain", "tab:gray"), ("fast", "tab:blue")):
        left.plot([], [], "o", color=color, label=form)
        for place, result in enumerate(results):
            quartiles = result.quartiles(form)
            left.plot(quartiles, [place] * len(quartiles), color=color)
            left.plot(quartiles[1:2], [place] * len(quartiles[1:2]), "o", color=color)
    names = [f"{r.case}{f' ({r.speed_up:.1f}×)' if r.speed_up else ''}" for r in results]
    left.set_yticks(range(len(names)), names, fontsize=7)
    left.set(xlabel="seconds (median and quartiles); in brackets plain / fast", xscale="log")
    left.invert_yaxis()
    left.legend()
    for label, (classes, seconds, line) in fit_lines(curve).items():
        (marks,) = right.plot(classes, seconds, "o", label=label)
        right.plot([0, max(classes)], np.polyval(line, [0, max(classes)]), color=marks.get_color())
    right.set(xlabel="classes T", ylabel="seconds of the fast head")
    right.legend(handles=right.lines[::2])
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
