"""Train the small CLIP of the world of shapes from scratch.

    python tools/train_clip.py --output output/clip     # a second call continues a stopped run

The result is clip.pt in the output folder, in half precision, for
open_clip.create_model("shapes_convnext_atto", pretrained=...).
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detectron2.utils.logger import setup_logger

from sed_d2.cli.errors import one_sentence
from sed_d2.device import keep_freed_memory
from sed_d2.shapes.clip_data import PHASES
from sed_d2.shapes.clip_training import ClipTraining, TrainingOptions


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/clip"), help="output folder")
    for option, text in (("steps", "number of batches"), ("batch", "scenes in a batch")):
        parser.add_argument(
            f"--{option}",
            type=int,
            nargs=len(PHASES),
            metavar=tuple(phase.name for phase in PHASES),
            default=[getattr(phase, option) for phase in PHASES],
            help=f"{text} of each phase (default: %(default)s)",
        )
    parser.add_argument("--lr", type=float, default=2e-3, help="largest learning rate")
    for option, default, text in (
        ("period", 250, "steps between two evaluations, each with a saved state"),
        ("eval-pictures", 64, "scenes of each kind in an evaluation"),
        ("workers", 1, "number of processes that draw"),
        ("seed", 0, "seed of the weights, scenes and prompts"),
    ):
        parser.add_argument(f"--{option}", type=int, default=default, help=text)
    args = parser.parse_args(arguments)
    phases = [
        replace(phase, steps=steps, batch=batch)
        for phase, steps, batch in zip(PHASES, args.steps, args.batch, strict=True)
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    keep_freed_memory("cpu")
    setup_logger(str(args.output / "log.txt"), name="sed_d2", abbrev_name="sed")
    ClipTraining(
        TrainingOptions(
            output=args.output,
            phases=phases,
            lr=args.lr,
            period=args.period,
            eval_scenes=args.eval_pictures,
            workers=args.workers,
            seed=args.seed,
        )
    ).run()


if __name__ == "__main__":
    main()
