"""Make a trained small model the embedded one: write its weights into the package.

    python tools/export_weights.py output/quickstart/sed/model_final.pth

CLIP's file has both towers in open_clip's format, the image tower as SED has fine-tuned it. SED's
file has all other parameters. Both are in half precision.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sed_d2.cli.errors import one_sentence


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="the checkpoint that train_net.py wrote")
    args = parser.parse_args(arguments)

    from detectron2.modeling import build_model

    from sed_d2 import get_sed_cfg
    from sed_d2.checkpoint import SEDCheckpointer
    from sed_d2.shapes import embedded

    # A damaged checkpoint, or another model's, does not load, and nothing is written.
    model = build_model(get_sed_cfg(embedded.CONFIG_FILE, ["MODEL.DEVICE", "cpu"]))
    SEDCheckpointer(model).load(str(args.checkpoint))
    for file in embedded.write_weights(model):
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
