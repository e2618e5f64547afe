"""SED's head: cost map by matrix products, embeddings cast or reduced once."""

from threading import Lock
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.class_attention import ClassAttention, LinearAttention
from ..layers.convnext import ConvNeXtBlock
from ..layers.head_output import HeadOutput
from ..sed.approximations import nearest_classes, template_basis
from ..sed.decoder import FAM, SFM, FusionLevel, GradualFusionDecoder, check_early_rejection
from ..sed.head import SKIP_FEATURES, SEDHead
from ..versions import tensor_versions
from .linear import linear
from .sed_decoder import FastDecoder, InputLayers

#: The classes of a head's parts. Other classes, subclasses among them, may compute something else.
PARTS = frozenset(
    {
        SEDHead, GradualFusionDecoder, FusionLevel, FAM, SFM, ConvNeXtBlock, ClassAttention,
        LinearAttention, nn.Conv2d, nn.ConvTranspose2d, nn.GroupNorm, nn.LayerNorm, nn.Linear,
        nn.ModuleList, nn.ReLU, nn.Sequential,
    }
)  # fmt: skip

#: Texts whose cast or reduced embeddings are kept.
KEPT_TEXTS = 4


class Text(NamedTuple):
    """Embeddings in the decoder's precision, with their templates reduced if asked for.

    Attributes:
        embeddings: (T, R, C).
        layers: read the cost map of these embeddings.
    """

    embeddings: Tensor
    layers: InputLayers


def build_sed_head(
    head: SEDHead, precision: torch.dtype, chunk_elements: int = 0
) -> "FastSEDHead | None":
    """Build the fast form of a head; None if one of its parts is not of ``PARTS``."""
    if not all(type(part) in PARTS for part in head.modules()):
        return None
    return FastSEDHead(head, precision, chunk_elements)


class FastSEDHead:
    """``SEDHead.forward``, without auxiliary logits.

    Args:
        head: in eval mode.
        precision: of all that is computed.
        chunk_elements: elements of a feature map that are worked on at a time; 0 chooses for the
            device. Besides some maps of that size only the cost map and a level's input and output
            are held for all classes, 2.1 MB a class at 24×24.
    """

    def __init__(self, head: SEDHead, precision: torch.dtype, chunk_elements: int = 0):
        self.head = head
        self.precision = precision
        self.decoder = FastDecoder(head.decoder, precision, chunk_elements)
        self._texts: list[tuple[ref[Tensor], tuple, Text]] = []
        self._lock = Lock()

    def __call__(
        self, features: dict[str, Tensor], text: Tensor, *, auxiliary: bool = False
    ) -> HeadOutput:
        """Score the classes, see :meth:`SEDHead.forward`; auxiliary logits by the plain form."""
        head, embedding = self.head, features["embedding"]
        if auxiliary:
            half = self.precision != torch.float32
            with torch.autocast(embedding.device.type, self.precision if half else None, half):
                return head(features, text, auxiliary=True)
        head.check_text(text)
        with torch.autocast(embedding.device.type, enabled=False):
            chosen = None
            if head.pre_reject and head.pre_reject < len(text):
                chosen = nearest_classes(embedding, text, head.pre_reject)
            prepared = self._prepare(text)
            embeddings = prepared.embeddings if chosen is None else prepared.embeddings[chosen]
            skips = [head.guidance(features[name].to(self.precision)) for name in SKIP_FEATURES]
            check_early_rejection(head.top_k, len(embedding), auxiliary)
            outputs = [
                self.decoder(
                    cost_map(embedding[i].to(self.precision), embeddings),
                    [skip[i : i + 1] for skip in skips],
                    prepared.layers,
                    pooling=head.test_pooling,
                    top_k=head.top_k,
                )
                for i in range(len(embedding))
            ]
        logits, survivors = [output.logits for output in outputs], outputs[0].survivors
        if chosen is not None:
            survivors = chosen[survivors]
        return HeadOutput(torch.cat(logits) if len(logits) > 1 else logits[0], survivors)

    def _prepare(self, text: Tensor) -> Text:
        """Cast or reduce embeddings; once for the same tensor.

        Tensors made in inference mode count no changes, so what is made of them is not kept.
        """
        channels = self.head.template_channels
        key = (tensor_versions([text]), channels)
        with self._lock:
            self._texts = [entry for entry in self._texts if entry[0]() is not None]
            for known, known_key, prepared in self._texts:
                if known() is text and known_key == key:
                    return prepared
        # Normal tensors, which calls in every mode of autograd may use.
        with torch.inference_mode(False), torch.no_grad():
            if channels:
                basis = template_basis(text, channels)
                embeddings = torch.einsum("pr,tpc->trc", basis, text.float()).to(self.precision)
                prepared = Text(embeddings, self.decoder.fold_input(basis))
            else:
                prepared = Text(text.to(self.precision), self.decoder.input_layers)
        if prepared.embeddings is not text and not text.is_inference():
            with self._lock:
                self._texts = [*self._texts[1 - KEPT_TEXTS :], (ref(text), key, prepared)]
        return prepared


def cost_map(embedding: Tensor, text: Tensor) -> Tensor:
    """Compute the cost map of one image, see :func:`sed_d2.modeling.layers.cost_map.cost_map`.

    Args:
        embedding: (C, H, W), of any length.
        text: (T, R, C) of the same precision.

    Returns:
        (T, R, H, W).
    """
    unit = F.normalize(embedding.float(), dim=0).to(embedding.dtype)
    cost = linear(text.flatten(0, 1), unit.flatten(1).T)  # (T * R, H * W)
    return cost.view(*text.shape[:2], *embedding.shape[-2:])
