"""What `tools/benchmark.py` prints and writes: tables and a plot."""

from itertools import groupby
from pathlib import Path

import matplotlib
from tabulate import tabulate

matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402  (the backend comes first)

from tools.benchmarking.floor import Machine, Work  # noqa: E402
from tools.benchmarking.levels import Level, fit_line, judge, speed_up, spread  # noqa: E402

STAGE_HEADERS = (
    "stage", "T", "mode", "dtype", "batch", "plain ms", "ours ms", "quartiles of ours",
    "plain / ours", "images/s", "peak plain MB", "peak ours MB", "survivors", "check",
    "floor ms", "ours / floor",
)  # fmt: skip
LEVEL_HEADERS = (
    "work", "plain s", "ours s", "plain / ours", "peak ours GB", "asked", "verdict",
    "plain s, memory kept", "ours s, kept", "plain / ours, kept",
)  # fmt: skip
PROFILE_HEADERS = ("work", "ours s", "floor s", "plain / floor", "where the time of ours goes")


def level_rows(
    levels: list[Level],
    results: list[dict],
    kept: list[dict | None],
    machine: Machine,
    trained: bool,
) -> list[list[str]]:
    """The table of levels, a list of cells for each.

    Args:
        levels: what is asked.
        results: for each level, in processes with the allocator as it is.
        kept: for each level, in processes that keep freed memory; None where not measured.
        machine: the machine.
        trained: whether the weights are.
    """
    rows = []
    for level, result, other in zip(levels, results, kept, strict=True):
        verdict = judge(level, result, machine.multiply_adds["float32"], trained)
        peak = "" if "error" in result else _scaled(result["ours"]["peak_bytes"], 1e9, 2)
        rows.append(
            [level.name, *_pair(result), peak, level.asked, str(verdict), *_pair(other or {})]
        )
    return rows


def profile_rows(
    levels: list[Level], results: list[dict], machine: Machine, trained: bool
) -> list[list[str]]:
    """For each level that was not met what it could be at most, and where its time goes.

    Args:
        levels: what is asked.
        results: for each level.
        machine: the machine.
        trained: whether the weights are.
    """
    rows = []
    for level, result in zip(levels, results, strict=True):
        met = judge(level, result, machine.multiply_adds["float32"], trained).met
        if met or "error" in result:
            continue
        work = sum((Work(*part) for part in result["work"]), Work())
        least = machine.floor(work, level.case.dtype)
        plain = result.get("plain")
        most = f"{spread(plain['seconds']).median / least:.2f}" if plain and least else ""
        total = sum(result["profile"].values())
        shares = [f"{100 * s / total:.0f} % {k}" for k, s in result["profile"].items()]
        rows.append([level.name, _pair(result)[1], f"{least:.3f}", most, ", ".join(shares)])
    return rows


def _pair(result: dict) -> list[str]:
    """Seconds of plain and ours and their ratio; "" for what was not measured."""
    plain, ours = (
        f"{spread(result[form]['seconds']).median:.3f}" if form in result else ""
        for form in ("plain", "ours")
    )
    return [plain, ours, f"{speed_up(result):.2f}" if plain and ours else ""]


def stage_rows(results: list[dict], machine: Machine) -> list[list[str]]:
    """The table of stages: a line for each case, and one for each part of the decoder."""
    rows = []
    for result in results:
        case = result["case"]
        names = [case["stage"], str(case["classes"] or ""), _mode(case), case["dtype"]]
        names.append(str(case["batch"]))
        if "error" in result:
            rows.append([*names, "", "", result["error"], *[""] * 8])
            continue
        ours, plain = result["ours"], result.get("plain")
        work = [Work(*part) for part in result["work"]]
        rows.append(
            [
                *names,
                *_times(plain and plain["seconds"], ours["seconds"]),
                f"{case['batch'] / spread(ours['seconds']).median:.3g}",
                _scaled(plain and plain["peak_bytes"], 1e6, 0),
                _scaled(ours["peak_bytes"], 1e6, 0),
                "/".join(map(str, result["survivors"])),
                _checks(result["checks"]),
                *_floor(sum(work, Work()), ours["seconds"], machine, case["dtype"]),
            ]
        )
        for i, name in enumerate(result["part_names"]):
            own = [parts[i] for parts in ours["parts"]]
            theirs = plain and [parts[i] for parts in plain["parts"]]
            rows.append(
                [
                    f"- {name}",
                    *names[1:],
                    *_times(theirs, own),
                    *[""] * 5,
                    *_floor(work[i], own, machine, case["dtype"]),
                ]
            )
    return rows


def curve_rows(results: list[dict]) -> list[list[str]]:
    """Time and memory by vocabulary size, and the line through each mode's times."""
    rows = []
    for mode, points in curves(results).items():
        sizes, seconds, peaks = zip(*points, strict=True)
        line = fit_line(sizes, seconds)
        fit = f"{1e3 * line.start:.1f} + {1e3 * line.slope:.3f} T ms, R² = {line.r_squared:.4f}"
        for size, second, peak in points:
            rows.append([mode, str(size), f"{1e3 * second:.1f}", _scaled(peak, 1e6, 0), fit])
            fit = ""
    return rows


def curves(results: list[dict]) -> dict[str, list[tuple]]:
    """Mode -> (T, median seconds, peak bytes) of our decoder."""
    good = [result for result in results if "error" not in result]
    return {
        mode: [
            (
                result["case"]["classes"],
                spread(result["ours"]["seconds"]).median,
                result["ours"]["peak_bytes"],
            )
            for result in group
        ]
        for mode, group in groupby(good, key=lambda result: _mode(result["case"]))
    }


def render(report: dict, style: str) -> str:
    """All tables of a report, with their titles; ``style`` is tabulate's."""
    parts = [*report["notes"]]
    for title, headers, rows in report["tables"]:
        table = tabulate(rows, headers, style, disable_numparse=True)
        parts.append(f"{'### ' if style == 'github' else ''}{title}\n\n{table}")
    return "\n\n".join(parts)


def plot(path: Path, stages: list[dict], curve: list[dict]) -> None:
    """Two panels: the times of plain and ours, and our decoder's time by vocabulary size."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.5), width_ratios=(3, 2))
    both = [result for result in stages if "plain" in result]
    spreads = {form: [spread(r[form]["seconds"]) for r in both] for form in ("plain", "ours")}
    medians = {form: [s.median for s in of_form] for form, of_form in spreads.items()}
    places = range(len(both))
    left.hlines(places, medians["ours"], medians["plain"], color="lightgray")
    for form, colour in (("plain", "tab:gray"), ("ours", "tab:blue")):
        errors = [[s.median - s.low, s.high - s.median] for s in spreads[form]]
        left.errorbar(
            medians[form], places, xerr=list(zip(*errors, strict=True)) or None,
            fmt="o", color=colour, label=form,
        )  # fmt: skip
    for place, (result, *of_forms) in enumerate(zip(both, *spreads.values(), strict=True)):
        left.annotate(
            f"{speed_up(result):.1f}×", (max(s.high for s in of_forms), place), (8, 0),
            textcoords="offset points", va="center", fontsize=7,
        )  # fmt: skip
    left.set_yticks(places, [_label(result["case"]) for result in both], fontsize=7)
    left.invert_yaxis()
    left.set_xlabel("seconds (median and quartiles), and plain / ours")
    if both:
        left.set_xscale("log")
        left.margins(x=0.1)
        left.legend()
    for mode, points in curves(curve).items():
        sizes, seconds, _ = zip(*points, strict=True)
        line = fit_line(sizes, seconds)
        (marks,) = right.plot(sizes, seconds, "o", label=f"{mode}, R² = {line.r_squared:.4f}")
        ends = [0, max(sizes)]
        right.plot(ends, [line.start + line.slope * x for x in ends], color=marks.get_color())
    right.set_xlabel("classes T")
    right.set_ylabel("seconds of our decoder")
    if curve:
        right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def summary(result: dict) -> str:
    """A case and its times in a line."""
    label = _label(result["case"])
    if "error" in result:
        return f"{label}: {result['error']}"
    text = f"{label}: ours {spread(result['ours']['seconds']).median:.3f} s"
    if "plain" in result:
        plain = spread(result["plain"]["seconds"]).median
        text += f", plain {plain:.3f} s, {speed_up(result):.2f} times"
    return text


def _label(case: dict) -> str:
    parts = [case["stage"], _mode(case), f"T={case['classes']}" if case["classes"] else ""]
    parts.append("" if case["dtype"] == "float32" else case["dtype"])
    parts.append("" if case["batch"] == 1 else f"batch {case['batch']}")
    return ", ".join(part for part in parts if part)


def _mode(case: dict) -> str:
    return case["mode"] if case["stage"] in ("decoder", "whole image") else ""


def _times(plain: list[float] | None, ours: list[float]) -> list[str]:
    own = spread(ours)
    cells = [_milliseconds(own.median), f"{_milliseconds(own.low)}-{_milliseconds(own.high)}"]
    if plain is None:
        return ["", *cells, ""]
    theirs = spread(plain).median
    return [_milliseconds(theirs), *cells, f"{theirs / own.median:.2f}"]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}" if seconds < 0.01 else f"{1e3 * seconds:.0f}"


def _floor(work: Work, seconds: list[float], machine: Machine, dtype: str) -> list[str]:
    if work == Work():
        return ["", ""]
    least = machine.floor(work, dtype)
    return [_milliseconds(least), f"{spread(seconds).median / least:.1f}"]


def _scaled(number: int | None, unit: float, digits: int) -> str:
    return "" if number is None else f"{number / unit:.{digits}f}"


def _checks(checks: dict) -> str:
    names = {
        "argmax_equal": lambda x: f"labels {100 * x:.2f} %",
        "max_difference": lambda x: f"scores {x:.0e}",
        "relative_difference": lambda x: f"{x:.0e} of std",
        "text_passes": lambda x: f"{x} text passes",
        "plain_survivors": lambda x: f"plain keeps {'/'.join(map(str, x))}",
    }
    return ", ".join(show(checks[name]) for name, show in names.items() if name in checks)
