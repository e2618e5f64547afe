#!/usr/bin/env python
"""Verify prepared data sets: numbers, pairs, sizes, label values; exit code 1 if one is wrong."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from detectron2.data import MetadataCatalog

from sed_d2.cli.errors import one_sentence
from sed_d2.data import SPLITS, Split, data_root
from sed_d2.data.custom import register_from_yaml
from sed_d2.data.files import write_whole
from sed_d2.data.verification import table, verify


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help="registered names or YAML files of your own data; default: the benchmarks there are",
    )
    parser.add_argument(
        "--root", type=Path, default=data_root(), help="folder of the data sets (%(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="files at once")
    parser.add_argument(
        "--json", type=Path, help="also write the reports, with label histograms, to this file"
    )
    return parser.parse_args()


def find_split(name: str) -> Split:
    """The split of a registered name or of a YAML file."""
    if name.endswith((".yaml", ".yml")):
        name = register_from_yaml(name)
    split = MetadataCatalog.get(name).get("split")
    if split is None:
        known = ", ".join(split.name for split in SPLITS)
        raise ValueError(f"There is no data set {name!r}; choose a YAML file or one of {known}.")
    return split


@one_sentence()
def main() -> int:
    """Verify and report; the exit code."""
    args = parse_args()
    os.environ["DETECTRON2_DATASETS"] = str(args.root)
    splits = [find_split(name) for name in args.names]
    if not args.names:
        splits = [split for split in SPLITS if split.label_folder.is_dir()]
        if not splits:
            raise FileNotFoundError(
                f"No prepared benchmark in {args.root}; prepare one as datasets/README.md says, "
                "or set --root."
            )
        others = [split.name for split in SPLITS if split not in splits]
        if others:
            print(f"Not prepared: {', '.join(others)}.")
    reports = [verify(split, max(args.jobs, 1)) for split in splits]
    print(table(reports))
    for report in reports:
        if report.absent:
            names = ", ".join(report.absent[:10]) + (", ..." if len(report.absent) > 10 else "")
            print(f"{report.name}: {len(report.absent)} classes never occur: {names}")
    for report in reports:
        for problem in report.problems:
            print(problem, file=sys.stderr)
    if args.json:
        content = [asdict(report) | {"absent": report.absent} for report in reports]
        write_whole(args.json, lambda file: file.write(json.dumps(content, indent=2).encode()))
    return int(any(report.problems for report in reports))


if __name__ == "__main__":
    sys.exit(main())
