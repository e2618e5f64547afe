"""The internals of open_clip's models that this package uses; no other file touches them."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import open_clip
from open_clip.transformer import text_global_pool
from torch import Tensor, nn


def create_model(name: str, pretrained: str) -> open_clip.CLIP:
    """Build a model in float32 on the CPU; "" for ``pretrained`` gives random weights."""
    with _muted_root_logger():
        return open_clip.create_model(name, pretrained=pretrained or None)


@contextlib.contextmanager
def _muted_root_logger() -> Iterator[None]:
    """Mute open_clip's warning of random weights, which MODEL.WEIGHTS replaces later."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)


def timm_tower(name: str) -> str | None:
    """Return the timm name of a model's image tower, "" if it is not timm's, None if unknown."""
    config = open_clip.get_model_config(name)
    return None if config is None else config["vision_cfg"].get("timm_model_name", "")


def project_dense(visual: Any, features: Tensor) -> Tensor:
    """Apply an image tower's projection at every position: (B, h, w, C') -> (B, h, w, C)."""
    return visual.head(features)


def embedding_width(clip: open_clip.CLIP) -> int:
    """Return C, the width of image and text embeddings."""
    return clip.text_projection.shape[1]


def encode_text(clip: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """Compute ``clip.encode_text`` for sequences shorter than the context length.

    Args:
        clip: a model with a causal text tower.
        tokens: (N, L) ids, L at most the context length.

    Returns:
        (N, C), not normalised.
    """
    length = tokens.shape[1]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
    x = text_global_pool(clip.ln_final(x), tokens, clip.text_pool_type, clip.text_eos_id)
    return x @ clip.text_projection


def text_tensors(clip: open_clip.CLIP) -> dict[str, Tensor]:
    """Return the text tower's parameters and buffers by name."""
    parts = [(name, part) for name, part in clip.named_children() if name != "visual"]
    tensors: dict[str, Tensor] = {}
    for kind in ("named_parameters", "named_buffers"):
        tensors.update(
            (name, tensor)
            for name, tensor in getattr(clip, kind)(recurse=False)
            if not name.startswith("logit_")
        )
        for part_name, part in parts:
            tensors.update(
                (f"{part_name}.{name}", tensor) for name, tensor in getattr(part, kind)()
            )
    return tensors


def text_settings(clip: open_clip.CLIP) -> str:
    """Describe what the text tower computes with its tensors: activations, heads, pooling."""
    heads = [
        module.num_heads
        for module in clip.transformer.modules()
        if isinstance(module, nn.MultiheadAttention)
    ]
    # The text of a module names its activations, which have no weights.
    return repr((repr(clip.transformer), heads, clip.text_pool_type, clip.text_eos_id))
