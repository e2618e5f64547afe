"""SED: preprocess -> backbone -> head -> losses or inference."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby, islice

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList
from open_clip import get_tokenizer
from torch import Tensor, nn

from ..checkpoint import rename_released_keys
from ..device import check_device
from ..vocabulary import Vocabulary
from .clip.text import TextEncoder
from .clip.text_cache import build_text_cache
from .losses import sample_classes, sem_seg_loss
from .views import View, ViewPlan, ViewScores, merged_labels, merged_scores

#: The precisions of ``MODEL.AUTOCAST``.
AUTOCAST = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@META_ARCH_REGISTRY.register()
class SED(nn.Module):
    """Open-vocabulary semantic segmentation (Xie et al., CVPR 2024, arXiv 2311.15537).

    Args:
        backbone: image tower, see :class:`CLIPConvNeXt`.
        sem_seg_head: see :class:`SEDHead`.
        text_encoder: class names -> (T, P, C) unit embeddings.
        pixel_mean: per RGB channel, 0..255.
        pixel_std: per RGB channel.
        views: which views of an image inference looks at.
        ignore_value: the label of pixels without a class, in training.
        mask_ignored: leave ignored pixels out of the loss.
        sampled_classes: a training batch asks for that many classes, see :func:`sample_classes`;
            0 asks for all.
        top_k: early rejection keeps this many classes per pixel; 0 turns it off.
        vocabulary: the classes; can be set later.
        autocast: the precision of inference, a key of ``AUTOCAST``; "" is that of the caller,
            float32 outside of autocast.
    """

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
        top_k: int = 0,
        vocabulary: Vocabulary | None = None,
        autocast: str = "",
    ):
        super().__init__()
        if autocast not in AUTOCAST:
            raise ValueError(
                f"MODEL.AUTOCAST '{autocast}' is unknown: use bfloat16, float16 or \"\" for float32"
            )
        if sampled_classes < 0:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.SAMPLED_CLASSES {sampled_classes} is negative: use the number "
                "of classes that a training batch asks for, or 0 for all"
            )
        self.autocast = AUTOCAST[autocast]
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.text_encoder = text_encoder
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.views = views
        self.ignore_value = ignore_value
        self.mask_ignored = mask_ignored
        self.sampled_classes = sampled_classes
        self.top_k = top_k
        self._vocabulary = vocabulary
        self._text = None
        self._register_load_state_dict_pre_hook(self._before_load_state_dict)

    @classmethod
    def from_config(cls, cfg):
        """The arguments from the whole config."""
        check_device(cfg.MODEL.DEVICE)
        head = cfg.MODEL.SEM_SEG_HEAD
        if cfg.TEST.TOPK < 1:
            raise ValueError(f"TEST.TOPK {cfg.TEST.TOPK} keeps no class: use 1 or more")
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
            "autocast": cfg.MODEL.AUTOCAST,
            "top_k": cfg.TEST.TOPK if cfg.TEST.FAST_INFERENCE else 0,
            "vocabulary": Vocabulary.of_any(cfg.DATASETS.TRAIN, head.TRAIN_CLASS_JSON),
        }

    @property
    def device(self) -> torch.device:
        """Where the model and its inputs are."""
        return self.pixel_mean.device

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The classes that the model answers for."""
        return self._vocabulary

    def set_vocabulary(self, vocabulary: Vocabulary | None) -> None:
        """Change the classes; their embeddings are made when an image next needs them."""
        self._vocabulary = vocabulary
        self._text = None

    def text_embeddings(self) -> Tensor:
        """(T, P, C) unit embeddings of the vocabulary, on the model's device."""
        if self._vocabulary is None:
            raise ValueError(
                "the model has no class names: call model.set_vocabulary(...), or name a "
                "registered data set in DATASETS.TRAIN"
            )
        if self._text is None:
            self._text = self.text_encoder(self._vocabulary.classes)
        self._text = self._text.to(self.device)
        return self._text

    def _before_load_state_dict(self, state_dict, *args):
        rename_released_keys(state_dict)
        # The embeddings belong to the weights that are about to go.
        self._text = None

    def forward(
        self, batched_inputs: list[dict], labels_only: bool = False
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Train on, or segment, a batch.

        Args:
            batched_inputs: Detectron2's dicts: "image" (3, H, W) RGB in 0..255; in training
                "sem_seg" (H, W); in inference optionally "height" and "width" of the output.
            labels_only: in inference, return labels and never hold T scores per output pixel.

        Returns:
            In training the losses ``loss_sem_seg_0`` (final) and ``_1`` to ``_3`` (coarse to
            fine). In inference
            a dict per image: "sem_seg" (T, height, width), scores in [0, 1] and 0 for rejected
            classes, or "labels" (height, width) int64.
        """
        images = [
            (x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs
        ]
        if self.training:
            return self.losses(images, [x["sem_seg"].to(self.device) for x in batched_inputs])
        sizes = [
            (x.get("height", image.shape[-2]), x.get("width", image.shape[-1]))
            for x, image in zip(batched_inputs, images, strict=True)
        ]
        return self.inference(images, sizes, labels_only)

    def losses(self, images: list[Tensor], targets: list[Tensor]) -> dict[str, Tensor]:
        """The four losses of normalised (3, H, W) images with (H, W) labels."""
        divisibility = self.backbone.size_divisibility
        batch = ImageList.from_tensors(images, divisibility).tensor
        target = ImageList.from_tensors(targets, divisibility, self.ignore_value).tensor
        text = self.text_embeddings()
        if 0 < self.sampled_classes < len(text):
            chosen, target = sample_classes(
                target, len(text), self.sampled_classes, self.ignore_value
            )
            text = text[chosen]
        output = self.sem_seg_head(self.backbone(batch), text, auxiliary=True)
        levels = (output.logits, *output.auxiliary)
        return {
            f"loss_sem_seg_{i}": sem_seg_loss(x, target, self.ignore_value, self.mask_ignored)
            for i, x in enumerate(levels)
        }

    def inference(
        self, images: list[Tensor], sizes: list[tuple[int, int]], labels_only: bool
    ) -> list[dict[str, Tensor]]:
        """Segment normalised (3, H, W) images at the given (height, width)."""
        text = self.text_embeddings()
        plans = [self.views(*image.shape[-2:]) for image in images]
        cuts = (
            (view, view.cut(image))
            for image, plan in zip(images, plans, strict=True)
            for group in plan
            for view in group
        )
        answers = self.answers(cuts, text, len(images))
        results = []
        for plan, size in zip(plans, sizes, strict=True):
            groups = [[next(answers) for _ in group] for group in plan]
            if labels_only:
                results.append({"labels": merged_labels(groups, size)})
            else:
                classes = torch.arange(len(text), device=self.device)
                sem_seg = torch.empty(len(text), *size, device=self.device)
                for chosen, scores in merged_scores(groups, classes, size):
                    sem_seg[chosen] = scores
                results.append({"sem_seg": sem_seg})
        return results

    def _precision(self):
        """The context that inference computes in."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def answers(
        self, cuts: Iterable[tuple[View, Tensor]], text: Tensor, batch_size: int
    ) -> Iterator[ViewScores]:
        """Segment views, up to ``batch_size`` of one size at a time, in their order."""
        for _, same_size in groupby(cuts, key=lambda cut: cut[0].size):
            while batch := list(islice(same_size, batch_size)):
                with self._precision():
                    features = self.backbone(torch.cat([cut for _, cut in batch]))
                for i, (view, _) in enumerate(batch):
                    # One view at a time: survivors are a view's own.
                    own = {name: feature[i : i + 1] for name, feature in features.items()}
                    with self._precision():
                        output = self.sem_seg_head(own, text, top_k=self.top_k)
                    scores = output.logits[0].float().sigmoid()  # (T', h, w)
                    yield ViewScores(view, scores, output.survivors)


def build_view_plan(cfg, divisor: int) -> ViewPlan:
    """The views that ``cfg.TEST`` asks for; by default the released protocol's one."""
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
