"""Measure SED, stage by stage, against its plain form on the same machine and weights.

    python tools/benchmark.py --quick                  # under two minutes on two CPU cores
    python tools/benchmark.py --parts levels           # the levels that are asked for
    python tools/benchmark.py --vocabulary-sizes 150,847 --modes early --dtypes float16 \\
        --config-file configs/convnextL_768.yaml MODEL.WEIGHTS sed_large.pth TEST.TOPK 4

The parts are the table of stages ("stages"), the levels ("levels") and our decoder's time by
vocabulary size ("curve"). Plain and ours run by turns in one process; on the CPU the levels are
measured a second time in processes that keep freed memory, as the programs do. Without
MODEL.WEIGHTS the weights are random, texts and features too, and early rejection keeps a chosen
number of classes.
Memory is what a run takes above the loaded model, inputs and answer counted: on the CPU the peak
of the resident memory of a fresh process for each case, on a GPU what torch allocated.
Writes report.md, results.json and plot.png into the output folder.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from datetime import datetime, timezone
from itertools import chain, product
from pathlib import Path

# Run as a script, the folder of `tools` is not among those that modules are looked for in.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from sed_d2.cli.errors import one_sentence  # noqa: E402
from sed_d2.data.files import write_whole  # noqa: E402
from sed_d2.device import best_device, check_device  # noqa: E402
from sed_d2.shapes import embedded, get_sed_cfg  # noqa: E402
from tools.benchmarking import levels as levels_module  # noqa: E402
from tools.benchmarking import report as report_module  # noqa: E402
from tools.benchmarking.case import Settings  # noqa: E402
from tools.benchmarking.floor import Machine  # noqa: E402
from tools.benchmarking.stages import Case  # noqa: E402
from tools.page import describe_machine, find_marked, update_page  # noqa: E402

CONFIG_FILE = "convnextB_768.yaml"
PARTS = ("stages", "levels", "curve")
STAGES = (
    "read", "encoder", "text", "second start", "cost map", "decoder", "upsampling", "labels",
    "whole image",
)  # fmt: skip
CURVE_SIZES = (50, 150, 459, 847, 1400, 2000)
CURVE_RESOLUTION = 256
"""Side of the pictures of the curve on the CPU, where 2,000 classes at 768 would take minutes."""
QUICK_RESOLUTION = 256
TEXT_CLASSES = 4
"""Classes of the text stage: plain takes seconds for each."""
ALLOCATING = ("decoder", "encoder", "whole image")
"""Stages whose time depends on what becomes of freed memory."""
PLAIN_BYTES = {False: 36, True: 71}
"""Bytes that the plain full decoder of the base model takes for each class and pixel, by whether
freed memory is kept (3.2 and 6.2 GB for 150 classes at 768×768)."""


def parser() -> argparse.ArgumentParser:
    """The options."""

    def names(text: str, known: tuple[str, ...]) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return chosen

    def numbers(text: str) -> list[int]:
        try:
            chosen = [int(number) for number in text.split(",")]
        except ValueError:
            chosen = [0]
        if min(chosen) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers above 0")
        return chosen

    def at_least(least: float, kind: type, text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = least - 1
        if not number >= least:
            whole = "whole " if kind is int else ""
            raise argparse.ArgumentTypeError(f"{text!r} is no {whole}number from {least} on")
        return number

    def count(least: int):
        return functools.partial(at_least, least, int)

    def option(name: str, kind, default, text: str):
        shown = ",".join(map(str, default)) if isinstance(default, list | tuple) else default
        parser.add_argument(name, type=kind, default=default, help=f"{text} ({shown})")

    def choice(known: tuple[str, ...]):
        return functools.partial(names, known=known)

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--config-file", default=CONFIG_FILE, help="the model (%(default)s)")
    model.add_argument(
        "--embedded", action="store_true", help="the package's own small trained model"
    )
    option("--device", str, best_device(), "where it runs")
    option("--threads", count(1), torch.get_num_threads(), "threads of torch on the CPU")
    option("--parts", choice(PARTS), list(PARTS), "what is measured")
    option("--stages", choice(STAGES), list(STAGES), "of the table of stages")
    option("--vocabulary-sizes", numbers, [150, 459, 847], "numbers of classes")
    option(
        "--modes", choice(("full", "early")), ["full", "early"], "all classes, or early rejection"
    )
    dtypes = ("float32", "bfloat16", "float16")
    option("--dtypes", choice(dtypes), ["float32", "bfloat16"], "of ours; plain has float32")
    option("--batches", numbers, [1], "images at a time, for the encoder and the whole image")
    option(
        "--survivors", count(0), 60, "classes kept where weights are random; 0: the model's choice"
    )
    option("--warmup", count(1), 1, "runs of each form before those that are timed")
    option("--repeats", count(1), 5, "timed runs of each form")
    option(
        "--seconds",
        functools.partial(at_least, 0, float),
        300.0,
        "no more repeats of a case after that, but at least 2",
    )
    option("--output", Path, Path("output/benchmark"), "the folder")
    parser.add_argument("--quick", action="store_true", help="a small part, for a first look")
    parser.add_argument(
        "--update-page",
        nargs=2,
        metavar=("PAGE", "MARK"),
        help="also put the report between <!-- begin MARK --> and <!-- end MARK --> of a page",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    return parser


def shorten(args, cfg) -> list[str]:
    """Make the options and the config those of ``--quick``; returns what is left out, in words."""
    if args.parts == ["levels"]:
        raise ValueError("The levels take more than --quick has time for: leave --quick out.")
    cfg.MODEL.CLIP.RESOLUTION = min(cfg.MODEL.CLIP.RESOLUTION, QUICK_RESOLUTION)
    args.opts = [*args.opts, "MODEL.CLIP.RESOLUTION", str(cfg.MODEL.CLIP.RESOLUTION)]
    args.parts = [part for part in args.parts if part != "levels"]
    args.stages = [s for s in args.stages if s not in ("text", "second start")]
    args.vocabulary_sizes, args.batches, args.dtypes = [60, 150], [1], ["float32"]
    args.repeats, args.seconds, args.survivors = 3, 5.0, min(args.survivors, 20)
    return [
        "Quick, so left out: the levels, text, half precision, other batches, vocabularies of more "
        "than 150 classes (400 in the curve), and more than 256×256 pixels. All cases share a "
        "process, so that memory is a lower bound."
    ]


def stage_cases(args) -> list[Case]:
    """The cases of the table of stages."""
    cases = []
    for stage in args.stages:
        sizes, modes, dtypes, batches = [0], ["full"], ["float32"], [1]
        if stage in ("encoder", "cost map", "decoder", "whole image"):
            dtypes = args.dtypes
        if stage in ("encoder", "whole image"):
            batches = args.batches
        if stage in ("decoder", "whole image"):
            modes = args.modes
        if stage not in ("read", "encoder"):
            sizes = args.vocabulary_sizes
        if stage == "text":
            sizes = [TEXT_CLASSES]
        if stage == "second start":
            sizes = [min(847, max(sizes))]
        combinations = product(sizes, modes, dtypes, batches)
        cases += [Case(stage, *combination) for combination in combinations]
    return cases


class Job:
    """Runs cases in processes of their own.

    Args:
        settings: how they are measured.
        resolution: side of the model's pictures, which tells what plain would take.
        fresh: a process for each case; else one for all.
    """

    def __init__(self, settings: Settings, resolution: int, fresh: bool = True):
        self.settings, self.resolution, self.fresh = settings, resolution, fresh
        self.left_out: list[str] = []

    def machine(self, dtypes: list[str]) -> Machine:
        """Measure the machine."""
        return Machine(**self._run({"machine": dtypes}))

    def measure(self, cases: list[Case]) -> list[dict]:
        """A result for each case; {"case", "error"} for one whose process failed."""
        cases = [self._affordable(case) for case in cases]
        groups = [[case] for case in cases] if self.fresh or not cases else [cases]
        results = []
        for group in groups:
            try:
                answers = self._run({"cases": [asdict(case) for case in group]})
            except ChildProcessError as error:
                answers = [{"case": asdict(case), "error": str(error)} for case in group]
            for answer in answers:
                print(report_module.summary(answer), flush=True)
            results += answers
        return results

    def _affordable(self, case: Case) -> Case:
        """The case, without plain where that would take most of the memory that is left."""
        whole = case.stage in ("decoder", "whole image") and case.mode == "full"
        bytes_each = PLAIN_BYTES[self.settings.keeps_memory]
        needed = bytes_each * case.classes * self.resolution**2 if whole else 0
        if not case.plain or needed < 0.7 * free_bytes(self.settings.device):
            return case
        self.left_out.append(
            f"The plain form of {case.stage}, full, T={case.classes} is left out"
            f"{' with freed memory kept' if self.settings.keeps_memory else ''}: it takes about "
            f"{needed / 1e9:.0f} GB, more than 70 % of the "
            f"{free_bytes(self.settings.device) / 1e9:.0f} GB that are free."
        )
        return replace(case, plain=False)

    def _run(self, job: dict):
        with tempfile.TemporaryDirectory() as folder:
            job_file, results = Path(folder, "job.json"), Path(folder, "results.json")
            job_file.write_text(json.dumps({"settings": asdict(self.settings), **job}))
            script = Path(__file__).with_name("benchmarking") / "case.py"
            command = [sys.executable, str(script), str(job_file), str(results)]
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            if results.is_file() and done.returncode == 0:
                return json.loads(results.read_text())
        last = (done.stderr.strip().splitlines() or [""])[-1]
        if done.returncode == 1 and last.startswith("error: "):
            raise ValueError(last.removeprefix("error: "))
        sys.stderr.write(done.stderr)
        killed = f"killed by signal {-done.returncode}, perhaps for its memory"
        raise ChildProcessError(killed if done.returncode < 0 else last)


def free_bytes(device: str) -> float:
    """Memory that can be taken on a device; infinite where that is unknown."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next(1024 * float(line.split()[1]) for line in lines if "MemAvailable" in line)


def caveats(args, cfg) -> list[str]:
    """How the measurement differs from that of the levels, in words."""
    asked = {
        "model": (cfg.MODEL.CLIP.NAME, "convnext_base_w_320"),
        "side of the pictures": (cfg.MODEL.CLIP.RESOLUTION, 768),
        "TEST.TOPK": (cfg.TEST.TOPK, 8),
        "survivors": (args.survivors, 60),
    }
    if torch.device(args.device).type == "cpu":
        asked["threads"] = (args.threads, 2)
    others = [f"{name} {own}, not {level}" for name, (own, level) in asked.items() if own != level]
    if "levels" not in args.parts or not others:
        return []
    return [f"The levels are asked of something else than was measured here: {'; '.join(others)}."]


def describe(args, cfg, machine: Machine) -> list[str]:
    """The machine, the versions and the inputs, in sentences."""
    speeds = ", ".join(f"{2e-9 * v:.0f} GFLOP/s in {k}" for k, v in machine.multiply_adds.items())
    load = f", load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    weights, name = cfg.MODEL.WEIGHTS, cfg.MODEL.CLIP.NAME
    if weights:
        inputs = (
            f"Trained weights ({weights}), a scene of the world of shapes and real texts; the "
            "survivors are the model's own. In the curve texts are random"
        )
    else:
        inputs = "Random weights, so that texts and the decoder's features are random too"
    kept = (
        f"early rejection keeps {args.survivors} classes at every level, evenly spaced in the "
        "vocabulary, in plain and ours alike, after the auxiliary heads and the choice ran"
        if args.survivors
        else "early rejection keeps what the auxiliary heads choose"
    )
    return [
        f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC{load}; "
        f"{describe_machine(torch.device(args.device), args.threads)}. A matrix product was "
        f"measured at {speeds}, a copy at {machine.bytes / 1e9:.1f} GB/s read and written.",
        f"Model: {name} at {cfg.MODEL.CLIP.RESOLUTION}×{cfg.MODEL.CLIP.RESOLUTION}, k = "
        f"{cfg.TEST.TOPK}. {inputs}; {'there ' if weights else ''}{kept}.",
        f"Medians of up to {args.repeats} runs (at least 2), plain and ours by turns. The text "
        f"stage has {TEXT_CLASSES} classes of ADE20K-847 with their synonyms.",
    ]


@one_sentence()
def main(arguments=None) -> None:
    """Parse the command line, measure, print and write."""
    args = parser().parse_args(arguments)
    if args.embedded:
        embedded.check_weights()
        args.config_file = embedded.CONFIG_FILE
        args.opts = [*embedded.weight_options(), *args.opts]
    else:
        # Random weights need no download; a pair may name others.
        args.opts = ["MODEL.CLIP.PRETRAINED", "", *args.opts]
    cfg = get_sed_cfg(args.config_file, args.opts)
    check_device(args.device)
    if cfg.MODEL.AUTOCAST:
        raise ValueError("MODEL.AUTOCAST would hold for the plain form too: use --dtypes.")
    if args.update_page:
        find_marked(Path(args.update_page[0]), args.update_page[1])
    notes = shorten(args, cfg) if args.quick else []
    resolution, top_k = cfg.MODEL.CLIP.RESOLUTION, cfg.TEST.TOPK
    args.output.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        config_file=args.config_file,
        opts=tuple(args.opts),
        device=args.device,
        threads=args.threads,
        survivors=args.survivors,
        warmup=args.warmup,
        repeats=args.repeats,
        seconds=args.seconds,
    )
    cpu = torch.device(args.device).type == "cpu"
    trained = bool(cfg.MODEL.WEIGHTS)
    job = Job(settings, resolution, fresh=not args.quick)
    wanted = levels_module.levels(
        "cpu" if cpu else args.device, top_k, args.survivors, TEXT_CLASSES
    )
    dtypes = {"float32", *args.dtypes, *(level.case.dtype for level in wanted)}
    machine = job.machine(sorted(dtypes if not args.quick else {"float32"}))
    tables, results, curve = [], {"stages": [], "levels": []}, []
    if "levels" in args.parts:
        cases = [level.case for level in wanted]
        profiling = Job(replace(settings, profiles=True), resolution)
        results["levels"] = profiling.measure(cases)
        job.left_out += profiling.left_out
        kept = {}
        if cpu:
            keeps = Job(replace(settings, keeps_memory=True), resolution)
            again = [case for case in cases if case.stage in ALLOCATING]
            results["levels_with_memory_kept"] = keeps.measure(again)
            kept = dict(zip(again, results["levels_with_memory_kept"], strict=True))
            job.left_out += keeps.left_out
        kept = [kept.get(case) for case in cases]
        rows = report_module.level_rows(wanted, results["levels"], kept, machine, trained)
        tables.append(("Levels", report_module.LEVEL_HEADERS, rows))
        rows = report_module.profile_rows(wanted, results["levels"], machine, trained)
        if rows:
            tables.append(("Levels that were not met", report_module.PROFILE_HEADERS, rows))
    if "stages" in args.parts:
        results["stages"] = job.measure(stage_cases(args))
        rows = report_module.stage_rows(results["stages"], machine)
        tables.append(("Stages", report_module.STAGE_HEADERS, rows))
    if "curve" in args.parts:
        side = min(resolution, CURVE_RESOLUTION if cpu else resolution)
        side = min(side, CURVE_RESOLUTION // 2) if args.quick else side
        sizes = [50, 100, 200, 400] if args.quick else CURVE_SIZES
        opts = (*settings.opts, "MODEL.CLIP.RESOLUTION", str(side))
        curve_job = Job(replace(settings, opts=opts, structured=True), side, fresh=not args.quick)
        cases = [Case("decoder", n, mode, plain=False) for mode in args.modes for n in sizes]
        curve = curve_job.measure(cases)
        title = f"Our decoder by vocabulary size, {side}×{side} pixels"
        headers = ("mode", "T", "ms", "peak MB", "line through the times")
        tables.append((title, headers, report_module.curve_rows(curve)))
    notes = [*describe(args, cfg, machine), *notes, *caveats(args, cfg), *job.left_out]
    report = {"notes": notes, "tables": tables}
    print("\n" + report_module.render(report, "simple"))
    text = report_module.render(report, "github")
    content = {**report, **results, "curve": curve, "machine": machine._asdict()}
    content["settings"] = asdict(settings)
    for name, data in (("report.md", text), ("results.json", json.dumps(content, indent=1))):
        write_whole(args.output / name, lambda file, data=data: file.write(f"{data}\n".encode()))
    report_module.plot(args.output / "plot.png", results["levels"] or results["stages"], curve)
    if args.update_page:
        update_page(Path(args.update_page[0]), args.update_page[1], text)
    print(f"\nWritten: report.md, results.json and plot.png in {args.output}")
    if any("error" in result for result in (*chain.from_iterable(results.values()), *curve)):
        sys.exit("error: some cases failed, see their lines")


if __name__ == "__main__":
    main()
