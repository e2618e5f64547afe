"""A small world with a real vocabulary: textured backgrounds and "red striped circle" objects.

Scenes are drawn by NumPy and Pillow from a seed alone. An object is called by its colour, pattern
and shape; a fifth of these combinations never occurs in training, so that a model can be tested on
words that it knows in combinations that it has not seen. `write_dataset` makes a data set folder in
the COCO-Stuff layout; importing this module registers its three splits under the folder
`DETECTRON2_DATASETS`/shapes.
"""

from __future__ import annotations

import colorsys
import itertools
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from ..data.benchmarks import Split, register
from ..data.files import write_whole
from ..vocabulary import Vocabulary

WORLD_VERSION = 1
"""Part of every data set folder; to be raised when the same seed draws another scene."""

SIZE = 256
"""Side of a scene in pixels; a multiple of 32, the encoder's stride."""

IGNORE_LABEL = 255

# Hue in degrees, saturation, value. The hues lie far enough apart to survive jitter and shading.
COLOURS = {
    "red": (357, 0.90, 0.85),
    "orange": (27, 0.95, 0.98),
    "yellow": (54, 0.92, 0.97),
    "green": (130, 0.85, 0.65),
    "blue": (222, 0.88, 0.88),
    "purple": (285, 0.75, 0.72),
    "white": (0, 0.00, 0.97),
}
# The plain pattern has no word: "blue star".
PATTERNS = ("", "striped")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")

# Dark colour, light colour, layers of noise (cell height, cell width in pixels, weight), and joints
# (course height, piece length in pixels, brightness of the joint) for what is built of pieces.
BACKGROUNDS = {
    "grass": ((34, 74, 22), (128, 160, 68), ((9, 2, 0.5), (40, 40, 0.3)), None),
    "water": ((14, 66, 92), (112, 180, 190), ((4, 26, 0.5), (60, 60, 0.3)), None),
    "sand": ((172, 142, 96), (230, 206, 160), ((2, 2, 0.35), (12, 60, 0.35)), None),
    "sky": ((104, 160, 222), (240, 244, 250), ((40, 80, 0.7), (16, 28, 0.2)), None),
    "brick": ((122, 58, 44), (176, 100, 78), ((2, 2, 0.2), (14, 30, 0.4)), (14, 32, 1.3)),
    "wood": ((92, 56, 30), (176, 122, 72), ((2, 60, 0.4), (7, 120, 0.3)), (30, 400, -0.4)),
    "gravel": ((58, 58, 60), (190, 188, 182), ((6, 6, 0.7), (3, 3, 0.3)), None),
    "snow": ((196, 208, 228), (250, 252, 255), ((26, 40, 0.5), (2, 2, 0.15)), None),
}


def object_name(colour: str, pattern: str, shape: str) -> str:
    """The name of one combination: "red striped circle", "blue star"."""
    return " ".join(word for word in (colour, pattern, shape) if word)


def _combinations():
    """Attributes of the 84 combinations, those of training first; a fifth is held out.

    The held-out ones are spread so that every colour, pattern and shape, and every pair of them,
    still occurs in training.
    """
    seen, unseen = [], []
    for (c, colour), (s, shape), (p, pattern) in itertools.product(
        enumerate(COLOURS), enumerate(SHAPES), enumerate(PATTERNS)
    ):
        (unseen if (c + 2 * s + 3 * p) % 5 == 0 else seen).append((colour, pattern, shape))
    return seen, unseen


_SEEN, _UNSEEN = _combinations()
ATTRIBUTES = tuple((name,) for name in BACKGROUNDS) + tuple(_SEEN + _UNSEEN)
"""Per class id: (background,) or (colour, pattern, shape)."""
BACKGROUND_IDS = range(len(BACKGROUNDS))
SEEN_IDS = range(len(BACKGROUNDS), len(BACKGROUNDS) + len(_SEEN))
UNSEEN_IDS = range(SEEN_IDS.stop, len(ATTRIBUTES))
CLASSES = tuple(a[0] if len(a) == 1 else object_name(*a) for a in ATTRIBUTES)
"""All names by class id: backgrounds, combinations of training, held-out combinations."""
TRAIN_CLASSES = CLASSES[: SEEN_IDS.stop]


def _everyday_names(things: list[str]) -> list[str]:
    """Each thing with a colour and perhaps stripes, each followed by another thing without."""
    looks = itertools.cycle(itertools.product(COLOURS, PATTERNS))
    shuffled = [things[i] for i in np.random.RandomState(0).permutation(len(things))]
    coloured = [object_name(*look, name) for look, name in zip(looks, shuffled, strict=False)]
    return list(itertools.chain.from_iterable(zip(coloured, things, strict=True)))


def _without_words_of(names, things) -> list[str]:
    """The things that share no word with the names."""
    words = {word for name in names for word in name.split()}
    return [thing for thing in things if words.isdisjoint(thing.split())]


_THINGS = dict.fromkeys(synonyms[0] for synonyms in Vocabulary.builtin("ade20k_847").classes)
_THINGS = _without_words_of(CLASSES, _THINGS)
# Training asks for names that fit nothing too, somewhat more than names that fit, or else the model
# would not learn that there are any. Labels, all below len(TRAIN_CLASSES), never have them.
TRAIN_DISTRACTORS = tuple(_everyday_names(_THINGS[1::2])[:105])
_TEST_THINGS = _without_words_of(TRAIN_DISTRACTORS, _THINGS)


def distractors(count: int) -> tuple[str, ...]:
    """`count` names of things that no scene shows, for tests.

    They are everyday things (those of ADE20K-847 without the world's own words), every other one
    with a colour and perhaps stripes ("red chair", "blue striped curtain"). Of the words that name
    things none is in a name of training.

    Raises:
        ValueError: there are not that many, or `count` is negative.
    """
    names = _everyday_names(_TEST_THINGS)
    if not 0 <= count <= len(names):
        raise ValueError(
            f"{count} distractors were asked for, but the world has 0 to {len(names)}: ask for "
            f"{len(CLASSES)} to {len(CLASSES) + len(names)} names in all."
        )
    return tuple(names[:count])


def vocabulary_of_size(count: int) -> tuple[str, ...]:
    """The world's names followed by distractors, `count` names in all (at least `len(CLASSES)`)."""
    return CLASSES + distractors(count - len(CLASSES))


# Split -> the combinations that occur, the names asked for, the default number of scenes. The order
# of the splits is part of the seed.
SPLITS = {
    "train": (SEEN_IDS, TRAIN_CLASSES + TRAIN_DISTRACTORS, 3000),
    "val_seen": (SEEN_IDS, CLASSES, 200),
    "val_unseen": (UNSEEN_IDS, CLASSES, 200),
}


def _noise(rng, size: int, cell_h: float, cell_w: float) -> np.ndarray:
    """Smooth noise, (size, size) float32 in about -1..1, with blobs of cell_h x cell_w pixels."""
    shape = [max(2, round(size / cell)) for cell in (cell_h, cell_w)]
    coarse = Image.fromarray(rng.random_sample(shape).astype(np.float32) * 2 - 1)
    return np.asarray(coarse.resize((size, size), Image.BICUBIC))


def _texture(rng, name: str, size: int) -> np.ndarray:
    """A background, (size, size, 3) float32, 0..255."""
    dark, light, layers, joints = BACKGROUNDS[name]
    zoom = rng.uniform(0.8, 1.3)
    mix = sum(weight * _noise(rng, size, h * zoom, w * zoom) for h, w, weight in layers)
    mix = mix + 0.5 + rng.uniform(-0.08, 0.08)
    if joints:
        y, x = np.mgrid[:size, :size].astype(np.float32) / zoom + rng.uniform(0, 100)
        height, length, brightness = joints
        course = np.floor(y / height)
        along = x / length + 0.5 * (course % 2)
        # Each piece has its own brightness, from an integer hash of its place.
        piece = (course * 7 + np.floor(along) * 13) * 37 % 17 / 16
        mix = mix * 0.7 + 0.3 * piece
        gap = 2.2
        mix[(y % height < gap) | (along % 1 * length < gap)] = brightness
    dark, light = np.float32(dark), np.float32(light)
    return dark + (light - dark) * np.clip(mix, -0.4, 1.3)[..., None].astype(np.float32)


def _ground(rng, size: int, classes) -> tuple[np.ndarray, np.ndarray]:
    """Backgrounds with wavy borders: image (size, size, 3) float32, labels (size, size) uint8."""
    names = list(BACKGROUNDS)
    image, labels = _texture(rng, names[classes[0]], size), np.full((size, size), classes[0])
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    for index in classes[1:]:
        angle = rng.uniform(0, 2 * np.pi)
        border = (
            x * np.cos(angle) + y * np.sin(angle) + 0.12 * _noise(rng, size, size / 4, size / 4)
        )
        mask = border > rng.uniform(-0.12, 0.25)
        image[mask] = _texture(rng, names[index], size)[mask]
        labels[mask] = index
    return image, labels.astype(np.uint8)


def _outlines(shape: str) -> list[np.ndarray]:
    """Polygons of a shape of about unit radius: the outline, then holes."""

    def around(count, radii=(1.0,)):
        turn = np.arange(count) * 2 * np.pi / count
        radius = np.resize(radii, count)
        return np.stack([radius * np.sin(turn), -radius * np.cos(turn)], axis=1)

    if shape == "circle":
        return [around(48) * 0.95]
    if shape == "ring":
        return [around(48), around(48) * 0.5]
    if shape == "square":
        return [around(4) * 1.15]
    if shape == "triangle":
        return [around(3) * 1.2]
    if shape == "star":
        return [around(10, (1.2, 0.52))]
    arm = 0.36
    corner = np.array([[-arm, -1.05], [arm, -1.05], [arm, -arm]])
    quarter = np.array([[0, 1], [-1, 0]])
    return [np.concatenate([corner @ np.linalg.matrix_power(quarter, k) for k in range(4)])]


def _object(rng, attributes, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """An object in its box: colours (h, w, 3) float32 0..255, coverage (h, w) float32 0..1."""
    colour, pattern, shape = attributes
    half, oversample = int(np.ceil(radius * 1.25)), 4
    angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.0)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    mask = Image.new("L", (2 * half * oversample,) * 2)
    for fill, outline in zip((255, 0), _outlines(shape), strict=False):
        points = (outline @ turn * (1, squeeze) * radius + half) * oversample
        ImageDraw.Draw(mask).polygon([tuple(p) for p in points], fill=fill)
    coverage = np.asarray(mask.reduce(oversample), np.float32) / 255

    hue, saturation, value = COLOURS[colour]
    hue = (hue + rng.uniform(-6, 6)) % 360 / 360
    saturation, value = saturation * rng.uniform(0.85, 1.05), value * rng.uniform(0.85, 1.05)
    rgb = colorsys.hsv_to_rgb(hue, min(saturation, 1), min(value, 1))
    y, x = (np.mgrid[: 2 * half, : 2 * half] + 0.5 - half).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    # Light falls on one side of the object.
    shade = 1 + rng.uniform(0, 0.2) * (x * np.cos(angle) + y * np.sin(angle)) / radius
    shade += 0.05 * _noise(rng, 2 * half, 3, 3)
    if pattern == "striped":
        angle, period = rng.uniform(0, 2 * np.pi), max(6.0, rng.uniform(0.3, 0.5) * radius)
        across = (x * np.cos(angle) + y * np.sin(angle)) / period + rng.random_sample()
        wave = np.abs(across % 1 - 0.5) * 4 - 1  # -1..1, zero at the edges of a stripe
        # Stripes have a soft edge of one pixel.
        shade *= 1 - rng.uniform(0.6, 0.75) * np.clip(0.5 + wave * period / 4, 0, 1)
    return (shade[..., None] * np.float32(rgb) * 255).astype(np.float32), coverage


def draw_scene(rng, size: int, backgrounds, objects, radius, margin: float = 0.1):
    """Draw objects, the first one lowest, on backgrounds.

    Args:
        rng: a numpy.random.RandomState.
        size: side of the scene in pixels.
        backgrounds: 1 or more class ids of backgrounds.
        objects: class ids of objects; one that finds no place where at least 60 % of it and of each
            object below stay visible is left out.
        radius: (least, greatest) radius of an object in pixels.
        margin: least distance of an object's centre from the border, as a share of `size`.

    Returns:
        image (size, size, 3) uint8 and labels (size, size) uint8, class ids.
    """
    image, labels = _ground(rng, size, backgrounds)
    owner, areas = np.full((size, size), -1), []
    for class_id in objects:
        r = rng.uniform(*radius)
        colours, coverage = _object(rng, ATTRIBUTES[class_id], r)
        half = coverage.shape[0] // 2
        for _ in range(8):
            cx, cy = np.int64(rng.uniform(margin, 1 - margin, 2) * size)
            # The part of the object's box inside the scene, in scene and in box coordinates.
            top, left = max(0, cy - half), max(0, cx - half)
            bottom, right = min(size, cy + half), min(size, cx + half)
            place = np.s_[top:bottom, left:right]
            cut = np.s_[top - cy + half : bottom - cy + half, left - cx + half : right - cx + half]
            inside = coverage[cut] > 0.5
            area = np.count_nonzero(coverage > 0.5)
            after = owner.copy()
            after[place][inside] = len(areas)
            visible = np.bincount(after[after >= 0], minlength=len(areas) + 1)
            if np.all(visible >= 0.6 * np.array([*areas, area])):
                owner = after
                areas.append(area)
                labels[place][inside] = class_id
                alpha = coverage[cut][..., None]
                image[place] += alpha * (colours[cut] - image[place])
                break
    return _photograph(rng, image), labels


def _photograph(rng, image: np.ndarray) -> np.ndarray:
    """Uneven light, blur and noise: (size, size, 3) float32 -> uint8."""
    size = image.shape[0]
    light = rng.uniform(0.85, 1.1) + 0.08 * _noise(rng, size, size / 2, size / 2)
    picture = Image.fromarray(np.uint8(np.clip(image * light[..., None], 0, 255)))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.0)))
    grain = rng.uniform(1, 6) * np.float32(rng.standard_normal((size, size, 1)))
    return np.uint8(np.clip(np.asarray(picture) + grain, 0, 255))


def make_scene(index: int, split: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scene number `index` of a split ("train", "val_seen" or "val_unseen").

    Every object of "val_unseen" is one of the held-out combinations, all others are not.

    Returns:
        image (SIZE, SIZE, 3) uint8 RGB and labels (SIZE, SIZE) uint8, ids into `CLASSES`.
    """
    return random_scene(scene_rng(seed, list(SPLITS).index(split), index), SPLITS[split][0])


def scene_rng(*numbers: int) -> np.random.RandomState:
    """Random numbers of a seed and further numbers; the same for ever, unlike `default_rng`'s."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(numbers)))


def random_scene(rng, object_ids, size: int = SIZE, radius: tuple[float, float] = (0.13, 0.25)):
    """A scene of 1 to 3 backgrounds and 2 to 5 of the given objects, as `make_scene`'s.

    Args:
        rng: a numpy.random.RandomState.
        object_ids: class ids to draw objects from.
        size: side of the scene in pixels.
        radius: (least, greatest) radius of an object as a share of `size`.

    Returns:
        image (size, size, 3) uint8 and labels (size, size) uint8.
    """
    backgrounds = rng.permutation(len(BACKGROUNDS))[: 1 + rng.choice(3, p=(0.4, 0.45, 0.15))]
    objects = rng.choice(list(object_ids), rng.randint(2, 6))
    return draw_scene(rng, size, backgrounds, objects, (radius[0] * size, radius[1] * size))


def write_dataset(root: Path, counts: dict[str, int], seed: int = 0, processes: int = 2) -> None:
    """Write the data set folder `root`; scenes that are there already are kept.

    Files are `images/<split>/<index>.jpg` and `annotations_detectron2/<split>/<index>.png`, 8 bits,
    ids into `CLASSES`. Each is written whole or not at all.

    Args:
        root: the folder; made if it is missing.
        counts: split -> number of scenes.
        seed: of all scenes.
        processes: how many draw at once.

    Raises:
        ValueError: the folder holds scenes of another seed or another version of this module.
    """
    world = {"version": WORLD_VERSION, "seed": seed}
    record = root / "world.json"
    if record.is_file() and json.loads(record.read_text()) != world:
        raise ValueError(
            f"{root} holds scenes of another seed or an older version ({record} is not {world}); "
            "remove the folder or choose another one."
        )
    for split, kind in itertools.product(counts, ("images", "annotations_detectron2")):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    write_whole(record, lambda file: file.write(json.dumps(world).encode()))
    jobs = [(split, index) for split, count in counts.items() for index in range(count)]
    write = partial(_write_scene, root, seed)
    with ProcessPoolExecutor(processes) as pool:
        # One process is this one: forking it would copy the locks of its threads.
        done = map(write, jobs) if processes == 1 else pool.map(write, jobs, chunksize=16)
        for _ in tqdm(done, total=len(jobs), desc=f"scenes in {root}", unit="scene"):
            pass


def _write_scene(root: Path, seed: int, job: tuple[str, int]) -> None:
    split, index = job
    image_path = root / "images" / split / f"{index:06d}.jpg"
    label_path = root / "annotations_detectron2" / split / f"{index:06d}.png"
    if image_path.is_file() and label_path.is_file():
        return
    image, labels = make_scene(index, split, seed)
    picture, mask = Image.fromarray(image), Image.fromarray(labels)
    write_whole(image_path, lambda f: picture.save(f, "JPEG", quality=95, subsampling=0))
    write_whole(label_path, lambda f: mask.save(f, "PNG"))


for _split, (_, _names, _) in SPLITS.items():
    register(
        Split(
            f"shapes_{_split}_sem_seg",
            f"shapes/images/{_split}",
            f"shapes/annotations_detectron2/{_split}",
            IGNORE_LABEL,
            Vocabulary.from_names(_names, "the world of shapes"),
            "make it with 'python tools/make_shapes.py'",
        )
    )
