"""Options of the commands in ``datasets/``, and the run of a preparation."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..paths import data_root
from .errors import one_sentence


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--root`` and ``--jobs``."""
    parser.add_argument(
        "--root", type=Path, default=data_root(), help="folder of the data sets (%(default)s)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count(),
        help="number of files that are processed at a time (%(default)s)",
    )


def run_preparation(prepare: Callable[[int], None], description: str) -> None:
    """Run a preparation as a command with ``--root`` and ``--jobs``; an error exits with code 1.

    Args:
        prepare: prepares the data set with the given number of workers.
        description: the help text.
    """
    parser = argparse.ArgumentParser(description=description)
    add_dataset_options(parser)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ["DETECTRON2_DATASETS"] = str(args.root)
    try:
        with one_sentence():
            prepare(max(args.jobs, 1))
    except KeyboardInterrupt:
        sys.exit("Stopped; run the command again to continue.")
