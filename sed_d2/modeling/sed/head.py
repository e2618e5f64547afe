"""SEDHead: image embedding and text embeddings -> cost map -> per-class logits."""

import torch
from detectron2.config import configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip.text import PROMPT_TEMPLATES
from ..fast.linear import linear
from .decoder import DecoderOutput, GradualFusionDecoder

#: The backbone's features that the decoder's levels fuse, coarse to fine.
SKIP_FEATURES = ("res4", "res3", "res2")

#: What of them each ``MODEL.SEM_SEG_HEAD.GUIDANCE`` gives the decoder. The paper's skip path is
#: detached: it must not train the image encoder (SED, section 3.2).
GUIDANCE = {
    "detached": Tensor.detach,
    "attached": lambda feature: feature,
    "none": torch.zeros_like,
}


@SEM_SEG_HEADS_REGISTRY.register()
class SEDHead(nn.Module):
    """Cosine cost map and gradual fusion decoder (SED, section 3).

    Args:
        decoder: the decoder of the cost map.
        train_pooling: cell of class attention in training.
        test_pooling: cell of class attention in inference.
        guidance: what the decoder is given of the skip features, a key of ``GUIDANCE``.
        pre_reject: an approximation of inference: decode only this many classes, those that come
            nearest to being an image position's best by their mean cosine; 0 decodes all.
        template_channels: an approximation of inference: see the templates through this many
            principal components, see :func:`reduce_templates`; 0 sees all templates.
    """

    @configurable
    def __init__(
        self,
        *,
        decoder: GradualFusionDecoder,
        train_pooling: tuple[int, int] = (2, 2),
        test_pooling: tuple[int, int] = (1, 1),
        guidance: str = "detached",
        pre_reject: int = 0,
        template_channels: int = 0,
    ):
        super().__init__()
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
        self.train_pooling = tuple(train_pooling)
        self.test_pooling = tuple(test_pooling)
        self.guidance = GUIDANCE[guidance]
        self.pre_reject = pre_reject
        self.template_channels = template_channels
        # The last text embeddings that inference cast or reduced, the precision, and the result.
        self._prepared = (None, None, None, None)

    @classmethod
    def from_config(cls, cfg, input_shape):
        """The arguments from ``cfg.MODEL.SEM_SEG_HEAD`` and the backbone's output shape."""
        head = cfg.MODEL.SEM_SEG_HEAD
        decoder = GradualFusionDecoder(
            num_templates=len(PROMPT_TEMPLATES),
            hidden_dim=head.HIDDEN_DIM,
            decoder_dims=head.DECODER_DIMS,
            guidance_dims=head.GUIDANCE_PROJ_DIMS,
            image_dims=[input_shape[name].channels for name in SKIP_FEATURES],
            kernel_sizes=head.KERNEL_SIZES,
            num_heads=head.NUM_HEADS,
            detach_auxiliary=head.DETACH_AUXILIARY,
            prior_prob=head.PRIOR_PROB,
            chunk_elements=cfg.TEST.CHUNK_ELEMENTS,
            checkpoints=head.CHECKPOINT,
        )
        return {
            "decoder": decoder,
            "train_pooling": head.POOLING_SIZES,
            "test_pooling": cfg.TEST.POOLING_SIZES,
            "guidance": head.GUIDANCE,
            "pre_reject": cfg.TEST.PREREJECT,
            "template_channels": cfg.TEST.TEMPLATE_CHANNELS,
        }

    def forward(
        self, features: dict[str, Tensor], text: Tensor, *, top_k: int = 0, auxiliary: bool = False
    ) -> DecoderOutput:
        """Score the classes.

        Args:
            features: the backbone's output: "embedding" (B, C, H, W) and the skip features.
            text: (T, P, C) unit vectors.
            top_k: early rejection keeps this many classes per pixel; 0 turns it off.
            auxiliary: also return the auxiliary logits.
        """
        embedding, basis, keep = features["embedding"], None, None
        if not self.training:
            if self.pre_reject and self.pre_reject < len(text):
                keep = nearest_classes(embedding, text, self.pre_reject)
            text, basis = self._prepare(text, embedding.dtype)
            text = text if keep is None else text[keep]
        output = self.decoder(
            cost_map(embedding, text),
            [self.guidance(features[name]) for name in SKIP_FEATURES],
            pooling=self.train_pooling if self.training else self.test_pooling,
            top_k=top_k,
            auxiliary=auxiliary,
            basis=basis,
        )
        if keep is not None:
            output = output._replace(survivors=keep[output.survivors])
        return output

    def _prepare(self, text: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The embeddings in a precision, reduced if asked for; once for the same embeddings."""
        if text.dtype == dtype and not self.template_channels:
            return text, None
        if self._prepared[0] is not text or self._prepared[1] != dtype:
            own, basis = text, None
            # What is kept serves calls in any mode of autograd.
            with torch.inference_mode(False), torch.no_grad():
                if self.template_channels:
                    own, basis = reduce_templates(text, self.template_channels)
                self._prepared = (text, dtype, own.to(dtype), basis)
        return self._prepared[2:]


def cost_map(embedding: Tensor, text: Tensor) -> Tensor:
    """Cosine similarity of every position with every class and template (SED, eq. 1).

    Args:
        embedding: (B, C, H, W), of any length.
        text: (T, P, C), unit vectors.

    Returns:
        (B, T, P, H, W) in [-1, 1].
    """
    # In float32, where a sum of squares neither overflows nor loses what is small.
    embedding = F.normalize(embedding.float(), dim=1).to(embedding.dtype)
    templates = text.to(embedding.dtype).flatten(0, 1)
    maps = [linear(templates, image.flatten(1).T) for image in embedding]  # (T * P, H * W) each
    cost = torch.stack(maps) if len(maps) > 1 else maps[0]  # a large copy that one image needs not
    return cost.view(len(maps), *text.shape[:2], *embedding.shape[-2:])


def nearest_classes(embedding: Tensor, text: Tensor, count: int) -> Tensor:
    """The classes that come nearest to being the best one of some position of one image.

    Args:
        embedding: (1, C, H, W), of any length.
        text: (T, P, C), unit vectors; a class is judged by the mean of its templates' cosines.
        count: at most T.

    Returns:
        (count,) ascending class indices.
    """
    if len(embedding) != 1:
        raise ValueError(f"TEST.PREREJECT works on one image at a time, not on {len(embedding)}")
    with torch.autocast(embedding.device.type, enabled=False):
        mean = text.mean(dim=1, keepdim=True)
        cosine = cost_map(embedding.float(), mean).flatten(1).view(len(text), -1)  # (T, H * W)
    behind = (cosine - cosine.amax(dim=0)).amax(dim=1)  # 0 for the best of a position
    return behind.topk(count).indices.sort().values


def reduce_templates(text: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The embeddings' principal components along the axis of the templates.

    The templates of a class are nearly collinear, so that few components hold nearly all. With
    U = basis, ``text ~ U (U^T text)``: the cost map of ``U^T text`` has r channels that stand for
    the P templates, and U is folded into the layers that read them. The error is that of the
    dropped components, none for r = P.

    Args:
        text: (T, P, C).
        channels: r, 1..P.

    Returns:
        ``U^T text`` (T, r, C) and U (P, r), with orthonormal columns.
    """
    with torch.autocast(text.device.type, enabled=False):
        gram = torch.einsum("tpc,tqc->pq", text, text)
        # On the CPU in float64, which not every device has; eigenvalues ascend.
        basis = torch.linalg.eigh(gram.cpu().double()).eigenvectors[:, -channels:].to(text)
        return torch.einsum("pr,tpc->trc", basis, text), basis
