"""Pictures of a prediction: the overlay with its legend, and the label map."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .data.files import write_whole
from .predictor import FoundClass, Prediction

BACKGROUND, INK, FAINT = (255, 255, 255), (32, 33, 36), (110, 114, 120)
#: A legend is at least this wide, in text heights, however narrow the image is.
MIN_WIDTH = 16


@cache
def palette(num_classes: int) -> np.ndarray:
    """The colours of classes 0 to ``num_classes`` - 1: (num_classes, 3) uint8 RGB.

    Each is, of a grid of colours neither pale nor dark nor glaring, the one farthest from all
    before it; so a class has one colour in all pictures, however many classes there are.
    """
    levels = np.linspace(0, 255, 17).round()
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = oklab(grid)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    clear = (0.1 < chroma) & (chroma < 0.2) & (0.5 < lab[:, 0]) & (lab[:, 0] < 0.87)
    grid, lab, chroma = grid[clear], lab[clear], chroma[clear]
    chosen = [int(chroma.argmax())]
    # Lightness counts less: light and shade in the image change it.
    lab = lab * (0.6, 1, 1)
    distance = np.full(len(lab), np.inf)
    while len(chosen) < min(num_classes, len(grid)):
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return np.resize(grid[chosen], (num_classes, 3)).astype(np.uint8)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Lightness 0..1 and two colour axes, in which distance is how different colours look.

    Args:
        rgb: (N, 3) sRGB in 0..255.

    Returns:
        (N, 3) Oklab (B. Ottosson, "A perceptual color space for image processing", 2020).
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


def draw_overlay(
    image: np.ndarray, prediction: Prediction, *, opacity: float = 0.7, max_entries: int = 24
) -> Image.Image:
    """Lay the classes over an image, and a legend of their names and shares below it.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: labels of the same size.
        opacity: of the colours, 0 to 1.
        max_entries: further classes are one line of the legend, "+ n more".

    Returns:
        An RGB picture, at least as wide and taller than the image.
    """
    colours = palette(len(prediction.vocabulary))
    painted = paint(image, prediction.labels, colours, opacity)
    text_size = min(max(13, round(min(painted.size) / 32)), 48)
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
    if image.shape[:2] != labels.shape:
        raise ValueError(
            f"the image is {image.shape[:2]} but its labels are {labels.shape}: give one per pixel"
        )
    # Brightness of 0..2 around 1, so that mid-grey shows the very colour of the legend.
    light = image.mean(axis=2, keepdims=True, dtype=np.float32) / 127.5
    painted = np.minimum(colours[labels] * (opacity + (1 - opacity) * light), 255)
    painted[borders(labels, 1 + 2 * (min(labels.shape) // 800))] = 255
    return Image.fromarray(painted.round().astype(np.uint8))


def borders(labels: np.ndarray, width: int = 1) -> np.ndarray:
    """Mask (H, W) of lines, ``width`` (odd) pixels wide, between the classes."""
    mask = np.zeros(labels.shape, dtype=bool)
    mask[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    mask[1:] |= labels[1:] != labels[:-1]
    return np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(width))) > 0


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
        width: in pixels; the legend is wider where this leaves no room for a name.
        text_size: height of the text in pixels.
        max_entries: further classes are one line, "+ n more".
    """
    font = ImageFont.load_default(text_size)
    gap, row = text_size, round(1.6 * text_size)
    width = max(width, MIN_WIDTH * text_size)
    entries = [(colours[c.index], one_line(c.name), percent(c.share)) for c in found]
    if len(entries) > max_entries:
        rest = found[max_entries - 1 :]
        more = (None, f"+ {len(rest)} more", percent(sum(c.share for c in rest)))
        entries = [*entries[: max_entries - 1], more]
    share_width = max(round(font.getlength(share)) for _, _, share in entries)
    name_width = max(round(font.getlength(name)) for _, name, _ in entries)
    natural = row + name_width + gap + share_width
    columns = max(1, min(len(entries), (width - gap) // (natural + gap)))
    rows = -(-len(entries) // columns)
    column = min(natural, width - 2 * gap)

    legend = Image.new("RGB", (width, rows * row + gap), BACKGROUND)
    draw = ImageDraw.Draw(legend)
    for i, (colour, name, share) in enumerate(entries):
        x = gap + i // rows * (column + gap)
        y = gap // 2 + i % rows * row
        middle = y + row / 2
        if colour is not None:
            box = (x, middle - text_size / 2, x + text_size, middle + text_size / 2)
            draw.rounded_rectangle(box, radius=text_size / 5, fill=tuple(colour.tolist()))
        name = shortened(name, font, column - row - gap - share_width)
        draw.text((x + row, middle), name, INK, font, anchor="lm")
        draw.text((x + column, middle), share, FAINT, font, anchor="rm")
    return legend


def one_line(name: str) -> str:
    """A name without line breaks and other characters that cannot be drawn."""
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())


def percent(share: float) -> str:
    """A share of 0 to 1 as text; what would round to 0 is not nothing."""
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def shortened(text: str, font: ImageFont.ImageFont, width: float) -> str:
    """``text``, cut off with an ellipsis where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def label_map(labels: np.ndarray, num_classes: int) -> Image.Image:
    """The labels as a picture whose pixel values are the class indices.

    Args:
        labels: (H, W) integers in 0..num_classes-1.
        num_classes: up to 256 give 8 bits with the classes' colours as palette, more 16 bits.
    """
    if num_classes > 256:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(palette(num_classes).tobytes())
    return picture


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG or, by the path's suffix, a JPEG with sharp colours: whole or not at all."""
    options = {"quality": 92, "subsampling": 0} if path.suffix in {".jpg", ".jpeg"} else {}
    kind = Image.registered_extensions()[path.suffix.lower()]
    write_whole(path, lambda file: picture.save(file, kind, **options))
