"""Make the shapes data set, scenes of coloured objects on textured backgrounds.

    python tools/make_shapes.py            # into $DETECTRON2_DATASETS/shapes (datasets/shapes)
    python tools/make_shapes.py --train 64 --val 16

A second call adds the scenes that are missing.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from sed_d2.cli.errors import one_sentence
from sed_d2.paths import data_root


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", type=Path, default=data_root(), help="folder of the data sets (%(default)s)"
    )
    parser.add_argument(
        "--train",
        type=int,
        metavar="N",
        help="training scenes (default: all)",
    )
    parser.add_argument(
        "--val",
        type=int,
        metavar="N",
        help="scenes of each validation split (default: all)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all scenes")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="number of processes that draw"
    )
    args = parser.parse_args(arguments)

    from sed_d2 import register

    register()
    from sed_d2.shapes import SPLITS, write_dataset

    asked = {"train": args.train, "val_seen": args.val, "val_unseen": args.val}
    counts = {
        split: SPLITS[split].default_count if count is None else count
        for split, count in asked.items()
    }
    write_dataset(args.root / "shapes", counts, args.seed, args.jobs)


if __name__ == "__main__":
    main()
