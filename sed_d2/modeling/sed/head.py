"""SEDHead: image embedding and text embeddings -> cost map -> decoder -> logits of each class."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ..clip.templates import PROMPT_TEMPLATES
from ..layers.cost_map import cost_map
from ..layers.head_output import HeadOutput
from .approximations import nearest_classes, project_templates
from .decoder import GradualFusionDecoder
from .keys import RELEASED_PREFIXES

#: The backbone's features that the decoder's levels fuse, coarse to fine.
SKIP_FEATURES = ("res4", "res3", "res2")

#: ``MODEL.SEM_SEG_HEAD.GUIDANCE`` -> a skip feature as the decoder sees it. The paper detaches it:
#: the skip path must not train the image encoder (SED, section 3.2).
GUIDANCE = {
    "detached": Tensor.detach,
    "attached": lambda feature: feature,
    "none": torch.zeros_like,
}


@SEM_SEG_HEADS_REGISTRY.register()
class SEDHead(nn.Module):
    """Cosine cost map and gradual fusion decoder (SED, section 3).

    Args:
        decoder: decoder of the cost map.
        train_pooling: (height, width) of class attention's cells in training.
        test_pooling: the same in inference.
        guidance: the skip features that the decoder sees, a key of ``GUIDANCE``.
        top_k: in inference, early rejection keeps this many classes per pixel; 0 keeps all.
        pre_reject: in inference, an approximation: decode only this many classes, see
            :func:`~.approximations.nearest_classes`; 0 decodes all.
        template_channels: in inference, an approximation: project the templates on this many
            principal components, see :func:`~.approximations.template_basis`; 0 does not.

    Attributes:
        released_prefixes: key prefix of a released checkpoint -> ours.

    Raises:
        ValueError: an argument is outside its range; the message names its key.
    """

    released_prefixes = RELEASED_PREFIXES

    @configurable
    def __init__(
        self,
        *,
        decoder: GradualFusionDecoder,
        train_pooling: tuple[int, int] = (2, 2),
        test_pooling: tuple[int, int] = (1, 1),
        guidance: str = "detached",
        top_k: int = 0,
        pre_reject: int = 0,
        template_channels: int = 0,
    ):
        super().__init__()
        for key, cell in (("MODEL.SEM_SEG_HEAD", train_pooling), ("TEST", test_pooling)):
            if len(cell) != 2 or min(cell) < 1:
                raise ValueError(
                    f"{key}.POOLING_SIZES {list(cell)} is no cell: use [height, width] of 1 or more"
                )
        if top_k < 0:
            raise ValueError(f"TEST.TOPK {top_k} is negative: use 1 or more, or 0 to keep all")
        if pre_reject < 0:
            raise ValueError(
                f"TEST.PREREJECT {pre_reject} is negative: use the number of classes to decode, "
                "or 0 for all"
            )
        if not 0 <= template_channels <= len(PROMPT_TEMPLATES):
            raise ValueError(
                f"TEST.TEMPLATE_CHANNELS {template_channels} must be at least 0 (off) and at most "
                f"{len(PROMPT_TEMPLATES)}, the number of templates"
            )
        if guidance not in GUIDANCE:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.GUIDANCE '{guidance}' is unknown: use one of "
                f"{', '.join(GUIDANCE)}"
            )
        self.decoder = decoder
        self.train_pooling = (train_pooling[0], train_pooling[1])
        self.test_pooling = (test_pooling[0], test_pooling[1])
        self.guidance = GUIDANCE[guidance]
        self.top_k = top_k
        self.pre_reject = pre_reject
        self.template_channels = template_channels

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read the arguments from ``cfg.MODEL.SEM_SEG_HEAD``, ``cfg.TEST`` and the backbone.

        Raises:
            ValueError: ``TEST.TOPK`` is below 1.
        """
        head = cfg.MODEL.SEM_SEG_HEAD
        if cfg.TEST.TOPK < 1:
            raise ValueError(f"TEST.TOPK {cfg.TEST.TOPK} keeps no class: use 1 or more")
        return {
            "decoder": GradualFusionDecoder(
                num_templates=len(PROMPT_TEMPLATES),
                hidden_dim=head.HIDDEN_DIM,
                decoder_dims=head.DECODER_DIMS,
                guidance_dims=head.GUIDANCE_PROJ_DIMS,
                image_dims=[input_shape[name].channels for name in SKIP_FEATURES],
                kernel_sizes=head.KERNEL_SIZES,
                num_heads=head.NUM_HEADS,
                detach_auxiliary=head.DETACH_AUXILIARY,
                prior_prob=head.PRIOR_PROB,
                checkpoints=head.CHECKPOINT,
            ),
            "train_pooling": head.POOLING_SIZES,
            "test_pooling": cfg.TEST.POOLING_SIZES,
            "guidance": head.GUIDANCE,
            "top_k": cfg.TEST.TOPK if cfg.TEST.FAST_INFERENCE else 0,
            "pre_reject": cfg.TEST.PREREJECT,
            "template_channels": cfg.TEST.TEMPLATE_CHANNELS,
        }

    def forward(
        self, features: dict[str, Tensor], text: Tensor, *, auxiliary: bool = False
    ) -> HeadOutput:
        """Score the classes.

        Args:
            features: the backbone's output: "embedding" (B, C, H, W) and the skip features.
            text: (T, P, C) unit vectors.
            auxiliary: also return the auxiliary logits, one for each of the decoder's levels; no
                class is rejected then.

        Returns:
            Logits (B, T', 8H, 8W), survivors (T',), and auxiliary logits (B, T, H, W),
            (B, T, 2H, 2W), (B, T, 4H, 4W), each made of its level's input.

        Raises:
            ValueError: the text has another number of templates; in inference, early rejection or
                ``pre_reject`` below T is on and B is not 1.
        """
        self.check_text(text)
        embedding = features["embedding"]
        chosen = None
        if not self.training:
            if self.pre_reject and self.pre_reject < len(text) and not auxiliary:
                chosen = nearest_classes(embedding, text, self.pre_reject)
            if self.template_channels:
                text = project_templates(text, self.template_channels)
            if chosen is not None:
                text = text[chosen]
        output = self.decoder(
            cost_map(embedding, text),
            [self.guidance(features[name]) for name in SKIP_FEATURES],
            pooling=self.train_pooling if self.training else self.test_pooling,
            top_k=0 if self.training or auxiliary else self.top_k,
            auxiliary=auxiliary,
        )
        return output if chosen is None else output._replace(survivors=chosen[output.survivors])

    def check_text(self, text: Tensor) -> None:
        """Raise a ValueError if text has another number of templates than the decoder."""
        if text.shape[1] != self.decoder.num_templates:
            raise ValueError(
                f"text has {text.shape[1]} templates a class, the decoder was built for "
                f"{self.decoder.num_templates}: embed with PROMPT_TEMPLATES"
            )
