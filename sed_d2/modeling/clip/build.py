"""Building open_clip models, with errors that name the config key."""

import difflib

import open_clip

from . import open_clip_adapter


def build_clip(name: str, pretrained: str = "") -> open_clip.CLIP:
    """Build an open_clip model, both towers, in float32 on the CPU.

    Args:
        name: an open_clip model with a timm ConvNeXt image tower.
        pretrained: an open_clip tag, a weight file, or "" for random weights.

    Raises:
        ValueError: the model is unknown or has another kind of image tower, or its weights cannot
            be read.
    """
    tower = open_clip_adapter.timm_tower(name)
    if tower is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.0)
        raise ValueError(
            f"MODEL.CLIP.NAME '{name}' is no open_clip model: did you mean {' or '.join(near)}?"
        )
    if not tower.startswith("convnext"):
        raise ValueError(
            f"MODEL.CLIP.NAME '{name}' has no ConvNeXt image tower, which SED needs for its "
            "feature pyramid: use convnext_base_w_320 or convnext_large_d_320"
        )
    try:
        return open_clip_adapter.create_model(name, pretrained)
    except Exception as error:
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED '{pretrained}' of '{name}' cannot be loaded "
            f"({_first_line(error)}): give a tag of open_clip.list_pretrained_tags_by_model("
            f"'{name}'), a weight file of that model, or \"\" with a full checkpoint in "
            "MODEL.WEIGHTS"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
