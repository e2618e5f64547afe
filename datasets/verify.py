#!/usr/bin/env python
"""Verify prepared data sets: numbers, pairs, sizes, label values; exit code 1 if one is wrong."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sed_d2.cli.datasets import add_dataset_options
from sed_d2.cli.errors import one_sentence
from sed_d2.paths import data_root

if TYPE_CHECKING:
    from sed_d2.data import Split
    from sed_d2.data.verification import Report

# The functions import Detectron2, so that --help needs no torch.


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help="registered names or YAML files of your own data; default: all prepared benchmarks",
    )
    add_dataset_options(parser)
    parser.add_argument(
        "--json", type=Path, help="also write the reports, with label histograms, to this file"
    )
    return parser.parse_args()


def find_splits(names: list[str]) -> list[Split]:
    """Return the splits of registered names and of YAML files."""
    from detectron2.data import MetadataCatalog

    from sed_d2.data import SPLITS
    from sed_d2.data.custom import register_from_yaml

    splits = []
    for name in names:
        if name.endswith((".yaml", ".yml")):
            name = register_from_yaml(name)
        split = MetadataCatalog.get(name).get("split")
        if split is None:
            known = ", ".join(split.name for split in SPLITS)
            raise ValueError(
                f"There is no data set {name!r}; choose a YAML file or one of {known}."
            )
        splits.append(split)
    return splits


def find_prepared() -> list[Split]:
    """Return the prepared benchmarks, and print the names of the others."""
    from sed_d2.data import SPLITS

    prepared = [split for split in SPLITS if split.label_folder.is_dir()]
    if not prepared:
        raise FileNotFoundError(
            f"No prepared benchmark in {data_root()}; prepare one as datasets/README.md says, or "
            "set --root."
        )
    others = [split.name for split in SPLITS if split not in prepared]
    if others:
        print(f"Not prepared: {', '.join(others)}.")
    return prepared


def print_reports(reports: list[Report]) -> None:
    """Print the table, the classes that never occur, and on stderr the problems."""
    from sed_d2.data.verification import format_table

    print(format_table(reports))
    for report in reports:
        if report.absent:
            names = ", ".join(report.absent[:10]) + (", ..." if len(report.absent) > 10 else "")
            print(f"{report.name}: {len(report.absent)} classes never occur: {names}")
    for report in reports:
        for problem in report.problems:
            print(problem, file=sys.stderr)


@one_sentence()
def main() -> int:
    """Verify, print and write the reports; return the exit code."""
    args = parse_args()
    from sed_d2 import Vocabulary  # noqa: F401  (registers all data sets)
    from sed_d2.data.files import write_text_whole
    from sed_d2.data.verification import verify

    os.environ["DETECTRON2_DATASETS"] = str(args.root)
    splits = find_splits(args.names) if args.names else find_prepared()
    reports = [verify(split, max(args.jobs, 1)) for split in splits]
    print_reports(reports)
    if args.json:
        content = [asdict(report) | {"absent": report.absent} for report in reports]
        write_text_whole(args.json, json.dumps(content, indent=2))
    return int(any(report.problems for report in reports))


if __name__ == "__main__":
    sys.exit(main())
