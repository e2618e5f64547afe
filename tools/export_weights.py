"""Make a trained small model the embedded one: its CLIP and the rest, in half precision.

    python tools/export_weights.py output/quickstart/sed/model_final.pth

CLIP's file holds both towers, the image tower as SED has fine-tuned it, in open_clip's format;
SED's file holds the decoder.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from detectron2.modeling import build_model

from sed_d2.checkpoint import CLIP_PREFIX, SEDCheckpointer
from sed_d2.cli.errors import one_sentence
from sed_d2.data.files import write_whole
from sed_d2.shapes import embedded, get_sed_cfg


def halves(weights: dict) -> tuple[dict, dict]:
    """CLIP's parameters by open_clip's names, and the others, all in half precision."""
    clip, rest = {}, {}
    for key, value in weights.items():
        part = clip if key.startswith(CLIP_PREFIX) else rest
        part[key.removeprefix(CLIP_PREFIX)] = value.half()
    return clip, rest


@one_sentence()
def main(arguments=None) -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="what train_net.py wrote")
    args = parser.parse_args(arguments)
    # Through a model, so that a file that is damaged or another model's is an error before anything
    # is written.
    model = build_model(get_sed_cfg(embedded.CONFIG_FILE, ["MODEL.DEVICE", "cpu"]))
    SEDCheckpointer(model).load(str(args.checkpoint))
    weights = model.state_dict()
    files = (embedded.CLIP_FILE, embedded.SED_FILE)
    embedded.WEIGHTS.mkdir(exist_ok=True)
    for file, part in zip(files, halves(weights), strict=True):
        write_whole(file, partial(torch.save, part))
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")
    lines = "".join(map(embedded.digest_line, files))
    write_whole(embedded.DIGESTS, lambda file: file.write(lines.encode()))


if __name__ == "__main__":
    main()
