"""OpenVocabSegmenter: preprocess -> backbone -> head -> losses, or views -> scores -> labels."""

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList
from open_clip import get_tokenizer
from torch import Tensor, nn

from ..device import check_device
from ..vocabulary import Vocabulary
from .clip.text import TextEncoder
from .clip.text_cache import build_text_cache
from .layers.head_output import HeadOutput
from .losses import sample_classes, sem_seg_loss
from .released_keys import rename_keys
from .views import View, ViewPlan, ViewScores, batch_views, merged_labels, merged_sem_seg, regroup

#: ``TEST.PRECISION`` -> the precision of inference; None is that of the caller's autocast.
PRECISIONS = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: Forms of a class list that :meth:`Vocabulary.of` takes.
Words = Vocabulary | str | Iterable[str]

#: Callables with the signatures of backbone and head.
Forms = tuple[Callable[[Tensor], dict[str, Tensor]], Callable[..., HeadOutput]]


class Accelerate(Protocol):
    """Gives modules in eval mode another form."""

    def __call__(self, module: nn.Module, precision: torch.dtype) -> Callable[..., Any] | None:
        """Return a callable with the module's signature, or None for its own ``forward``."""

    def clear(self) -> None:
        """Free what is kept."""


@META_ARCH_REGISTRY.register()
class OpenVocabSegmenter(nn.Module):
    """Open-vocabulary semantic segmentation by any backbone and head of the package's contracts.

    Args:
        backbone: images -> features with strides, "embedding" among them.
        sem_seg_head: ``head(features, text, auxiliary=...)`` ->
            :class:`~sed_d2.modeling.layers.head_output.HeadOutput`.
        text_encoder: class names -> (T, P, C) unit embeddings.
        pixel_mean: per RGB channel, 0..255.
        pixel_std: per RGB channel.
        views: the views of an image in inference.
        ignore_value: the label of pixels without a class, in training.
        mask_ignored: leave ignored pixels out of the loss.
        sampled_classes: classes of a training batch, see :func:`sample_classes`; 0 takes all.
        vocabulary: the classes of calls that name none; can be set later.
        precision: the precision of inference, a key of ``PRECISIONS``.
        accelerator: gives the forms of backbone and head that inference runs, see
            :func:`build_accelerator`; where it gives none, their own ``forward`` runs.

    Raises:
        ValueError: an argument is outside its range; the message names its key.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        text_encoder: TextEncoder,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        views: ViewPlan,
        ignore_value: int = 255,
        mask_ignored: bool = False,
        sampled_classes: int = 0,
        vocabulary: Vocabulary | None = None,
        precision: str = "",
        accelerator: Accelerate | None = None,
    ):
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(
                f"TEST.PRECISION '{precision}' is unknown: use bfloat16, float16 or \"\" to "
                "follow the caller's autocast"
            )
        if sampled_classes < 0:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.SAMPLED_CLASSES {sampled_classes} is negative: use the number "
                "of classes of a training batch, or 0 for all"
            )
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.text_encoder = text_encoder
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.views = views
        self.ignore_value = ignore_value
        self.mask_ignored = mask_ignored
        self.sampled_classes = sampled_classes
        self._vocabulary = vocabulary
        self.precision = PRECISIONS[precision]
        self.accelerator = accelerator
        self._register_load_state_dict_pre_hook(self._rename_released_keys)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the arguments from the whole config."""
        check_device(cfg.MODEL.DEVICE)
        head = cfg.MODEL.SEM_SEG_HEAD
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "text_encoder": TextEncoder(
                backbone.clip,
                get_tokenizer(cfg.MODEL.CLIP.NAME),
                cache=build_text_cache(cfg.MODEL.CLIP.TEXT_CACHE, cfg.MODEL.CLIP.TEXT_CACHE_GB),
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "views": build_view_plan(cfg, backbone.size_divisibility),
            "ignore_value": head.IGNORE_VALUE,
            "mask_ignored": head.MASK_IGNORED,
            "sampled_classes": head.SAMPLED_CLASSES,
            "vocabulary": Vocabulary.of_any(cfg.DATASETS.TRAIN, head.TRAIN_CLASS_JSON),
            "precision": cfg.TEST.PRECISION,
            "accelerator": build_accelerator(cfg.TEST.KERNELS, cfg.TEST.CHUNK_ELEMENTS),
        }

    @property
    def device(self) -> torch.device:
        """The device of the model and its inputs."""
        return self.pixel_mean.device

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The classes of calls that name none, see :meth:`set_vocabulary`."""
        return self._vocabulary

    def train(self, mode: bool = True) -> "OpenVocabSegmenter":
        """Set the training mode, and free the weights that inference has cast and folded.

        They follow the model's weights by themselves, but for a change through ``parameter.data``,
        which torch does not count: call ``eval()`` after one.
        """
        if self.accelerator is not None:
            self.accelerator.clear()
        return super().train(mode)

    def set_vocabulary(self, vocabulary: Words | None) -> None:
        """Set the classes of calls that name none, as in Detectron2's loops.

        Args:
            vocabulary: what :meth:`Vocabulary.of` takes; None unsets them.

        Raises:
            FileNotFoundError, ValueError: see :meth:`Vocabulary.of`.
        """
        self._vocabulary = None if vocabulary is None else Vocabulary.of(vocabulary)

    def text_embeddings(self, vocabulary: Words | None = None) -> Tensor:
        """Return the (T, P, C) unit embeddings of some classes, by default the model's own.

        They are shared between calls: do not change them in place.

        Raises:
            ValueError: neither the call nor the model has classes.
        """
        vocabulary = self._vocabulary if vocabulary is None else Vocabulary.of(vocabulary)
        if vocabulary is None:
            raise ValueError(
                "the model has no class names: pass vocabulary=..., call "
                "model.set_vocabulary(...), or name a registered data set in DATASETS.TRAIN"
            )
        return self.text_encoder(vocabulary.classes)

    def forward(
        self,
        batched_inputs: list[dict[str, Any]],
        vocabulary: Words | None = None,
        text: Tensor | None = None,
        labels_only: bool = False,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Train on a batch, or segment it.

        Args:
            batched_inputs: Detectron2's dicts: "image" (3, H, W) RGB in 0..255; in training
                "sem_seg" (H, W); in inference optionally "height" and "width" of the output.
            vocabulary: the classes of this call; by default those of :meth:`set_vocabulary`.
            text: (T, P, C) unit embeddings of the classes, in place of ``vocabulary``.
            labels_only: in inference, return labels and never hold T scores per output pixel.

        Returns:
            In training the losses ``loss_sem_seg_0`` (final) and ``_1``, ``_2`` ... (auxiliary,
            coarse to fine). In inference a dict per image: "sem_seg" (T, height, width), scores in
            [0, 1] and 0 for rejected classes, or "labels" (height, width) int64.

        Raises:
            ValueError: both ``vocabulary`` and ``text`` are given, or there are no classes.
        """
        if text is not None and vocabulary is not None:
            raise ValueError("vocabulary and text both name the classes: pass one of the two")
        text = self.text_embeddings(vocabulary) if text is None else text.to(self.device)
        images = [
            (x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs
        ]
        if self.training:
            return self.losses(images, [x["sem_seg"].to(self.device) for x in batched_inputs], text)
        sizes = [
            (x.get("height", image.shape[-2]), x.get("width", image.shape[-1]))
            for x, image in zip(batched_inputs, images, strict=True)
        ]
        return self.inference(images, sizes, text, labels_only)

    def losses(
        self, images: list[Tensor], targets: list[Tensor], text: Tensor
    ) -> dict[str, Tensor]:
        """Compute the losses of normalised (3, H, W) images with (H, W) labels.

        Returns:
            "loss_sem_seg_0" (final) and "_1", "_2" ... (auxiliary, coarse to fine). The trainer
            adds them with weight 1.
        """
        divisibility = self.backbone.size_divisibility
        batch = ImageList.from_tensors(images, divisibility).tensor
        target = ImageList.from_tensors(targets, divisibility, self.ignore_value).tensor
        if 0 < self.sampled_classes < len(text):
            chosen, target = sample_classes(
                target, len(text), self.sampled_classes, self.ignore_value
            )
            text = text[chosen]
        output = self.sem_seg_head(self.backbone(batch), text, auxiliary=True)
        return {
            f"loss_sem_seg_{i}": sem_seg_loss(x, target, self.ignore_value, self.mask_ignored)
            for i, x in enumerate((output.logits, *output.auxiliary))
        }

    def inference(
        self,
        images: list[Tensor],
        sizes: list[tuple[int, int]],
        text: Tensor,
        labels_only: bool = False,
    ) -> list[dict[str, Tensor]]:
        """Segment normalised (3, H, W) images at the given (height, width)."""
        plans = [self.views(*image.shape[-2:]) for image in images]
        scores: list[list[ViewScores]] = [[] for _ in images]
        results: list[dict[str, Tensor]] = [{} for _ in images]
        for batch in batch_views(plans, batch_size=len(images)):
            crops = [
                view.crop(images[i]) for i, view in zip(batch.images, batch.views, strict=True)
            ]
            for i, scored in zip(
                batch.images, self.score_views(batch.views, torch.cat(crops), text), strict=True
            ):
                scores[i].append(scored)
            for i in set(batch.images):
                if len(scores[i]) == sum(map(len, plans[i])):  # its last view
                    groups = regroup(plans[i], scores[i])
                    if labels_only:
                        results[i] = {"labels": merged_labels(groups, sizes[i])}
                    else:
                        results[i] = {"sem_seg": merged_sem_seg(groups, len(text), sizes[i])}
                    scores[i] = []
        return results

    def score_views(self, views: Sequence[View], crops: Tensor, text: Tensor) -> list[ViewScores]:
        """Score the classes in views of one size, given their (B, 3, H, W) pixels."""
        encode, head = self.inference_forms(self.precision)
        features = encode(crops)
        scored = []
        for i, view in enumerate(views):
            # One view at a time: each has its own survivors.
            output = head({name: x[i : i + 1] for name, x in features.items()}, text)
            scored.append(ViewScores(view, output.scores[0], output.survivors))
        return scored

    def inference_forms(self, precision: torch.dtype | None = None) -> Forms:
        """Return backbone and head in the form that inference runs.

        Args:
            precision: float32, bfloat16 or float16; None is that of the caller's autocast.

        Returns:
            The accelerator's forms; where there is none, or gradients are recorded, the modules
            themselves under autocast.
        """
        kind = self.device.type
        if precision is None:
            enabled = torch.is_autocast_enabled(kind)
            precision = torch.get_autocast_dtype(kind) if enabled else torch.float32
        half = precision != torch.float32
        autocast = torch.autocast(kind, precision if half else None, enabled=half)
        forms = []
        for module in (self.backbone, self.sem_seg_head):
            form = None
            if self.accelerator is not None and not torch.is_grad_enabled():
                form = self.accelerator(module, precision)
            forms.append(form or autocast(module.__call__))
        return forms[0], forms[1]

    def _rename_released_keys(self, state_dict: dict[str, Tensor], *_: Any) -> None:
        rename_keys(state_dict, getattr(self.sem_seg_head, "released_prefixes", {}))


@META_ARCH_REGISTRY.register()
class SED(OpenVocabSegmenter):
    """The segmenter by the name that configs written for SED give it."""


def build_accelerator(kernels: str, chunk_elements: int) -> Accelerate | None:
    """Build what ``TEST.KERNELS`` asks for; the only place that knows of ``modeling/fast``.

    Args:
        kernels: "auto" for the forms of ``modeling/fast``, chosen by device, or "plain" for the
            modules' own ``forward``. Without that folder both are plain.
        chunk_elements: ``TEST.CHUNK_ELEMENTS``.

    Raises:
        ValueError: an argument is outside its range.
    """
    if kernels not in ("auto", "plain"):
        raise ValueError(f"TEST.KERNELS '{kernels}' is unknown: use auto or plain")
    if chunk_elements < 0:
        raise ValueError(
            f"TEST.CHUNK_ELEMENTS {chunk_elements} is negative: use a number of elements, or 0 to "
            "let the device choose"
        )
    spec = importlib.util.find_spec(".fast", __package__)
    if kernels == "plain" or spec is None or spec.origin is None:  # deleted, or caches are left
        return None
    from .fast import Accelerator

    return Accelerator(chunk_elements)


def build_view_plan(cfg: CfgNode, divisor: int) -> ViewPlan:
    """Build the views that ``cfg.TEST`` asks for; by default the released protocol's one."""
    augment, sliding = cfg.TEST.AUG, cfg.TEST.SLIDING
    return ViewPlan(
        resolution=cfg.MODEL.CLIP.RESOLUTION,
        divisor=divisor,
        keep_aspect=cfg.TEST.KEEP_ASPECT,
        scales=tuple(augment.SCALES) if augment.ENABLED else (1.0,),
        flip=augment.ENABLED and augment.FLIP,
        window=sliding.WINDOW if sliding.ENABLED else None,
        overlap=sliding.OVERLAP,
    )
