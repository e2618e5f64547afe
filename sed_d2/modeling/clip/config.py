"""The config keys of the CLIP model that all methods share."""

from detectron2.config import CfgNode as CN


def add_clip_config(cfg: CN) -> None:
    """Add ``MODEL.CLIP`` to ``cfg``, with the values of the paper's base model."""
    cfg.MODEL.CLIP = CN()
    # The open_clip model. The widths of its image tower set those of the decoder's inputs.
    cfg.MODEL.CLIP.NAME = "convnext_base_w_320"
    # The weights of CLIP: an open_clip tag (downloaded once), a weight file of this model, or ""
    # for random weights. With MODEL.WEIGHTS and MODEL.WEIGHTS_STRICT a tag is not downloaded, since
    # the checkpoint has CLIP's weights.
    cfg.MODEL.CLIP.PRETRAINED = ""
    # The side of the square to which inference resizes images; a multiple of 32.
    cfg.MODEL.CLIP.RESOLUTION = 768
    # The folder of the cache of text embeddings. "" is sed_d2/text in torch's hub folder
    # (TORCH_HOME).
    cfg.MODEL.CLIP.TEXT_CACHE = ""
    # The size limit of TEXT_CACHE in GB. The least recently used files are removed first. A class
    # of the base model takes 205 KB. 0 disables the cache.
    cfg.MODEL.CLIP.TEXT_CACHE_GB = 2
    # Whether training recomputes the activations inside each trunk block in the backward pass. It
    # uses a fraction of the memory and takes a third more time.
    cfg.MODEL.CLIP.CHECKPOINT = False
    # The part of the image tower that is trained: full, frozen, conv, mlp or last_stage.
    cfg.MODEL.CLIP.FINETUNE = "full"
