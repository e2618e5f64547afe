r"""Time a model stage by stage, against its plain form on the same machine and weights.

    python tools/benchmark.py --quick                  # under two minutes on two CPU cores
    python tools/benchmark.py --parts levels           # the levels that SED is to reach
    python tools/benchmark.py --vocabulary-sizes 150,847 --modes early --dtypes float16 \
        --config-file configs/convnextL_768.yaml MODEL.WEIGHTS sed_large.pth TEST.TOPK 4

The plain form is the modules' own forward; the fast form is what inference runs on the device. The
parts are a table of stages, the levels, and the time of the head by vocabulary size ("curve"). The
forms run by turns in one process. Without MODEL.WEIGHTS weights, texts and features are random and
early rejection keeps a chosen number of classes. Writes report.md, results.json and plot.png.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

# A script's own folder is on the path, not the repository, where `tools` is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from detectron2.config import CfgNode

from sed_d2 import get_sed_cfg
from sed_d2.cli.errors import one_sentence
from sed_d2.device import best_device, check_device
from sed_d2.shapes import embedded
from tools.benchmarking import report
from tools.benchmarking.floor import Machine, measure_machine
from tools.benchmarking.measure import Result, run_cases
from tools.benchmarking.stages import FIXED_CLASSES, STAGES, Case
from tools.page import describe_machine, find_marked, update_page

CURVE_SIZES = (50, 150, 459, 847, 1400, 2000)

#: The largest side of the images with ``--quick``, and of the curve's images on a CPU, where 2,000
#: classes at 768 pixels would take minutes.
SMALL_SIDE = 256

#: The defaults with ``--quick``.
QUICK = {"parts": "stages,curve", "stages": "encoder,head,labels,whole image", "survivors": 20}
QUICK |= {"classes": "60,150", "dtype": "float32", "repeats": 3}


def list_of(*known: str) -> Callable[[str], list]:
    """Return a parser of what commas separate: words of ``known``, or whole numbers above 0."""

    def parse(text: str) -> list:
        values = text.split(",")
        for value in values:
            if not (value in known if known else value.isdecimal() and int(value)):
                expected = ", ".join(known) or "whole numbers above 0"
                raise argparse.ArgumentTypeError(f"{value!r} is unknown: use {expected}")
        return values if known else [int(value) for value in values]

    return parse


def parser(**defaults: Any) -> argparse.ArgumentParser:
    """Return the parser of the command line, with some other defaults."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)

    def add(name: str, kind: Callable, default: Any, text: str, **more: Any) -> None:
        text += " (%(default)s)"
        parser.add_argument(name, type=kind, default=default, help=text, **more)

    def count(text: str) -> int:
        return list_of()(text)[0]

    model = parser.add_mutually_exclusive_group()
    model.add_argument("--config-file", default="convnextB_768.yaml", help="config of the model")
    model.add_argument("--embedded", action="store_true", help="the package's small trained model")
    add("--vs", str, "plain", "the form to compare with", choices=("plain", "none"))
    add("--device", str, best_device(), "device of the model")
    add("--threads", count, torch.get_num_threads(), "threads of torch on the CPU")
    parts = ("stages", "levels", "curve")
    add("--parts", list_of(*parts), ",".join(parts), "what is measured")
    stages = ",".join(stage for stage in STAGES if stage != "training step")
    add("--stages", list_of(*STAGES), stages, "of the table; or training step")
    add("--vocabulary-sizes", list_of(), "150,459,847", "numbers of classes", dest="classes")
    add("--modes", list_of("full", "early"), "full,early", "all classes, or rejection", dest="mode")
    dtypes = list_of("float32", "bfloat16", "float16")
    add("--dtypes", dtypes, "float32,bfloat16", "of the fast form", dest="dtype")
    add("--batches", list_of(), "1", "images at a time", dest="batch")
    add("--survivors", int, 60, "classes kept with random weights; 0: the model's choice")
    add("--warmup", count, 1, "runs of each form before those that are timed")
    add("--repeats", count, 5, "timed runs of each form")
    add("--seconds", float, 300.0, "time after which a case has no more than 2 repeats")
    add("--output", Path, Path("output/benchmark"), "folder of the results")
    parser.add_argument("--keep-memory", action="store_true", help="keep freed CPU memory")
    parser.add_argument("--quick", action="store_true", help="a small part, for a first look")
    text = "also put the report between <!-- begin MARK --> and <!-- end MARK --> of a page"
    parser.add_argument("--update-page", nargs=2, metavar=("PAGE", "MARK"), help=text)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    parser.set_defaults(random_inputs=False, **defaults)  # random ones for trained weights too
    return parser


def read_options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, CfgNode]:
    """Parse the command line and read the config; ``opts`` become all its pairs."""
    args = parser().parse_args(arguments)
    if args.quick:
        args = parser(**QUICK).parse_args(arguments)
    # Random weights need no download; a pair may name others.
    model = ["MODEL.CLIP.PRETRAINED", ""]
    if args.embedded:
        embedded.check_weights()
        args.config_file, model = embedded.CONFIG_FILE, embedded.weight_options()
    args.opts = [*model, *args.opts]
    cfg = get_sed_cfg(args.config_file, args.opts)
    if args.quick:
        cfg.MODEL.CLIP.RESOLUTION = min(cfg.MODEL.CLIP.RESOLUTION, SMALL_SIDE)
        args.opts += ["MODEL.CLIP.RESOLUTION", str(cfg.MODEL.CLIP.RESOLUTION)]
    if cfg.TEST.PRECISION:
        raise ValueError("TEST.PRECISION would hold for the plain form too: use --dtypes.")
    check_device(args.device)
    if args.update_page:
        find_marked(Path(args.update_page[0]), args.update_page[1])
    return args, cfg


def stage_cases(args: argparse.Namespace) -> list[Case]:
    """Return the cases of the table of stages."""
    cases = []
    for stage in args.stages:
        for values in product(*(getattr(args, field) for field in STAGES[stage])):
            sizes = dict(zip(STAGES[stage], values, strict=True))
            cases.append(Case(stage, FIXED_CLASSES.get(stage, 0))._replace(**sizes))
    return cases


def describe(args: argparse.Namespace, cfg: CfgNode, machine: Machine) -> list[str]:
    """Describe the machine, the versions and the inputs."""
    speeds = ", ".join(f"{2e-9 * machine[x]:.0f} GFLOP/s in {x}" for x in machine if x != "bytes")
    load = f", load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    side, inputs = cfg.MODEL.CLIP.RESOLUTION, "Random weights, texts and features"
    if cfg.MODEL.WEIGHTS:
        inputs = "Trained weights, a scene of the world of shapes, real texts; random in the curve"
    kept = args.survivors if args.survivors > 0 else "the model's choice of"
    return [
        f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC{load}; "
        f"{describe_machine(torch.device(args.device), args.threads)}. A matrix product ran at "
        f"{speeds}, a copy at {machine['bytes'] / 1e9:.1f} GB/s read and written.",
        f"Model: {cfg.MODEL.CLIP.NAME} at {side}×{side}, k = {cfg.TEST.TOPK}. {inputs}. With "
        f"random texts early rejection keeps {kept} classes. Medians of up to {args.repeats} runs "
        f"(at least 2), the two forms by turns{', freed memory kept' * args.keep_memory}"
        f"{', all in one process, so that memory is a lower bound' * args.quick}.",
    ]


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    args, cfg = read_options(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    on_cpu = device.type == "cpu"
    levels = report.levels(on_cpu) if "levels" in args.parts else {}
    dtypes = {"float32", *args.dtype, *(case.dtype for case in levels)}
    machine = measure_machine(device, sorted(dtypes))
    results: dict[str, list[Result]] = {"levels": [], "stages": [], "curve": []}
    tables, notes = {}, []
    if levels:
        results["levels"] = run_cases(args, list(levels))
        rows = (results["levels"], levels.values(), machine, bool(cfg.MODEL.WEIGHTS))
        tables["Levels"] = report.level_rows(*rows)
    if "stages" in args.parts:
        results["stages"] = run_cases(args, stage_cases(args))
        tables["Stages"] = report.stage_rows(results["stages"], machine)
    if "curve" in args.parts:
        side = min(cfg.MODEL.CLIP.RESOLUTION, SMALL_SIDE if on_cpu else sys.maxsize)
        sizes = CURVE_SIZES[:3] if args.quick else CURVE_SIZES
        cases = [Case("head", size, mode, plain=False) for mode in args.mode for size in sizes]
        changes = {"opts": [*args.opts, "MODEL.CLIP.RESOLUTION", str(side)], "random_inputs": True}
        results["curve"] = run_cases(argparse.Namespace(**{**vars(args), **changes}), cases)
        tables[f"The head by vocabulary size, {side}×{side} pixels"] = report.stage_rows(
            results["curve"], machine
        )
        notes = [f"Time of the head, {line}." for line in report.fit_lines(results["curve"])]
    notes = [*describe(args, cfg, machine), *notes]
    print("\n" + report.render(notes, tables, "simple"))
    text = report.render(notes, tables, "github")
    content: dict[str, Any] = {"notes": notes, "machine": machine, "options": vars(args)}
    content |= {name: list(map(asdict, group)) for name, group in results.items()}
    (args.output / "report.md").write_text(f"{text}\n", encoding="utf-8")
    (args.output / "results.json").write_text(json.dumps(content, indent=1, default=str))
    plotted = results["levels"] or results["stages"]
    report.plot(args.output / "plot.png", plotted, results["curve"])
    if args.update_page:
        update_page(Path(args.update_page[0]), args.update_page[1], text)
    print(f"\nWritten: report.md, results.json and plot.png in {args.output}")
    if not all(result.seconds for group in results.values() for result in group):
        sys.exit("error: some cases failed, see their lines")


if __name__ == "__main__":
    main()
