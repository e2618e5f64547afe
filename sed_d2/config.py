"""The config keys that SED adds to Detectron2's."""

from pathlib import Path

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from .data.custom import register_from_yaml
from .device import best_device


def add_sed_config(cfg: CN) -> None:
    """Add SED's keys, with the values of the paper's base model, to ``cfg``."""
    # The open_clip model with a ConvNeXt tower; all widths come from it.
    cfg.MODEL.CLIP = CN()
    cfg.MODEL.CLIP.NAME = "convnext_base_w_320"
    # An open_clip tag (downloaded once), a weight file of that model, or "" for random weights,
    # which is right when MODEL.WEIGHTS holds a full SED checkpoint.
    cfg.MODEL.CLIP.PRETRAINED = ""
    # Side of the square that images are stretched to in inference; a multiple of 32.
    cfg.MODEL.CLIP.RESOLUTION = 768
    # Folder of the text embeddings of classes once asked for; "" is sed_d2/text in torch's hub
    # folder (TORCH_HOME). Its files take at most TEXT_CACHE_GB in all (a class of the base model
    # 205 KB), those not used for longest go first; 0 turns the cache off.
    cfg.MODEL.CLIP.TEXT_CACHE = ""
    cfg.MODEL.CLIP.TEXT_CACHE_GB = 2
    # Whether training keeps only the inputs of the trunk's blocks and computes what is in them
    # again in the backward pass: a fraction of the memory for a third more time.
    cfg.MODEL.CLIP.CHECKPOINT = False
    # What of the image tower is trained: full, frozen, conv, mlp or last_stage.
    cfg.MODEL.CLIP_FINETUNE = "full"
    # Whether parameters that are missing, unexpected or of another shape in MODEL.WEIGHTS are an
    # error; False loads what fits and names the rest in the log.
    cfg.MODEL.WEIGHTS_STRICT = True

    # The precision that inference computes the encoder and the decoder in: bfloat16, float16, or
    # "" for float32. CPUs need units of their own for it (avx512_bf16 or AMX for bfloat16); without
    # them it takes much longer than float32. Training has SOLVER.AMP.
    cfg.MODEL.AUTOCAST = ""

    head = cfg.MODEL.SEM_SEG_HEAD
    # Width of the embedded cost map, and of what each decoder level puts out.
    head.HIDDEN_DIM = 128
    head.DECODER_DIMS = [64, 32, 16]
    # Width of the image guidance and of the cost guidance at each level.
    head.GUIDANCE_PROJ_DIMS = [32, 16, 8]
    # Whether the skip path's gradient reaches the image tower: detached (the paper's) or attached;
    # none gives the decoder zeros in place of the image's features.
    head.GUIDANCE = "detached"
    # Depthwise kernel of spatial fusion at each level (odd).
    head.KERNEL_SIZES = [9, 9, 9]
    # Heads of class attention; divides HIDDEN_DIM and DECODER_DIMS.
    head.NUM_HEADS = 4
    # Whether the auxiliary losses train nothing but their heads, as released. False supervises each
    # level's features, without which a short training leaves early rejection blind.
    head.DETACH_AUXILIARY = True
    # The score that the heads give before training, in (0, 1); 0, as released, is about 0.5. About
    # 1 / T makes short trainings faster.
    head.PRIOR_PROB = 0.0
    # (height, width) of the cells that class attention averages over in training.
    head.POOLING_SIZES = [2, 2]
    # As MODEL.CLIP.CHECKPOINT, for the decoder's levels.
    head.CHECKPOINT = False
    # True leaves ignored pixels out of the loss; False, as released, counts them as negatives
    # of every class.
    head.MASK_IGNORED = False
    # A training batch of a process asks for that many classes: those that its labels show (all of
    # them, though they be more) and others at random; the loss is a mean over these. It saves time
    # and memory with a large vocabulary; 0 asks for all.
    head.SAMPLED_CLASSES = 0
    # Files of class names that override the data set's own; see sed_d2.vocabulary.
    head.TRAIN_CLASS_JSON = ""
    head.TEST_CLASS_JSON = ""

    # YAML files that describe one's own data sets; they are registered before any is used.
    cfg.DATASETS.CUSTOM = ()

    # A training crop is drawn again while one category covers more than this share of it.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Colour augmentation in the manner of SSD, before the flip.
    cfg.INPUT.COLOR_AUG_SSD = False

    # The image tower's learning rate is this multiple of BASE_LR.
    cfg.SOLVER.CLIP_MULTIPLIER = 1.0

    # Category early rejection: before each level a pixel keeps its TOPK best classes, and the
    # classes that no pixel keeps are dropped.
    cfg.TEST.FAST_INFERENCE = False
    cfg.TEST.TOPK = 8
    # Elements of a feature map that the decoder works on at a time, which bounds the memory of
    # what it holds besides the features of all classes; 0 suits a CPU's caches (4 MB of float32)
    # or, elsewhere, keeps a large device busy (128 MB).
    cfg.TEST.CHUNK_ELEMENTS = 0
    # Two approximations. PREREJECT decodes only that many classes, those that come nearest to
    # being some position's best by their mean cosine, and the others score 0; the labels differ
    # where a dropped class would have won. TEMPLATE_CHANNELS sees the 80 templates through that
    # many principal components; the cost map's error is what the other components hold, none at
    # 80. 0 turns them off.
    cfg.TEST.PREREJECT = 0
    cfg.TEST.TEMPLATE_CHANNELS = 0
    # Show images in their own aspect, with as many pixels, instead of stretching them to a square.
    cfg.TEST.KEEP_ASPECT = False
    # Test-time augmentation, TEST.AUG.ENABLED: the image at these multiples of RESOLUTION and,
    # with TEST.AUG.FLIP, mirrored too. (TEST.AUG.MIN_SIZES and MAX_SIZE are not used.) The scores
    # of all views of an image are held at once: 125 MB a view for 847 classes at 768.
    cfg.TEST.AUG.SCALES = [0.75, 1.0, 1.25]
    # Sliding windows besides the whole image: squares of WINDOW times its shorter side, each
    # stretched to RESOLUTION, that overlap by at least OVERLAP.
    cfg.TEST.SLIDING = CN()
    cfg.TEST.SLIDING.ENABLED = False
    cfg.TEST.SLIDING.WINDOW = 0.6
    cfg.TEST.SLIDING.OVERLAP = 1 / 3
    # (height, width) of class attention's cells in inference.
    cfg.TEST.POOLING_SIZES = [1, 1]


def get_sed_cfg(config_file: str = "", opts: list = ()) -> CN:
    """Detectron2's defaults, SED's keys, a YAML file and ``KEY VALUE`` pairs, in that order.

    The file may be one of SED's own by its name alone, such as "convnextB_768.yaml".

    ``MODEL.DEVICE`` is the best device that torch has here, unless the file or a pair names one.
    The data sets of ``DATASETS.CUSTOM`` are registered.
    """
    cfg = get_cfg()
    add_sed_config(cfg)
    cfg.MODEL.DEVICE = best_device()
    if config_file:
        cfg.merge_from_file(find_config(config_file), allow_unsafe=False)
    cfg.merge_from_list(list(opts))
    for path in cfg.DATASETS.CUSTOM:
        register_from_yaml(path)
    return cfg


def find_config(config_file: str | Path) -> str:
    """The path of a config file; a name that is no file is looked up among SED's own configs.

    Raises:
        FileNotFoundError: there is no such file; the message lists SED's own.
    """
    # An installed package holds the configs, in a checkout they lie beside it.
    package = Path(__file__).parent
    folder = package / "configs"
    folder = folder if folder.is_dir() else package.parent / "configs"
    for path in (Path(config_file), folder / config_file):
        if path.is_file():
            return str(path)
    own = ", ".join(sorted(path.name for path in folder.glob("*.yaml")))
    raise FileNotFoundError(
        f"config file '{config_file}' does not exist: give a file, or one of SED's own, {own}"
    )
