"""The config keys of SED's head, MODEL.SEM_SEG_HEAD.NAME "SEDHead"."""

from detectron2.config import CfgNode as CN


def add_sed_head_config(cfg: CN) -> None:
    """Add the keys of SED's head to ``cfg``, with the paper's values."""
    # The width of the embedded cost map, which is the input of the first decoder level.
    cfg.MODEL.SEM_SEG_HEAD.HIDDEN_DIM = 128
    # The output width of each decoder level.
    cfg.MODEL.SEM_SEG_HEAD.DECODER_DIMS = [64, 32, 16]
    # The width of the image guidance, and of the cost guidance, at each decoder level; less than
    # the width of the level's input.
    cfg.MODEL.SEM_SEG_HEAD.GUIDANCE_PROJ_DIMS = [32, 16, 8]
    # The image features (res4, res3, res2) that the skip path sees: detached (no gradient to the
    # image tower, as in the paper), attached (with the gradient) or none (zeros in their place).
    cfg.MODEL.SEM_SEG_HEAD.GUIDANCE = "detached"
    # The depthwise kernel size of spatial fusion (FAM) at each decoder level; odd numbers.
    cfg.MODEL.SEM_SEG_HEAD.KERNEL_SIZES = [9, 9, 9]
    # The number of heads of class attention. It must divide HIDDEN_DIM and DECODER_DIMS, but
    # not the last of them.
    cfg.MODEL.SEM_SEG_HEAD.NUM_HEADS = 4
    # Whether the auxiliary losses train only the auxiliary heads, as in the released model. False
    # also trains all that precedes a head: earlier levels, the cost convolution and the image
    # tower. In the short training of the embedded model early rejection needs it.
    cfg.MODEL.SEM_SEG_HEAD.DETACH_AUXILIARY = True
    # The initial score of the heads, in (0, 1). About 1 / T speeds up a short training. 0 leaves
    # the bias at its default, a score of about 0.5, as in the released model.
    cfg.MODEL.SEM_SEG_HEAD.PRIOR_PROB = 0.0
    # The (height, width) of class attention's average pooling in training. Inference uses
    # TEST.POOLING_SIZES.
    cfg.MODEL.SEM_SEG_HEAD.POOLING_SIZES = [2, 2]
    # Whether training recomputes the activations of spatial fusion, class fusion and SFM in the
    # backward pass.
    cfg.MODEL.SEM_SEG_HEAD.CHECKPOINT = False

    # The (height, width) of class attention's average pooling in inference. Training uses
    # MODEL.SEM_SEG_HEAD.POOLING_SIZES.
    cfg.TEST.POOLING_SIZES = [1, 1]
    # Whether to use category early rejection: before each decoder level, each pixel keeps its TOPK
    # best classes, and a class that no pixel keeps is rejected with score 0.
    cfg.TEST.FAST_INFERENCE = False
    # The number of classes that each pixel keeps in category early rejection; at least 1.
    cfg.TEST.TOPK = 8
    # The number of classes that are decoded: those whose mean cosine comes nearest to the best
    # class's at some position. The others score 0. This is an approximation: labels differ where a
    # dropped class would have won. 0 decodes all classes.
    cfg.TEST.PREREJECT = 0
    # The number of principal components that the 80 prompt templates are projected on. This is an
    # approximation below 80. 0 uses the templates themselves.
    cfg.TEST.TEMPLATE_CHANNELS = 0
