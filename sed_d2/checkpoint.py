"""Checkpoints, ours and released ones, read safely and reported strictly."""

import logging
import os
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from .modeling.released_keys import rename_keys

logger = logging.getLogger(__name__)

#: Prefix of the keys of CLIP's parameters in a model.
CLIP_PREFIX = "backbone.clip."


class SEDCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer that reads no pickled code and, by default, tolerates no mismatch.

    Keys of released checkpoints are renamed by the table of the model's head. A file may leave out
    CLIP as a whole if ``MODEL.CLIP.PRETRAINED`` brought it.

    Args:
        model: the model to load into or save.
        save_dir: where checkpoints are written.
        strict: whether a missing, unexpected or misshaped parameter is an error.
        **checkpointables: what else is saved, as in Detectron2.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        strict: bool = True,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.strict = strict

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
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

    def save(self, name: str, **kwargs: Any) -> None:
        """Save as ``name``.pth, whole or not at all; see :meth:`tag_last_checkpoint`."""
        super().save(f".{name}", **kwargs)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Give a checkpoint that is completely written its name, and note it as the last one."""
        name = last_filename_basename.removeprefix(".")
        os.replace(
            os.path.join(self.save_dir, last_filename_basename), os.path.join(self.save_dir, name)
        )
        super().tag_last_checkpoint(name)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        head = getattr(self.model, "sem_seg_head", None)
        rename_keys(checkpoint["model"], getattr(head, "released_prefixes", {}))
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

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Already reported by name in :meth:`_load_model`."""
