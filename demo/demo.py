#!/usr/bin/env python
r"""Segment images with any class names.

For each image it writes two files: NAME_overlay.jpg, the image with its classes in colours and a
legend of their shares, and NAME_labels.png, whose pixel values are the indices of the classes (8
bits for up to 256 classes, else 16).

    python demo/demo.py --input demo/images --classes "red striped circle, blue star, grass, sand"
    python demo/demo.py --config-file configs/convnextB_768.yaml --input street.jpg photos/ \
        --classes "car, traffic light, person|pedestrian, sky" --opts MODEL.WEIGHTS sed_base.pth
"""

from __future__ import annotations

import argparse
import logging
import sys
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from sed_d2.cli.errors import one_sentence, sentence
from sed_d2.vocabulary import Vocabulary

if TYPE_CHECKING:
    from sed_d2.predictor import OpenVocabPredictor, Prediction

# The functions import torch and Detectron2, so that --help needs neither.

logger = logging.getLogger(__name__)

#: The number of classes in the line that is printed for an image.
SHOWN_CLASSES = 5


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments, by default those of this process."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The exit code is 1 if an image cannot be segmented; the others still are.",
    )
    add = parser.add_argument
    add("--config-file", metavar="YAML",
        help="the config of the model; default: the small embedded model, which knows coloured "
        "shapes on textures, with its own weights")  # fmt: skip
    add("--input", required=True, nargs="+", metavar="PATH",
        help="image files, folders of images, and patterns such as 'photos/**/*.jpg'")  # fmt: skip
    add("--classes", metavar="NAMES",
        help="class names, separated by commas, and their synonyms by '|'; or a .txt file with a "
        "class per line, or a .json file with a list; default: those of the config's test data "
        "set")  # fmt: skip
    add("--output", type=Path, default=Path("output/pictures"), metavar="FOLDER",
        help="folder that the pictures are written into; default: %(default)s")  # fmt: skip
    add("--verbose", action="store_true", help="log every step, and the traceback of errors")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="config keys to change, such as MODEL.WEIGHTS model.pth TEST.FAST_INFERENCE True; "
        "the last option")  # fmt: skip
    return parser.parse_args(arguments)


@one_sentence()
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code, 0 if all images were segmented."""
    args = parse_arguments(arguments)
    from sed_d2 import OpenVocabPredictor, get_sed_cfg
    from sed_d2.device import keep_freed_memory
    from sed_d2.shapes.embedded import get_embedded_cfg, unknown_words

    embedded = args.config_file is None
    cfg = get_embedded_cfg(args.opts) if embedded else get_sed_cfg(args.config_file, args.opts)
    set_up_logging(args.verbose, cfg.MODEL.WEIGHTS_STRICT)
    vocabulary = None if args.classes is None else Vocabulary.parse(args.classes)
    images, problems = find_images(args.input)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not images:
        return 1
    outputs = output_files(images, args.output)
    args.output.mkdir(parents=True, exist_ok=True)

    keep_freed_memory(cfg.MODEL.DEVICE)
    predictor = OpenVocabPredictor(cfg)
    if vocabulary is None and predictor.vocabulary is None:
        raise ValueError("no class names: give --classes, because the config's data sets have none")
    if not cfg.MODEL.WEIGHTS:
        print(
            "warning: the decoder's weights are random, so the labels are meaningless: give a "
            "checkpoint with --opts MODEL.WEIGHTS",
            file=sys.stderr,
        )
    if embedded and (words := unknown_words(vocabulary or predictor.vocabulary)):
        print(
            f"note: the embedded model does not know {', '.join(map(repr, words))}; "
            "it knows coloured shapes on textures, such as 'red striped circle' and 'grass'",
            file=sys.stderr,
        )
    done = segment(predictor, vocabulary, images, outputs)
    count = len(images) + len(problems)
    print(f"{done} of {count} inputs segmented; the pictures are in {args.output}")
    return 0 if done == count else 1


def segment(
    predictor: OpenVocabPredictor,
    vocabulary: Vocabulary | None,
    images: list[Path],
    outputs: list[tuple[Path, Path]],
) -> int:
    """Write the overlay and the label map of each image; return the number of successes.

    An image that fails is reported on stderr.
    """
    from sed_d2.data.files import read_image
    from sed_d2.visualization import draw_overlay, label_map, save_picture

    done = 0
    with tqdm(images, unit="image", disable=len(images) == 1) as progress:
        for path, (overlay_file, labels_file) in zip(progress, outputs, strict=True):
            try:
                image = read_image(path)
                prediction = predictor(image, vocabulary)
                labels = label_map(prediction.labels, len(prediction.vocabulary))
                save_picture(labels, labels_file)
                save_picture(draw_overlay(image, prediction), overlay_file)
            except Exception as error:  # the other images are still segmented
                logger.debug("The traceback of the error:", exc_info=True)
                text = sentence(error)
                prefix = "" if str(path) in text else f"{path}: "
                tqdm.write(f"error: {prefix}{text}", file=sys.stderr)
            else:
                done += 1
                tqdm.write(f"{path}: {summary(prediction)}")
    return done


def set_up_logging(verbose: bool, strict: bool) -> None:
    """Log everything if ``verbose``; otherwise log errors, and warnings of a non-strict load."""
    level = logging.ERROR if strict else logging.WARNING
    logging.basicConfig(level=logging.DEBUG if verbose else level)


def find_images(inputs: list[str]) -> tuple[list[Path], list[str]]:
    """Find the image files of files, folders and patterns.

    Returns:
        The images without repetition, and a sentence for each input without an image.
    """
    suffixes = Image.registered_extensions()
    images: dict[Path, Path] = {}
    problems = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            found = sorted(
                p for p in path.iterdir()
                if p.suffix.lower() in suffixes and p.is_file() and not p.name.startswith(".")
            )  # fmt: skip
            problem = f"The folder {path} has no images; give another one."
        else:
            found = [path] if path.is_file() else sorted(map(Path, glob(text, recursive=True)))
            found = [p for p in found if p.is_file()]
            problem = f"The input {path} matches no file; check the path."
        if not found:
            problems.append(problem)
        for image in found:
            images.setdefault(image.resolve(), image)
    return list(images.values()), problems


def output_files(images: list[Path], folder: Path) -> list[tuple[Path, Path]]:
    """Choose the files of each image's overlay and label map.

    Images with the same stem get a number.

    Raises:
        ValueError: a file would overwrite one of the images.
    """
    sources = {image.resolve() for image in images}
    taken: set[str] = set()
    outputs = []
    for image in images:
        name, number = image.stem, 2
        while name.casefold() in taken:
            name, number = f"{image.stem}_{number}", number + 1
        taken.add(name.casefold())
        files = (folder / f"{name}_overlay.jpg", folder / f"{name}_labels.png")
        for output in files:
            if output.resolve() in sources:
                raise ValueError(
                    f"The picture {output} would overwrite an input; give another --output."
                )
        outputs.append(files)
    return outputs


def summary(prediction: Prediction) -> str:
    """List the largest classes with their shares: ``sky 61.2 %, cat 30.4 %, + 3 more``."""
    from sed_d2.visualization import percent

    found = prediction.found
    shares = [f"{c.name} {percent(c.share)}" for c in found[:SHOWN_CLASSES]]
    if len(found) > SHOWN_CLASSES:
        shares.append(f"+ {len(found) - SHOWN_CLASSES} more")
    return ", ".join(shares)


if __name__ == "__main__":
    sys.exit(main())
