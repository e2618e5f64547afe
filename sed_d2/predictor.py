"""The Python interface: image and class names -> a label for each pixel."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from PIL import Image, ImageOps

from .checkpoint import SEDCheckpointer
from .data.custom import register_custom
from .data.files import read_image
from .registration import register
from .vocabulary import Vocabulary


class FoundClass(NamedTuple):
    """Class found in an image: index in the vocabulary, name, share of the pixels."""

    index: int  # type: ignore[assignment]  # it hides tuple.index
    name: str
    share: float


@dataclass(frozen=True)
class Prediction:
    """Result of segmenting an image.

    Attributes:
        labels: (H, W) int64, indices into ``vocabulary``, at the image's own size.
        vocabulary: the T classes that were asked for.
        scores: (T, H, W) float32 in [0, 1], 0 for classes rejected early; None if not asked for.
    """

    labels: np.ndarray
    vocabulary: Vocabulary
    scores: np.ndarray | None = None

    @property
    def found(self) -> list[FoundClass]:
        """The classes that have pixels, largest share first; named by their first synonym."""
        counts = np.bincount(self.labels.ravel())
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        shares = (counts / self.labels.size).tolist()
        return [FoundClass(int(i), self.vocabulary[i][0], shares[i]) for i in order]


class OpenVocabPredictor:
    """Segments single images with any vocabulary.

    Several threads may call it at once: each call is answered for its own classes.

    Args:
        cfg: config of the model; ``MODEL.WEIGHTS`` is loaded into it.

    Attributes:
        model: the model, in inference mode.
        vocabulary: the classes of calls that name none: those of ``TEST_CLASS_JSON``, else of the
            first test data set that has names, else those the model is trained on, else None.

    Raises:
        FileNotFoundError: a class file or the weights do not exist.
        ValueError: the config, the weights or the class names are wrong.
    """

    def __init__(self, cfg: CfgNode):
        register()
        register_custom(cfg.DATASETS.CUSTOM)
        vocabulary = Vocabulary.of_any(cfg.DATASETS.TEST, cfg.MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON)
        with torch.inference_mode(False):  # weights whose changes torch counts, and caches notice
            self.model = build_model(cfg).eval()
            SEDCheckpointer(self.model, strict=cfg.MODEL.WEIGHTS_STRICT).load(cfg.MODEL.WEIGHTS)
        self.vocabulary = vocabulary or self.model.vocabulary
        size = cfg.INPUT.MIN_SIZE_TEST
        self._resize = T.ResizeShortestEdge([size, size], cfg.INPUT.MAX_SIZE_TEST)

    @torch.no_grad()
    def __call__(
        self,
        image: np.ndarray | Image.Image | str | os.PathLike,
        vocabulary: Vocabulary | str | Iterable[str] | None = None,
        *,
        scores: bool = False,
    ) -> Prediction:
        """Segment an image.

        Args:
            image: (H, W, 3) uint8 RGB, a Pillow image, or the path of an image file; images and
                files are turned upright by their EXIF orientation.
            vocabulary: the classes, in any form that :meth:`Vocabulary.of` takes; None takes those
                of ``self.vocabulary``. The embeddings of the latest vocabularies are kept.
            scores: also return the scores, which takes T × H × W numbers.

        Raises:
            FileNotFoundError: there is no such image or class file.
            ValueError: the image cannot be read or has another form; the class names are wrong.
        """
        vocabulary = self.vocabulary if vocabulary is None else Vocabulary.of(vocabulary)
        if vocabulary is None:
            raise ValueError("no class names: give a vocabulary, the config's data set has none")
        array = as_rgb_array(image)
        height, width = array.shape[:2]
        resized = self._resize.get_transform(array).apply_image(array)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        record = {"image": tensor, "height": height, "width": width}
        output = self.model([record], vocabulary, labels_only=not scores)[0]
        if not scores:
            return Prediction(output["labels"].cpu().numpy(), vocabulary)
        sem_seg = output["sem_seg"].cpu().numpy()
        return Prediction(sem_seg.argmax(0), vocabulary, sem_seg)


def as_rgb_array(image: np.ndarray | Image.Image | str | os.PathLike) -> np.ndarray:
    """Convert an image in any form that the predictor takes to (H, W, 3) uint8 RGB, upright."""
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                f"the image is an array {image.shape} of {image.dtype}: give a non-empty one of "
                "shape (height, width, 3) and type uint8, channels in the order RGB"
            )
        return image
    return read_image(os.fspath(image), "RGB")
