"""The config: Detectron2's keys, the keys that all methods share, and each method's keys."""

from pathlib import Path

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from .device import best_device
from .modeling.clip.config import add_clip_config
from .modeling.sed.config import add_sed_head_config

#: Keys of earlier versions and their names in this one.
RENAMED = {
    "MODEL.CLIP_FINETUNE": "MODEL.CLIP.FINETUNE",
    "MODEL.AUTOCAST": "TEST.PRECISION",
}


def add_sed_config(cfg: CN) -> None:
    """Add the keys that all methods share, CLIP's keys and each method's keys to ``cfg``."""
    add_shared_config(cfg)
    add_clip_config(cfg)
    add_sed_head_config(cfg)
    for old, new in RENAMED.items():
        cfg.register_renamed_key(old, new)


def add_shared_config(cfg: CN) -> None:
    """Add the keys that all methods share to ``cfg``, with the values of the paper."""
    # Whether a missing, unexpected or misshaped parameter in MODEL.WEIGHTS is an error. False loads
    # the parameters that fit and logs the names of the others.
    cfg.MODEL.WEIGHTS_STRICT = True

    # A JSON or text file with the class names for training. "" uses the names of the data set.
    cfg.MODEL.SEM_SEG_HEAD.TRAIN_CLASS_JSON = ""
    # A JSON or text file with the class names for evaluation. "" uses the names of the data set.
    cfg.MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON = ""
    # Whether the loss leaves out ignored pixels. False counts them as negatives of every class, as
    # in the released model.
    cfg.MODEL.SEM_SEG_HEAD.MASK_IGNORED = False
    # The number of classes in the loss of a training batch, per process: all classes in its labels,
    # even if they are more than this number, and random others. It saves time and memory with a
    # large vocabulary. 0 uses all classes.
    cfg.MODEL.SEM_SEG_HEAD.SAMPLED_CLASSES = 0

    # YAML files that describe the user's own data sets.
    cfg.DATASETS.CUSTOM = ()

    # The largest share of a training crop that one category may cover. A crop above it is drawn
    # again.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Whether training uses the color augmentation of SSD, before the flip.
    cfg.INPUT.COLOR_AUG_SSD = False

    # The factor from SOLVER.BASE_LR to the learning rate of the image tower.
    cfg.SOLVER.CLIP_MULTIPLIER = 1.0

    # The precision of the encoder and the decoder in inference: "" (float32), "float16" or
    # "bfloat16". A CPU without instructions for it (AVX512-BF16 or AMX for bfloat16) is much slower
    # than with float32. Training uses SOLVER.AMP.
    cfg.TEST.PRECISION = ""
    # The implementation of inference: "auto" (the one of modeling/fast for the device) or "plain"
    # (the modules' own forward). Both give the same numbers.
    cfg.TEST.KERNELS = "auto"
    # The number of elements of a feature map that the decoder processes at a time, which bounds the
    # memory of its intermediate results. 0 chooses by device: 1 M elements (4 MB in float32) fit a
    # CPU's cache, 32 M elements (128 MB) fill a GPU.
    cfg.TEST.CHUNK_ELEMENTS = 0
    # Whether inference resizes an image in its own aspect ratio, to as many pixels as the square of
    # MODEL.CLIP.RESOLUTION has.
    cfg.TEST.KEEP_ASPECT = False
    # The scales of test-time augmentation (TEST.AUG.ENABLED), as multiples of
    # MODEL.CLIP.RESOLUTION. TEST.AUG.FLIP adds a mirrored view for each. The scores of all views of
    # an image are in memory at once: 125 MB a view for 847 classes at 768.
    cfg.TEST.AUG.SCALES = [0.75, 1.0, 1.25]
    cfg.TEST.SLIDING = CN()
    # Whether inference adds sliding windows to the view of the whole image.
    cfg.TEST.SLIDING.ENABLED = False
    # The side of a sliding window, as a multiple of the image's shorter side. Each window is
    # resized to MODEL.CLIP.RESOLUTION.
    cfg.TEST.SLIDING.WINDOW = 0.6
    # The smallest overlap of neighbouring windows, as a share of the window's side.
    cfg.TEST.SLIDING.OVERLAP = 1 / 3


def get_sed_cfg(config_file: str | Path = "", opts: list = ()) -> CN:
    """Return Detectron2's defaults, our keys, a YAML file and ``KEY VALUE`` pairs, merged in order.

    ``MODEL.DEVICE`` is the best device of this machine unless the file or a pair sets it.

    Args:
        config_file: a file, or the name of a shipped config such as "convnextB_768.yaml".
        opts: ``[key, value, key, value, ...]``.
    """
    cfg = get_cfg()
    add_sed_config(cfg)
    cfg.MODEL.DEVICE = best_device()
    if config_file:
        cfg.merge_from_file(find_config(config_file), allow_unsafe=False)
    cfg.merge_from_list(list(opts))
    return cfg


def find_config(config_file: str | Path) -> str:
    """Return the path of a config file, which is looked up among the shipped configs too.

    Raises:
        FileNotFoundError: there is no such file; the message lists the shipped configs.
    """
    # An installed package contains the configs; in a checkout they are beside the package.
    package = Path(__file__).parent
    folder = package / "configs"
    folder = folder if folder.is_dir() else package.parent / "configs"
    for path in (Path(config_file), folder / config_file):
        if path.is_file():
            return str(path)
    shipped = ", ".join(sorted(path.name for path in folder.glob("*.yaml")))
    raise FileNotFoundError(
        f"config file '{config_file}' does not exist: give a file, or a shipped config: {shipped}"
    )
