"""Scenes: textured backgrounds and objects, drawn with NumPy and Pillow from random numbers.

The order of the random draws is part of the world: another order needs another ``WORLD_VERSION``.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .words import ATTRIBUTES, BACKGROUNDS

#: Side of a scene in pixels; a multiple of 32, the encoder's stride.
SIZE = 256

#: The share of an object that later objects leave visible at least.
MIN_VISIBLE = 0.6

#: Hue in degrees, saturation and value. The hues stay distinct under jitter and shading.
COLOUR_HSV = {
    "red": (357, 0.90, 0.85),
    "orange": (27, 0.95, 0.98),
    "yellow": (54, 0.92, 0.97),
    "green": (130, 0.85, 0.65),
    "blue": (222, 0.88, 0.88),
    "purple": (285, 0.75, 0.72),
    "white": (0, 0.00, 0.97),
}


class Noise(NamedTuple):
    """One layer of noise: the height and width of its blobs in pixels, and its weight."""

    height: float
    width: float
    weight: float


class Joints(NamedTuple):
    """The joints of a masonry: course height and piece length in pixels, and their brightness."""

    height: float
    length: float
    brightness: float


class Texture(NamedTuple):
    """The look of a background: noise mixes a dark and a light RGB colour."""

    dark: tuple[int, int, int]
    light: tuple[int, int, int]
    noise: tuple[Noise, Noise]
    joints: Joints | None = None


TEXTURES = {
    "grass": Texture((34, 74, 22), (128, 160, 68), (Noise(9, 2, 0.5), Noise(40, 40, 0.3))),
    "water": Texture((14, 66, 92), (112, 180, 190), (Noise(4, 26, 0.5), Noise(60, 60, 0.3))),
    "sand": Texture((172, 142, 96), (230, 206, 160), (Noise(2, 2, 0.35), Noise(12, 60, 0.35))),
    "sky": Texture((104, 160, 222), (240, 244, 250), (Noise(40, 80, 0.7), Noise(16, 28, 0.2))),
    "brick": Texture(
        (122, 58, 44), (176, 100, 78), (Noise(2, 2, 0.2), Noise(14, 30, 0.4)), Joints(14, 32, 1.3)
    ),
    "wood": Texture(
        (92, 56, 30), (176, 122, 72), (Noise(2, 60, 0.4), Noise(7, 120, 0.3)), Joints(30, 400, -0.4)
    ),
    "gravel": Texture((58, 58, 60), (190, 188, 182), (Noise(6, 6, 0.7), Noise(3, 3, 0.3))),
    "snow": Texture((196, 208, 228), (250, 252, 255), (Noise(26, 40, 0.5), Noise(2, 2, 0.15))),
}


def scene_rng(*numbers: int) -> np.random.RandomState:
    """Return random numbers seeded by ``numbers``; unlike those of ``default_rng``, never changed.

    The first number is the user's seed, the others tell the streams of that seed apart.
    """
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(numbers)))


def random_scene(
    rng: np.random.RandomState,
    object_ids: Iterable[int],
    size: int = SIZE,
    radius: tuple[float, float] = (0.13, 0.25),
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene of 1 to 3 backgrounds and 2 to 5 of the given objects.

    Args:
        rng: random numbers.
        object_ids: class ids to choose objects from.
        size: side of the scene in pixels.
        radius: smallest and largest radius of an object, as a share of ``size``.

    Returns:
        image (size, size, 3) uint8 RGB and labels (size, size) uint8.
    """
    backgrounds = rng.permutation(len(BACKGROUNDS))[: 1 + rng.choice(3, p=(0.4, 0.45, 0.15))]
    objects = rng.choice(list(object_ids), rng.randint(2, 6))
    return draw_scene(rng, size, backgrounds, objects, (radius[0] * size, radius[1] * size))


def draw_scene(
    rng: np.random.RandomState,
    size: int,
    backgrounds: Sequence[int] | np.ndarray,
    objects: Iterable[int] | np.ndarray,
    radius: tuple[float, float],
    margin: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw objects, from the lowest to the highest, on backgrounds.

    Args:
        rng: random numbers.
        size: side of the scene in pixels.
        backgrounds: class ids of backgrounds, at least one.
        objects: class ids of objects. An object is left out if no place is found where at least
            ``MIN_VISIBLE`` of it and of each object below stays visible.
        radius: smallest and largest radius of an object in pixels.
        margin: smallest distance of an object's centre from the border, as a share of ``size``.

    Returns:
        image (size, size, 3) uint8 RGB and labels (size, size) uint8, class ids.
    """
    image, labels = _draw_backgrounds(rng, size, backgrounds)
    # The index of the visible object at each pixel, -1 for none; the area of each whole object.
    top_object = np.full((size, size), -1)
    areas: list[int] = []
    for class_id in objects:
        colours, coverage = _draw_object(rng, ATTRIBUTES[class_id], rng.uniform(*radius))
        half = coverage.shape[0] // 2
        area = int(np.count_nonzero(coverage > 0.5))
        for _ in range(8):
            cx, cy = (rng.uniform(margin, 1 - margin, 2) * size).astype(np.int64)
            # The part of the object's box inside the scene, in the scene's and the box's pixels.
            top, left = max(0, cy - half), max(0, cx - half)
            bottom, right = min(size, cy + half), min(size, cx + half)
            in_scene = np.s_[top:bottom, left:right]
            y, x = cy - half, cx - half
            in_box = np.s_[top - y : bottom - y, left - x : right - x]
            covered = coverage[in_box] > 0.5
            candidate = top_object.copy()
            candidate[in_scene][covered] = len(areas)
            visible = np.bincount(candidate[candidate >= 0], minlength=len(areas) + 1)
            if np.all(visible >= MIN_VISIBLE * np.array([*areas, area])):
                top_object = candidate
                areas.append(area)
                labels[in_scene][covered] = class_id
                alpha = coverage[in_box][..., None]
                image[in_scene] += alpha * (colours[in_box] - image[in_scene])
                break
    return _photograph(rng, image), labels


def _draw_backgrounds(
    rng: np.random.RandomState, size: int, class_ids: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return backgrounds with wavy borders: (size, size, 3) float32, (size, size) uint8 labels."""
    image = _draw_texture(rng, BACKGROUNDS[class_ids[0]], size)
    labels = np.full((size, size), class_ids[0])
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    for class_id in class_ids[1:]:
        angle = rng.uniform(0, 2 * np.pi)
        wave = 0.12 * _noise(rng, size, size / 4, size / 4)
        mask = x * np.cos(angle) + y * np.sin(angle) + wave > rng.uniform(-0.12, 0.25)
        image[mask] = _draw_texture(rng, BACKGROUNDS[class_id], size)[mask]
        labels[mask] = class_id
    return image, labels.astype(np.uint8)


def _draw_texture(rng: np.random.RandomState, background: str, size: int) -> np.ndarray:
    """Return a background's texture, (size, size, 3) float32 in 0..255."""
    texture = TEXTURES[background]
    zoom = rng.uniform(0.8, 1.3)
    mix = np.zeros((size, size), np.float32)
    for noise in texture.noise:
        mix += noise.weight * _noise(rng, size, noise.height * zoom, noise.width * zoom)
    mix = mix + 0.5 + rng.uniform(-0.08, 0.08)
    if texture.joints:
        height, length, brightness = texture.joints
        y, x = np.mgrid[:size, :size].astype(np.float32) / zoom + rng.uniform(0, 100)
        course = np.floor(y / height)
        along = x / length + 0.5 * (course % 2)
        # An integer hash of a piece's place is its brightness.
        piece = (course * 7 + np.floor(along) * 13) * 37 % 17 / 16
        mix = mix * 0.7 + 0.3 * piece
        gap = 2.2
        mix[(y % height < gap) | (along % 1 * length < gap)] = brightness
    dark, light = np.array((texture.dark, texture.light), np.float32)
    return dark + (light - dark) * np.clip(mix, -0.4, 1.3)[..., None].astype(np.float32)


def _noise(rng: np.random.RandomState, size: int, height: float, width: float) -> np.ndarray:
    """Return smooth noise, (size, size) float32 in about -1..1, of blobs of height x width."""
    shape = [max(2, round(size / blob)) for blob in (height, width)]
    coarse = Image.fromarray(rng.random_sample(shape).astype(np.float32) * 2 - 1)
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _draw_object(
    rng: np.random.RandomState, attributes: Sequence[str], radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return an object in its box: colours (h, w, 3) float32 0..255, coverage (h, w) in 0..1."""
    colour, pattern, shape = attributes
    half, oversampling = int(np.ceil(radius * 1.25)), 4
    angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.0)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    mask = Image.new("L", (2 * half * oversampling,) * 2)
    for fill, outline in zip((255, 0), _outlines(shape), strict=False):
        points = (outline @ rotation * (1, squeeze) * radius + half) * oversampling
        ImageDraw.Draw(mask).polygon([tuple(p) for p in points], fill=fill)
    coverage = np.asarray(mask.reduce(oversampling), np.float32) / 255

    degrees, saturation, value = COLOUR_HSV[colour]
    hue = (degrees + rng.uniform(-6, 6)) % 360 / 360
    saturation, value = saturation * rng.uniform(0.85, 1.05), value * rng.uniform(0.85, 1.05)
    rgb = colorsys.hsv_to_rgb(hue, min(saturation, 1), min(value, 1))
    y, x = (np.mgrid[: 2 * half, : 2 * half] + 0.5 - half).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    # Light comes from one side of the object.
    shade = 1 + rng.uniform(0, 0.2) * (x * np.cos(angle) + y * np.sin(angle)) / radius
    shade += 0.05 * _noise(rng, 2 * half, 3, 3)
    if pattern == "striped":
        angle, period = rng.uniform(0, 2 * np.pi), max(6.0, rng.uniform(0.3, 0.5) * radius)
        across = (x * np.cos(angle) + y * np.sin(angle)) / period + rng.random_sample()
        wave = np.abs(across % 1 - 0.5) * 4 - 1  # in -1..1, 0 at the edges of a stripe
        # The edge of a stripe is soft over one pixel.
        shade *= 1 - rng.uniform(0.6, 0.75) * np.clip(0.5 + wave * period / 4, 0, 1)
    return (shade[..., None] * np.array(rgb, np.float32) * 255).astype(np.float32), coverage


def _outlines(shape: str) -> list[np.ndarray]:
    """Return the polygons of a shape of about unit radius: the outline, then its hole if any."""

    def polygon(corners: int, radii: Sequence[float] = (1.0,)) -> np.ndarray:
        angle = np.arange(corners) * 2 * np.pi / corners
        radius = np.resize(radii, corners)
        return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)

    if shape == "circle":
        return [polygon(48) * 0.95]
    if shape == "ring":
        return [polygon(48), polygon(48) * 0.5]
    if shape == "square":
        return [polygon(4) * 1.15]
    if shape == "triangle":
        return [polygon(3) * 1.2]
    if shape == "star":
        return [polygon(10, (1.2, 0.52))]
    arm = 0.36
    corner = np.array([[-arm, -1.05], [arm, -1.05], [arm, -arm]])
    quarter_turn = np.array([[0, 1], [-1, 0]])
    return [np.concatenate([corner @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)])]


def _photograph(rng: np.random.RandomState, image: np.ndarray) -> np.ndarray:
    """Add uneven light, blur and noise: (size, size, 3) float32 -> uint8."""
    size = image.shape[0]
    light = rng.uniform(0.85, 1.1) + 0.08 * _noise(rng, size, size / 2, size / 2)
    picture = Image.fromarray(np.clip(image * light[..., None], 0, 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.0)))
    grain = rng.uniform(1, 6) * rng.standard_normal((size, size, 1)).astype(np.float32)
    return np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
