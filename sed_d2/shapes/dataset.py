"""The data set of scenes: its three splits, its folder in the COCO-Stuff layout, registration.

Importing this module registers the splits with Detectron2, under the folder
``DETECTRON2_DATASETS``/shapes.
"""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data.benchmarks import Split, register
from ..data.files import write_whole
from ..vocabulary import Vocabulary
from .scenes import random_scene, scene_rng
from .words import CLASSES, SEEN_IDS, TRAIN_CLASSES, TRAIN_DISTRACTORS, UNSEEN_IDS

#: Recorded in every data set folder. Raise it when the same seed draws another scene.
WORLD_VERSION = 1

IGNORE_LABEL = 255


class SceneSplit(NamedTuple):
    """One split of the data set.

    Attributes:
        object_ids: the class ids of the objects that occur.
        names: the names that a model is asked for.
        default_count: the default number of scenes.
    """

    object_ids: range
    names: tuple[str, ...]
    default_count: int


#: The position of a split in this table is part of the seed of its scenes.
SPLITS = {
    "train": SceneSplit(SEEN_IDS, TRAIN_CLASSES + TRAIN_DISTRACTORS, 3000),
    "val_seen": SceneSplit(SEEN_IDS, CLASSES, 200),
    "val_unseen": SceneSplit(UNSEEN_IDS, CLASSES, 200),
}


def make_scene(index: int, split: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene of a split; it depends on the three arguments alone.

    Args:
        index: the scene's number.
        split: a key of ``SPLITS``. All objects of "val_unseen" are held-out combinations, and no
            object of the other splits is.
        seed: of all scenes.

    Returns:
        image (SIZE, SIZE, 3) uint8 RGB and labels (SIZE, SIZE) uint8, indices into ``CLASSES``.
    """
    rng = scene_rng(seed, list(SPLITS).index(split), index)
    return random_scene(rng, SPLITS[split].object_ids)


def write_dataset(root: Path, counts: dict[str, int], seed: int = 0, processes: int = 2) -> None:
    """Write the data set folder ``root``; existing scenes are kept.

    The files are ``images/<split>/<index>.jpg`` and ``annotations_detectron2/<split>/<index>.png``,
    8-bit indices into ``CLASSES``. Each file is written whole or not at all.

    Args:
        root: the folder; it is created if it is missing.
        counts: split -> number of scenes.
        seed: of all scenes.
        processes: the number of processes that draw.

    Raises:
        ValueError: the folder holds scenes of another seed or of another version of the world.
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
    scenes = [(split, index) for split, count in counts.items() for index in range(count)]
    write = partial(_write_scene, root, seed)
    with ProcessPoolExecutor(processes) as pool:
        # One process is this one: a forked process would inherit locks that its threads hold.
        written = map(write, scenes) if processes == 1 else pool.map(write, scenes, chunksize=16)
        for _ in tqdm(written, total=len(scenes), desc=f"scenes in {root}", unit="scene"):
            pass


def _write_scene(root: Path, seed: int, scene: tuple[str, int]) -> None:
    split, index = scene
    image_path = root / "images" / split / f"{index:06d}.jpg"
    label_path = root / "annotations_detectron2" / split / f"{index:06d}.png"
    if image_path.is_file() and label_path.is_file():
        return
    image, labels = map(Image.fromarray, make_scene(index, split, seed))
    write_whole(image_path, lambda file: image.save(file, "JPEG", quality=95, subsampling=0))
    write_whole(label_path, lambda file: labels.save(file, "PNG"))


for _name, _split in SPLITS.items():
    register(
        Split(
            f"shapes_{_name}_sem_seg",
            f"shapes/images/{_name}",
            f"shapes/annotations_detectron2/{_name}",
            IGNORE_LABEL,
            Vocabulary.from_names(_split.names, "the world of shapes"),
            "make it with 'python tools/make_shapes.py'",
        )
    )
