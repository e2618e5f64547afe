#!/usr/bin/env python
"""Make a tiny data set with masks and descriptions, as an example of your own data."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sed_d2.cli.errors import one_sentence
from sed_d2.paths import data_root

CLASSES = ("grass, lawn", "red ball", "blue box")
IGNORE_LABEL = 255
SIZE = 192
DESCRIPTION = """\
name: example_{split}
images: images/{split}
labels: masks/{split}
classes: classes.txt
ignore_label: 255
"""


def draw(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw a ball and a box on grass, and the mask; the border of the box is ignored."""
    noise = rng.normal(0, 12, (SIZE, SIZE, 1))
    image = Image.fromarray(np.clip((70, 140, 60) + noise, 0, 255).astype(np.uint8))
    mask = Image.new("L", image.size, 0)
    x, y = (int(value) for value in rng.integers(10, SIZE // 2, 2))
    ImageDraw.Draw(image).ellipse((x, y, x + 60, y + 60), fill=(205, 40, 35))
    ImageDraw.Draw(mask).ellipse((x, y, x + 60, y + 60), fill=1)
    x, y = (int(value) for value in rng.integers(SIZE // 2, SIZE - 60, 2))
    ImageDraw.Draw(image).rectangle((x, y, x + 50, y + 50), fill=(40, 70, 200))
    ImageDraw.Draw(mask).rectangle((x, y, x + 50, y + 50), fill=2, outline=IGNORE_LABEL, width=3)
    return image, mask


@one_sentence()
def main() -> None:
    """Write the images, the masks, the class list and a description of each split."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=data_root() / "example", help="%(default)s")
    folder = parser.parse_args().output
    rng = np.random.default_rng(0)
    for split, count in {"train": 16, "val": 4}.items():
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, mask = draw(rng)
            image.save(folder / "images" / split / f"{index:03d}.jpg")
            mask.save(folder / "masks" / split / f"{index:03d}.png")
        (folder / f"{split}.yaml").write_text(DESCRIPTION.format(split=split))
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    print(f"The data set is in {folder}; next: python datasets/verify.py {folder}/*.yaml")


if __name__ == "__main__":
    main()
