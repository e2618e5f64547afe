"""Pictures of a prediction: panels side by side, the overlay with its legend, the label map."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .data.files import write_whole

if TYPE_CHECKING:
    from .predictor import FoundClass, Prediction

#: Colours of the page, of text, of shares and of the swatches' outlines.
BACKGROUND, INK, FAINT, OUTLINE = (255, 255, 255), (32, 33, 36), (110, 114, 120), (200, 203, 207)
#: Minimum width of the overlay's legend in text heights.
MIN_WIDTH = 16
#: Maximum side of the panels in pixels, unless the caller gives a side.
MAX_SIDE = 1024
#: Range of the text height in pixels.
MIN_TEXT, MAX_TEXT = 13, 48
#: Pixels converted to floating point at a time, which bounds the memory for large images.
BAND_PIXELS = 1 << 20
#: Minimum Oklab distance between the colours that `image_colours` returns. 0.02 is just visible.
MIN_DISTANCE = 0.08


def draw_panels(
    image: np.ndarray,
    prediction: Prediction,
    *,
    colours: np.ndarray | None = None,
    side: int | None = None,
    max_entries: int = 24,
) -> Image.Image:
    """Draw the image, the label map and the legend side by side.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: labels of the same size.
        colours: of all classes, (T, 3) uint8 RGB; None: those of :func:`image_colours`, so that a
            purple circle is purple. :func:`palette` gives a class one colour in all pictures.
        side: the longer side of a panel in pixels; None: that of the image, at most ``MAX_SIDE``.
        max_entries: further classes are one line of the legend, "+ n more".

    Returns:
        An RGB picture.

    Raises:
        ValueError: image and labels differ in size.
    """
    labels = prediction.labels
    check_size(image, labels)
    if colours is None:
        colours = image_colours(image, labels, len(prediction.vocabulary))
    scale = (side or min(MAX_SIDE, max(labels.shape))) / max(labels.shape)
    height, width = (max(1, round(scale * size)) for size in labels.shape)
    photo = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    indices = Image.fromarray(labels.astype(np.int32))
    labels = np.asarray(indices.resize((width, height), Image.Resampling.NEAREST))
    painted = colours[labels]
    painted[borders(labels, 1 + 2 * (min(labels.shape) // 400))] = BACKGROUND

    text_size = min(max(MIN_TEXT, round(width / 22)), MAX_TEXT)
    entries = legend_entries(prediction.found, colours, max_entries)
    columns = -(-len(entries) // max(1, (height - text_size) // row_height(text_size)))
    column_width = min(entry_width(entries, text_size), max(width, MIN_WIDTH * text_size))
    legend = draw_entries(entries, columns, column_width, text_size)

    gap = text_size // 2
    total = (2 * width + gap + legend.width, max(height, legend.height))
    picture = Image.new("RGB", total, BACKGROUND)
    picture.paste(photo, (0, 0))
    picture.paste(Image.fromarray(painted), (width + gap, 0))
    picture.paste(legend, (2 * width + gap, max(0, (height - legend.height) // 2)))
    return picture


def draw_overlay(
    image: np.ndarray,
    prediction: Prediction,
    *,
    colours: np.ndarray | None = None,
    opacity: float = 0.7,
    max_entries: int = 24,
) -> Image.Image:
    """Tint an image by class and draw a legend of the names and shares below it.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: labels of the same size.
        colours: of all classes, (T, 3) uint8 RGB; None: those of :func:`palette`.
        opacity: of the colours, 0 to 1.
        max_entries: further classes are one line of the legend, "+ n more".

    Returns:
        An RGB picture, at least as wide as the image, and taller.

    Raises:
        ValueError: image and labels differ in size.
    """
    if colours is None:
        colours = palette(len(prediction.vocabulary))
    painted = paint(image, prediction.labels, colours, opacity)
    text_size = min(max(MIN_TEXT, round(min(painted.size) / 32)), MAX_TEXT)
    legend = draw_legend(prediction.found, colours, painted.width, text_size, max_entries)
    picture = Image.new("RGB", (legend.width, painted.height + legend.height), BACKGROUND)
    picture.paste(painted, ((legend.width - painted.width) // 2, 0))
    picture.paste(legend, (0, painted.height))
    return picture


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
    return np.resize(grid[chosen], (num_classes, 3)).astype(np.uint8)


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
        bins = labels[band] * 256 + image[band].max(axis=2)
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


def paint(
    image: np.ndarray, labels: np.ndarray, colours: np.ndarray, opacity: float = 0.7
) -> Image.Image:
    """Tint an image, turned grey, by class, with white lines between the segments.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers in 0..T-1.
        colours: (T, 3) uint8 RGB.
        opacity: of the colours, 0 to 1.

    Raises:
        ValueError: image and labels differ in size.
    """
    check_size(image, labels)
    painted = np.empty((*labels.shape, 3), np.uint8)
    for band in bands(labels.shape):
        # Mid-grey has a brightness of 1 and shows the exact colour of the legend.
        light = image[band].mean(axis=2, keepdims=True, dtype=np.float32) / 127.5
        tinted = colours[labels[band]] * (opacity + (1 - opacity) * light)
        painted[band] = np.minimum(tinted, 255).round()
    painted[borders(labels, 1 + 2 * (min(labels.shape) // 800))] = BACKGROUND
    return Image.fromarray(painted)


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


def borders(labels: np.ndarray, width: int = 1) -> np.ndarray:
    """Return a mask (H, W) of the lines, ``width`` (odd) pixels wide, between the classes."""
    mask = np.zeros(labels.shape, dtype=bool)
    mask[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    mask[1:] |= labels[1:] != labels[:-1]
    for axis in (mask, mask.T):  # dilates in-place, along columns, then along rows
        thin = axis.copy()
        for shift in range(1, width // 2 + 1):
            axis[shift:] |= thin[:-shift]
            axis[:-shift] |= thin[shift:]
    return mask


class LegendEntry(NamedTuple):
    """One line of a legend; the line that sums up several classes has no colour."""

    colour: tuple[int, int, int] | None
    name: str
    share: str


def draw_legend(
    found: list[FoundClass],
    colours: np.ndarray,
    width: int,
    text_size: int = 14,
    max_entries: int = 24,
) -> Image.Image:
    """Draw the classes, their colours and shares in as many columns as fit.

    Args:
        found: the classes, the largest first.
        colours: of all classes, (T, 3) uint8 RGB.
        width: in pixels; the legend is at least ``MIN_WIDTH`` text heights wide.
        text_size: height of the text in pixels.
        max_entries: further classes are one line, "+ n more".
    """
    width = max(width, MIN_WIDTH * text_size)
    entries = legend_entries(found, colours, max_entries)
    natural = entry_width(entries, text_size)
    columns = max(1, min(len(entries), (width - text_size) // (natural + text_size)))
    drawn = draw_entries(entries, columns, min(natural, width - 2 * text_size), text_size)
    legend = Image.new("RGB", (width, drawn.height), BACKGROUND)
    legend.paste(drawn, (0, 0))
    return legend


def legend_entries(
    found: list[FoundClass], colours: np.ndarray, max_entries: int
) -> list[LegendEntry]:
    """Return the lines of a legend; the last sums up the classes beyond ``max_entries``."""
    entries = [
        LegendEntry(tuple(colours[c.index].tolist()), one_line(c.name), percent(c.share))
        for c in found
    ]
    if len(entries) > max_entries:
        rest = found[max_entries - 1 :]
        more = LegendEntry(None, f"+ {len(rest)} more", percent(sum(c.share for c in rest)))
        entries = [*entries[: max_entries - 1], more]
    return entries


def entry_width(entries: list[LegendEntry], text_size: int) -> int:
    """Return the width in pixels at which no name of the legend is shortened."""
    font = ImageFont.load_default(text_size)
    name_width = max(round(font.getlength(entry.name)) for entry in entries)
    share_width = max(round(font.getlength(entry.share)) for entry in entries)
    return row_height(text_size) + name_width + text_size + share_width


def row_height(text_size: int) -> int:
    """Return the height of a legend's line in pixels, which is also where its name starts."""
    return round(1.6 * text_size)


def draw_entries(
    entries: list[LegendEntry], columns: int, column_width: int, text_size: int
) -> Image.Image:
    """Draw the lines of a legend in columns of one width; names that do not fit are shortened."""
    font = ImageFont.load_default(text_size)
    gap, row = text_size, row_height(text_size)
    share_width = max(round(font.getlength(entry.share)) for entry in entries)
    rows = -(-len(entries) // columns)
    legend = Image.new("RGB", (columns * (column_width + gap) + gap, rows * row + gap), BACKGROUND)
    draw = ImageDraw.Draw(legend)
    for i, (colour, name, share) in enumerate(entries):
        x = gap + i // rows * (column_width + gap)
        middle = gap // 2 + i % rows * row + row / 2
        if colour is not None:
            box = (x, middle - text_size / 2, x + text_size, middle + text_size / 2)
            draw.rounded_rectangle(box, radius=text_size / 5, fill=colour, outline=OUTLINE)
        name = shortened(name, font, column_width - row - gap - share_width)
        draw.text((x + row, middle), name, INK, font, anchor="lm")
        draw.text((x + column_width, middle), share, FAINT, font, anchor="rm")
    return legend


def one_line(name: str) -> str:
    """Return a name without line breaks and other characters that cannot be drawn."""
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())


def percent(share: float) -> str:
    """Return a share of 0 to 1 as text; a small share is not rounded to 0."""
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Return ``text``, cut off with an ellipsis where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def label_map(labels: np.ndarray, num_classes: int) -> Image.Image:
    """Return the labels as a picture whose pixel values are the class indices.

    Args:
        labels: (H, W) integers in 0..num_classes-1.
        num_classes: up to 256 give 8 bits with the colours of :func:`palette`, more give 16 bits.
    """
    if num_classes > 256:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(palette(num_classes).tobytes())
    return picture


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG or, by the path's suffix, a JPEG with sharp colours, in full or not at all."""
    options = {"quality": 92, "subsampling": 0} if path.suffix in {".jpg", ".jpeg"} else {}
    kind = Image.registered_extensions()[path.suffix.lower()]
    write_whole(path, lambda file: picture.save(file, kind, **options))
