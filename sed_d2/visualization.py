"""Pictures of a prediction: panels side by side, the overlay with its legend, the label map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .colours import bands, check_size, image_colours, palette
from .data.files import write_whole

if TYPE_CHECKING:
    from .predictor import FoundClass, Prediction

#: Entries of a column of the legend beside an image, at least; a small image gets a taller picture.
LEAST_ROWS = 8

#: Colours of the page, of text, of shares and of the swatches' outlines.
BACKGROUND, INK, FAINT, OUTLINE = (255, 255, 255), (32, 33, 36), (110, 114, 120), (200, 203, 207)
#: Minimum width of the overlay's legend in text heights.
MIN_WIDTH = 16
#: Maximum side of the panels in pixels, unless the caller gives a side.
MAX_SIDE = 1024
#: Range of the text height in pixels.
MIN_TEXT, MAX_TEXT = 13, 48


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
        colours: of all classes, (T, 3) uint8 RGB; None: those of :func:`.image_colours`, so that a
            purple circle is purple. :func:`.palette` gives a class one colour in all pictures.
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
    rows = max((height - text_size) // row_height(text_size), LEAST_ROWS)
    columns = -(-len(entries) // rows)
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
        colours: of all classes, (T, 3) uint8 RGB; None: those of :func:`.palette`.
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
        num_classes: up to 256 give 8 bits with the colours of :func:`.palette`, more give 16 bits.
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
