"""The embedded model: a small SED that knows the world of shapes; its weights are in the package.

``make quickstart`` trains it from scratch, see docs/quickstart.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import nn

from ..config import get_sed_cfg
from ..data.files import write_whole
from ..vocabulary import Vocabulary
from .words import TRAIN_CLASSES

CONFIG_FILE = "shapes_quickstart.yaml"
WEIGHTS = Path(__file__).parent / "weights"

#: Both towers, for ``open_clip.create_model("shapes_convnext_atto", pretrained=...)``. The image
#: tower is the one that SED has fine-tuned.
CLIP_FILE = WEIGHTS / "shapes_clip.pt"

#: All other parameters of the model.
SED_FILE = WEIGHTS / "shapes_sed.pth"

#: The digests of both files, as ``sha256sum`` writes them.
DIGESTS = WEIGHTS / "sha256sums.txt"


def get_embedded_cfg(opts: Iterable = ()) -> CfgNode:
    """Return the embedded model's config, with its weights.

    Args:
        opts: further ``KEY VALUE`` pairs.

    Raises:
        FileNotFoundError: a weight file is missing.
        ValueError: a weight file is damaged.
    """
    check_weights()
    return get_sed_cfg(CONFIG_FILE, [*weight_options(), *opts])


def weight_options() -> list[str]:
    """Return the ``KEY VALUE`` pairs that name the weight files."""
    return ["MODEL.CLIP.PRETRAINED", str(CLIP_FILE), "MODEL.WEIGHTS", str(SED_FILE)]


def check_weights() -> None:
    """Raise an error unless the weight files have the recorded digests."""
    remedy = "install sed_d2 again, or train them with 'make quickstart' and 'make weights'"
    for file in (DIGESTS, CLIP_FILE, SED_FILE):
        if not file.is_file():
            raise FileNotFoundError(f"the embedded model's file '{file}' is missing: {remedy}")
    recorded = DIGESTS.read_text()
    for file in (CLIP_FILE, SED_FILE):
        if digest_line(file) not in recorded:
            raise ValueError(f"the embedded model's file '{file}' is damaged: {remedy}")


def write_weights(model: nn.Module) -> tuple[Path, Path]:
    """Write a model's parameters, in half precision, as the embedded model's weights.

    CLIP's file is in open_clip's format.

    Args:
        model: a trained SED of the embedded model's config.

    Returns:
        the two weight files.
    """
    clip = model.get_submodule("backbone.clip").state_dict(prefix="backbone.clip.")
    others = {key: value for key, value in model.state_dict().items() if key not in clip}
    clip = {key.removeprefix("backbone.clip."): value for key, value in clip.items()}
    files = (CLIP_FILE, SED_FILE)
    WEIGHTS.mkdir(exist_ok=True)
    for file, weights in zip(files, (clip, others), strict=True):
        halves = {key: value.half() for key, value in weights.items()}
        write_whole(file, partial(torch.save, halves))
    lines = "".join(map(digest_line, files))
    write_whole(DIGESTS, lambda file: file.write(lines.encode()))
    return files


def digest_line(file: Path) -> str:
    """Return the line of ``file`` in :data:`DIGESTS`."""
    return f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"


def unknown_words(vocabulary: Vocabulary) -> list[str]:
    """Return the words of the class names, each once, that no training class has."""
    known = {word for name in TRAIN_CLASSES for word in name.split()}
    words = [word for synonyms in vocabulary.classes for name in synonyms for word in name.split()]
    return [word for word in dict.fromkeys(words) if word.lower() not in known]
