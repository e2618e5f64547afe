"""The config: Detectron2's keys, the keys that all methods share, and each method's keys."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from .device import best_device
from .modeling.clip.config import add_clip_config
from .modeling.sed.config import add_sed_head_config

logger = logging.getLogger(__name__)

#: The function that adds a method's keys, by MODEL.SEM_SEG_HEAD.NAME. These keys are read only when
#: that head is chosen.
METHODS: dict[str, Callable[[CN], None]] = {"SEDHead": add_sed_head_config}

#: The keys of earlier versions and their names in this one.
RENAMED = {
    "MODEL.CLIP_FINETUNE": "MODEL.CLIP.FINETUNE",
    "MODEL.AUTOCAST": "TEST.PRECISION",
}

#: The keys of Detectron2 that training or evaluation reads, here or in Detectron2; the first two
#: lines are keys that came after version 0.6. tests/test_train_net.py records what is read.
DETECTRON2_KEYS = frozenset(
    """
    DATALOADER.RANDOM_SUBSET_RATIO FLOAT32_PRECISION SOLVER.BASE_LR_END SOLVER.NUM_DECAYS
    SOLVER.RESCALE_INTERVAL
    CUDNN_BENCHMARK OUTPUT_DIR SEED VERSION
    DATALOADER.ASPECT_RATIO_GROUPING DATALOADER.FILTER_EMPTY_ANNOTATIONS DATALOADER.NUM_WORKERS
    DATALOADER.SAMPLER_TRAIN DATASETS.TEST DATASETS.TRAIN
    INPUT.CROP.ENABLED INPUT.CROP.SIZE INPUT.CROP.TYPE INPUT.FORMAT INPUT.MAX_SIZE_TEST
    INPUT.MAX_SIZE_TRAIN INPUT.MIN_SIZE_TEST INPUT.MIN_SIZE_TRAIN INPUT.MIN_SIZE_TRAIN_SAMPLING
    INPUT.RANDOM_FLIP
    MODEL.BACKBONE.NAME MODEL.DEVICE MODEL.KEYPOINT_ON MODEL.LOAD_PROPOSALS MODEL.META_ARCHITECTURE
    MODEL.PIXEL_MEAN MODEL.PIXEL_STD MODEL.SEM_SEG_HEAD.IGNORE_VALUE MODEL.SEM_SEG_HEAD.NAME
    MODEL.WEIGHTS
    SOLVER.AMP.ENABLED SOLVER.BASE_LR SOLVER.CHECKPOINT_PERIOD SOLVER.CLIP_GRADIENTS.CLIP_TYPE
    SOLVER.CLIP_GRADIENTS.CLIP_VALUE SOLVER.CLIP_GRADIENTS.ENABLED SOLVER.CLIP_GRADIENTS.NORM_TYPE
    SOLVER.GAMMA SOLVER.IMS_PER_BATCH SOLVER.LR_SCHEDULER_NAME SOLVER.MAX_ITER
    SOLVER.REFERENCE_WORLD_SIZE SOLVER.STEPS SOLVER.WARMUP_FACTOR SOLVER.WARMUP_ITERS
    SOLVER.WARMUP_METHOD SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_NORM
    TEST.AUG.ENABLED TEST.AUG.FLIP TEST.EVAL_PERIOD TEST.EXPECTED_RESULTS TEST.PRECISE_BN.ENABLED
    """.split()  # noqa: SIM905
)


def add_sed_config(cfg: CN) -> None:
    """Add the keys that all methods share, CLIP's keys and each method's keys to ``cfg``."""
    add_shared_config(cfg)
    add_clip_config(cfg)
    for add_method_config in METHODS.values():
        add_method_config(cfg)
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

    # The precision of the encoder and the decoder in inference: "float16", "bfloat16", or "" for
    # that of the caller's autocast, which is float32 without one. A CPU without instructions for it
    # (AVX512-BF16 or AMX for bfloat16) is much slower than with float32. Training uses SOLVER.AMP.
    cfg.TEST.PRECISION = ""
    # The implementation of inference: "auto" (the one of modeling/fast for the device) or "plain"
    # (the modules' own forward). Both give the same numbers, up to rounding.
    cfg.TEST.KERNELS = "auto"
    # The number of elements of a feature map that the head processes at a time with TEST.KERNELS
    # "auto", which bounds the memory of its intermediate results. 0 chooses by device: 1 M elements
    # (4 MB in float32) fit a CPU's cache, 32 M elements (128 MB) fill a GPU.
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


def get_sed_cfg(config_file: str | Path = "", opts: Sequence[Any] = ()) -> CN:
    """Return Detectron2's defaults, our keys, a YAML file and ``KEY VALUE`` pairs, merged in order.

    ``MODEL.DEVICE`` is the best device of this machine unless the file or a pair sets it.

    Args:
        config_file: a file, or the name of a shipped config such as "convnextB_768.yaml".
        opts: ``[key, value, key, value, ...]``.

    Raises:
        ValueError: the file or a pair has a key of an earlier version.
    """
    for key in (*_file_values(config_file), *opts[::2]):
        if key in RENAMED:
            raise ValueError(f"config key {key} was renamed: use {RENAMED[key]} instead")
    cfg = get_cfg()
    add_sed_config(cfg)
    cfg.MODEL.DEVICE = best_device()
    if config_file:
        cfg.merge_from_file(find_config(config_file), allow_unsafe=False)
    cfg.merge_from_list(list(opts))
    return cfg


def unread_keys(config_file: str | Path = "", opts: Sequence[Any] = ()) -> list[str]:
    """Return the keys that the file and the pairs of :func:`get_sed_cfg` set and nothing reads.

    They are keys of Detectron2 for other models and keys of a method that is not chosen. Detectron2
    writes all keys to OUTPUT_DIR/config.yaml; in such a file only a key that differs from its
    default counts as set.
    """
    cfg = get_sed_cfg(config_file, opts)
    given = _file_values(config_file)
    if given.keys() >= flatten(get_cfg()).keys():
        # YAML has no tuples, so the defaults make the same way through it.
        defaults = flatten(yaml.safe_load(get_sed_cfg().dump()))
        given = {key: value for key, value in given.items() if value != defaults.get(key)}
    # A pair may set a whole node.
    parts = (*given, *opts[::2])
    set_keys = {key for key in flatten(cfg) if any(f"{key}.".startswith(f"{x}.") for x in parts)}
    return sorted(set_keys - read_keys(cfg.MODEL.SEM_SEG_HEAD.NAME))


def read_keys(head: str) -> frozenset[str]:
    """Return the keys that a model with this MODEL.SEM_SEG_HEAD.NAME reads in training or test."""

    def added_by(*functions: Callable[[CN], None]) -> set[str]:
        cfg = get_cfg()
        for function in functions:
            function(cfg)
        return flatten(cfg).keys() - flatten(get_cfg()).keys()

    chosen = [METHODS[head]] if head in METHODS else []
    return DETECTRON2_KEYS | added_by(add_shared_config, add_clip_config, *chosen)


def warn_of_unread_keys(config_file: str | Path = "", opts: Sequence[Any] = ()) -> None:
    """Log one warning that names the keys of :func:`unread_keys`, if there are any."""
    keys = unread_keys(config_file, opts)
    if keys:
        logger.warning("The config sets keys that nothing reads, remove them: %s", ", ".join(keys))


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested config by their full keys, such as "MODEL.CLIP.NAME"."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            values.update(flatten(value, f"{prefix}{key}."))
        else:
            values[f"{prefix}{key}"] = value
    return values


def _file_values(config_file: str | Path) -> dict[str, Any]:
    """Return the values that a YAML file and its ``_BASE_`` set, by their full keys."""
    return flatten(CN.load_yaml_with_base(find_config(config_file))) if config_file else {}


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
