"""Colours of classes: a fixed palette, and the colours that classes have in an image."""

from collections.abc import Iterator
from functools import cache

import numpy as np

#: Pixels converted to floating point at a time, which bounds the memory for large images.
BAND_PIXELS = 1 << 20
#: Minimum Oklab distance between the colours that `image_colours` returns. 0.02 is just visible.
MIN_DISTANCE = 0.08


@cache
def palette(num_classes: int) -> np.ndarray:
    """Return the colours of classes 0 to ``num_classes`` - 1: (num_classes, 3) uint8 RGB.

    Each colour is the one farthest from all before it, among colours that are neither pale nor
    dark nor glaring. So a class has the same colour in all pictures, however many classes there
    are.
    """
    grid, lab = colour_grid()
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    clear = (chroma > 0.1) & (chroma < 0.2) & (lab[:, 0] > 0.5) & (lab[:, 0] < 0.87)
    grid, lab, chroma = grid[clear], lab[clear], chroma[clear]
    chosen = [int(chroma.argmax())]
    # Lightness counts less, because the overlay keeps the light and shade of the image.
    lab = lab * (0.6, 1, 1)
    distance = np.full(len(lab), np.inf)
    while len(chosen) < min(num_classes, len(grid)):
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    colours = np.resize(grid[chosen], (num_classes, 3)).astype(np.uint8)
    colours.flags.writeable = False  # all callers share the cached array
    return colours


def image_colours(image: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the colour that each class has in an image, moved where two classes look alike.

    A class starts from the mean colour of the brighter half of its pixels, so that shade and dark
    stripes do not dull it. In order of falling size, each class takes the colour nearest to its
    mean that differs from those already taken.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers in 0..T-1.
        num_classes: T.

    Returns:
        (T, 3) uint8 RGB; black for classes without pixels.

    Raises:
        ValueError: image and labels differ in size.
    """
    check_size(image, labels)
    brightness = np.zeros((num_classes, 256), np.int64)  # a histogram for each class
    for band in bands(labels.shape):
        bins = labels[band].astype(np.int64) * 256 + image[band].max(axis=2)
        brightness += np.bincount(bins.ravel(), minlength=brightness.size).reshape(num_classes, 256)
    counts = brightness.sum(axis=1)
    medians = (2 * brightness.cumsum(axis=1) > counts[:, None]).argmax(axis=1)
    sums = np.zeros((num_classes, 4))  # red, green, blue, number of pixels
    for band in bands(labels.shape):
        bright = image[band].max(axis=2) >= medians[labels[band]]
        ids, pixels = labels[band][bright], image[band][bright]
        for channel, values in enumerate((*pixels.T, None)):
            sums[:, channel] += np.bincount(ids, values, num_classes)
    means = oklab(sums[:, :3] / np.maximum(sums[:, 3:], 1))

    grid, lab = colour_grid()
    colours = np.zeros((num_classes, 3), np.uint8)
    free = np.full(len(lab), np.inf)  # distance of each colour to the nearest one taken
    for index in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]:
        # Lightness counts less, because a class called "yellow" may be darker but not green.
        offset = np.linalg.norm((lab - means[index]) * (0.3, 1, 1), axis=1)
        offset[free < min(MIN_DISTANCE, free.max())] = np.inf
        nearest = int(offset.argmin())
        colours[index] = grid[nearest]
        free = np.minimum(free, np.linalg.norm(lab - lab[nearest], axis=1))
    return colours


@cache
def colour_grid() -> tuple[np.ndarray, np.ndarray]:
    """Return a grid of all colours, 17 levels a channel: (4913, 3) sRGB in 0..255, and in Oklab."""
    levels = np.linspace(0, 255, 17).round()
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    return grid, oklab(grid)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB to Oklab, in which the distance of two colours is how different they look.

    Args:
        rgb: (N, 3) sRGB in 0..255.

    Returns:
        (N, 3) lightness in 0..1 and two colour axes (B. Ottosson, "A perceptual color space for
        image processing", 2020).
    """
    unit = rgb / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    to_cones = (
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    )
    to_lab = (
        (0.2104542553, 0.7936177850, -0.0040720468),
        (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660),
    )
    return np.cbrt(linear @ np.transpose(to_cones)) @ np.transpose(to_lab)


def check_size(image: np.ndarray, labels: np.ndarray) -> None:
    """Raise a ValueError if image and labels differ in size."""
    if image.shape[:2] != labels.shape:
        raise ValueError(
            f"The image is {image.shape[:2]} but its labels are {labels.shape}; "
            "give one label per pixel."
        )


def bands(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of rows that cover an image (H, W), about BAND_PIXELS pixels each."""
    step = max(1, BAND_PIXELS // shape[1])
    yield from (slice(start, start + step) for start in range(0, shape[0], step))
