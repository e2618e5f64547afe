"""Models shared by the tests: tiny ones for logic, the real B once a run for the golden values."""

import json
import os
import sys
from pathlib import Path

# Before torch loads MKL. The golden text embeddings were computed with AVX2 products, and random
# weights amplify rounding: with AVX2 ours are within 6e-5 of their standard deviation, with
# Intel's AVX-512 products 1.4e-4, in exact arithmetic 1.2e-4.
os.environ.setdefault("MKL_ENABLE_INSTRUCTIONS", "AVX2")

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from sed_d2 import Vocabulary, get_sed_cfg

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(GOLDEN))

import golden_inputs  # noqa: E402  (frozen beside the references; no package)

#: The smallest SED: 64×64 images, a 2×2 grid.
TINY = [
    *("MODEL.CLIP.NAME", "shapes_convnext_atto", "MODEL.CLIP.RESOLUTION", 64),
    *("MODEL.SEM_SEG_HEAD.HIDDEN_DIM", 16, "MODEL.SEM_SEG_HEAD.DECODER_DIMS", [16, 16, 16]),
    *("MODEL.SEM_SEG_HEAD.GUIDANCE_PROJ_DIMS", [4, 4, 4]),
    *("MODEL.SEM_SEG_HEAD.KERNEL_SIZES", [3, 3, 3]),
    *("MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (), "DATASETS.TEST", ()),
    *("INPUT.MIN_SIZE_TEST", 64, "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.CROP.SIZE", (64, 64)),
    *("MODEL.CLIP.TEXT_CACHE_GB", 0),  # every test makes its own embeddings
]
GOLDEN_NAMES = [
    "cat", "windowpane, window", "traffic light", "sky", "grass", "person, individual, someone"
]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _torch_home(tmp_path_factory):
    """Keeps what tests cache, and what the commands they run cache, out of the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch_home")))
        yield


@pytest.fixture
def tiny_cfg():
    """Makes the config of a tiny SED; arguments are further ``KEY VALUE`` pairs."""
    return lambda *opts: get_sed_cfg(ROOT / "configs" / "Base-SED.yaml", [*TINY, *opts])


@pytest.fixture
def tiny_model(tiny_cfg):
    """Builds a tiny SED in evaluation mode, the same at every call with the same arguments."""

    def build(*opts, names=("cat", "dog", "sky")):
        torch.manual_seed(0)
        model = build_model(tiny_cfg(*opts)).eval()
        model.set_vocabulary(Vocabulary.from_names(names))
        return model

    return build


def golden(name: str):
    """A frozen reference: the arrays of ``name``.npz or the content of ``name``.json."""
    if name.endswith(".json"):
        return json.loads((GOLDEN / name).read_text())
    return np.load(GOLDEN / name)


def released_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a released checkpoint, "b" or "l"."""
    return {key: tuple(shape) for key, shape in golden(f"official_keys_{size}.json")}


def released_weights(prefix: str = "") -> dict[str, torch.Tensor]:
    """The golden weights of B whose released keys start with ``prefix``."""
    return {
        key: torch.as_tensor(golden_inputs.golden_tensor(key, shape))
        for key, shape in released_shapes("b").items()
        if key.startswith(prefix)
    }


def deviation(ours: torch.Tensor, reference: np.ndarray) -> float:
    """The largest difference, relative to the reference's standard deviation."""
    difference = np.abs(ours.detach().numpy().astype(np.float64) - reference)
    return float(difference.max() / reference.std())


@pytest.fixture(scope="session")
def model_b():
    """The real B with the golden weights, loaded by their released names; built once a run."""
    cfg = get_sed_cfg(
        ROOT / "configs" / "convnextB_768.yaml",
        ["MODEL.CLIP.PRETRAINED", "", "MODEL.DEVICE", "cpu"],
    )
    model = build_model(cfg).eval()
    model.load_state_dict(released_weights())
    model.set_vocabulary(Vocabulary.from_names(GOLDEN_NAMES))
    return model
