"""The embedded model: a small SED that knows the world of shapes, with its weights in the package.

`make quickstart` trains it from nothing, see docs/quickstart.md.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ..config import get_sed_cfg
from ..vocabulary import Vocabulary
from . import scenes as shapes

CONFIG_FILE = "shapes_quickstart.yaml"
WEIGHTS = Path(__file__).parent / "weights"
CLIP_FILE = WEIGHTS / "shapes_clip.pt"
"""Both towers, for ``open_clip.create_model("shapes_convnext_atto", pretrained=...)``; the image
tower is the one that SED has fine-tuned."""

SED_FILE = WEIGHTS / "shapes_sed.pth"
"""The parameters of SED's decoder."""

DIGESTS = WEIGHTS / "sha256sums.txt"
"""The digests of both, as ``sha256sum`` writes them."""


def get_embedded_cfg(opts: Iterable = ()):
    """The embedded model's config, with its weights.

    Args:
        opts: further ``KEY VALUE`` pairs.

    Raises:
        FileNotFoundError: a weight file is missing.
        ValueError: a weight file is damaged.
    """
    check_weights()
    return get_sed_cfg(CONFIG_FILE, [*weight_options(), *opts])


def weight_options() -> list[str]:
    """The ``KEY VALUE`` pairs that name the weight files."""
    return ["MODEL.CLIP.PRETRAINED", str(CLIP_FILE), "MODEL.WEIGHTS", str(SED_FILE)]


def check_weights() -> None:
    """Raise an error if the weight files are not those that were written."""
    remedy = "install sed_d2 again, or train them anew with 'make quickstart' and 'make weights'"
    for file in (DIGESTS, CLIP_FILE, SED_FILE):
        if not file.is_file():
            raise FileNotFoundError(f"the embedded model's file '{file}' is missing: {remedy}")
    wanted = DIGESTS.read_text()
    for file in (CLIP_FILE, SED_FILE):
        if digest_line(file) not in wanted:
            raise ValueError(f"the embedded model's file '{file}' is damaged: {remedy}")


def digest_line(file: Path) -> str:
    """``file``'s line in :data:`DIGESTS`."""
    return f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"


def unknown_words(vocabulary: Vocabulary) -> list[str]:
    """The words of the class names, each once, that name nothing in the world of shapes."""
    known = {word for name in shapes.TRAIN_CLASSES for word in name.split()}
    words = [word for synonyms in vocabulary.classes for name in synonyms for word in name.split()]
    return [word for word in dict.fromkeys(words) if word.lower() not in known]
