"""Make the shapes data set: a small world of textured backgrounds and coloured objects.

    python tools/make_shapes.py            # into $DETECTRON2_DATASETS/shapes (datasets/shapes)
    python tools/make_shapes.py --train 64 --val 16

A second call adds what is missing.
"""

import argparse
import os
from pathlib import Path

from sed_d2.cli.errors import one_sentence
from sed_d2.data.benchmarks import data_root
from sed_d2.shapes import scenes as shapes


@one_sentence()
def main(arguments=None) -> None:
    """Parse the command line and write the data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {split: count for split, (_, _, count) in shapes.SPLITS.items()}
    parser.add_argument(
        "--root", type=Path, default=data_root(), help="the folder of the data sets (%(default)s)"
    )
    parser.add_argument("--train", type=int, default=sizes["train"], help="number of scenes")
    parser.add_argument(
        "--val", type=int, default=sizes["val_seen"], help="number of scenes, seen and unseen each"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all scenes")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that draw")
    args = parser.parse_args(arguments)
    counts = {"train": args.train, "val_seen": args.val, "val_unseen": args.val}
    shapes.write_dataset(args.root / "shapes", counts, args.seed, args.jobs)


if __name__ == "__main__":
    main()
