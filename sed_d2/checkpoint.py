"""Checkpoints: ours and the released SED ones, read safely and reported strictly."""

import logging
import os
from collections.abc import MutableMapping
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

logger = logging.getLogger(__name__)

CLIP_PREFIX = "backbone.clip."
"""What the names of CLIP's parameters start with in a SED model."""


def _released_prefixes() -> dict[str, str]:
    """Prefix of a key in a released checkpoint -> ours; of two that match the longer counts."""
    released, ours = "sem_seg_head.predictor.transformer.", "sem_seg_head.decoder."
    prefixes = {
        "sem_seg_head.predictor.clip_model.": CLIP_PREFIX,
        f"{released}conv1.": f"{ours}cost_conv.",
        f"{released}head.": f"{ours}head.",
    }
    for i in range(3):
        level, block = f"{ours}levels.{i}.", f"{released}decoder{i + 1}."
        prefixes |= {
            f"{released}head{i}.": f"{level}aux_head.",
            f"{released}decoder_guidance_projection.{i}.": f"{level}image_guidance.",
            f"{released}decoder_corr_guidance_projection.{i}.": f"{level}cost_guidance.",
            f"{block}cnext.": f"{level}fam.spatial.",
            f"{block}attention.": f"{level}fam.classes.",
            f"{block}attention.MLP.": f"{level}fam.classes.mlp.",
            f"{block}up.": f"{level}sfm.up.",
            f"{block}conv.double_conv.0.": f"{level}sfm.conv1.",
            f"{block}conv.double_conv.1.": f"{level}sfm.norm1.",
            f"{block}conv.double_conv.3.": f"{level}sfm.conv2.",
            f"{block}conv.double_conv.4.": f"{level}sfm.norm2.",
        }
    return dict(sorted(prefixes.items(), key=lambda item: -len(item[0])))


_RELEASED_PREFIXES = _released_prefixes()


def rename_released_keys(state_dict: MutableMapping[str, Any]) -> None:
    """Give the keys of a released SED checkpoint our names, in place; leave all others alone."""
    for key in list(state_dict):
        for released, ours in _RELEASED_PREFIXES.items():
            if key.startswith(released):
                state_dict[ours + key[len(released) :]] = state_dict.pop(key)
                break


class SEDCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer that reads no pickled code and, by default, tolerates no mismatch.

    A file may leave out CLIP as a whole where the model has it from a file of CLIP's own.

    Args:
        model: the model to load into or save.
        save_dir: where checkpoints are written.
        strict: whether a missing, unexpected or misshaped parameter is an error.
        **checkpointables: what else is saved, as in Detectron2.
    """

    def __init__(self, model, save_dir: str = "", *, strict: bool = True, **checkpointables):
        super().__init__(model, save_dir, **checkpointables)
        self.strict = strict

    def load(self, path: str, *args, **kwargs) -> dict[str, Any]:
        """Load a checkpoint; "" loads nothing.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read, or its parameters do not match the model's.
        """
        if path and "://" not in path and not os.path.isfile(path):
            raise FileNotFoundError(
                f"checkpoint '{path}' does not exist: check MODEL.WEIGHTS and OUTPUT_DIR"
            )
        self._path = path
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            checkpoint = torch.load(filename, map_location="cpu", weights_only=True)
            checkpoint = checkpoint if "model" in checkpoint else {"model": checkpoint}
            if not all(torch.is_tensor(value) for value in checkpoint["model"].values()):
                raise TypeError("not all of its values are tensors")
            return checkpoint
        except Exception as error:
            raise ValueError(
                f"checkpoint '{filename}' is no readable torch weight file "
                f"({type(error).__name__}): download or save it again"
            ) from error

    def save(self, name: str, **kwargs) -> None:
        """Save as ``name``.pth, whole or not at all; see :meth:`tag_last_checkpoint`."""
        super().save(f".{name}", **kwargs)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Give a checkpoint that is completely written its name, and note it as the last one."""
        name = last_filename_basename.removeprefix(".")
        os.replace(
            os.path.join(self.save_dir, last_filename_basename), os.path.join(self.save_dir, name)
        )
        super().tag_last_checkpoint(name)

    def _load_model(self, checkpoint: dict[str, Any]):
        rename_released_keys(checkpoint["model"])
        has_clip = any(key.startswith(CLIP_PREFIX) for key in checkpoint["model"])
        result = super()._load_model(checkpoint)
        misshaped = {
            key: f"{key} ({tuple(found)} in the file, {tuple(wanted)} in the model)"
            for key, found, wanted in result.incorrect_shapes
        }
        missing = [key for key in result.missing_keys if key not in misshaped]
        if not has_clip and getattr(getattr(self.model, "backbone", None), "pretrained", False):
            logger.info("'%s' has no CLIP: its weights are MODEL.CLIP.PRETRAINED's", self._path)
            missing = [key for key in missing if not key.startswith(CLIP_PREFIX)]
        problems = {
            "missing": missing,
            "unexpected": result.unexpected_keys,
            "misshaped": list(misshaped.values()),
        }
        problems = {kind: names for kind, names in problems.items() if names}
        if problems:
            for kind, names in problems.items():
                logger.warning("%s in '%s':\n  %s", kind, self._path, "\n  ".join(names))
            if self.strict:
                summary = "; ".join(
                    f"{len(names)} {kind}, such as {names[0]}" for kind, names in problems.items()
                )
                raise ValueError(
                    f"checkpoint '{self._path}' does not match the model ({summary}): use the "
                    "config it was trained with, or MODEL.WEIGHTS_STRICT False to load what fits"
                )
        return result

    def _log_incompatible_keys(self, incompatible) -> None:
        """Already reported by name in :meth:`_load_model`."""
