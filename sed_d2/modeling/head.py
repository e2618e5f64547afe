"""SEDHead: image embedding and text embeddings -> cost map -> per-class logits."""

from detectron2.config import configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .decoder import DecoderOutput, GradualFusionDecoder
from .text_encoder import PROMPT_TEMPLATES

#: The backbone's features that the decoder's levels fuse, coarse to fine.
SKIP_FEATURES = ("res4", "res3", "res2")


@SEM_SEG_HEADS_REGISTRY.register()
class SEDHead(nn.Module):
    """Cosine cost map and gradual fusion decoder (SED, section 3).

    Args:
        decoder: the decoder of the cost map.
        train_pooling: cell of class attention in training.
        test_pooling: cell of class attention in inference.
    """

    @configurable
    def __init__(
        self,
        *,
        decoder: GradualFusionDecoder,
        train_pooling: tuple[int, int] = (2, 2),
        test_pooling: tuple[int, int] = (1, 1),
    ):
        super().__init__()
        self.decoder = decoder
        self.train_pooling = tuple(train_pooling)
        self.test_pooling = tuple(test_pooling)

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
        )
        return {
            "decoder": decoder,
            "train_pooling": head.POOLING_SIZES,
            "test_pooling": cfg.TEST.POOLING_SIZES,
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
        return self.decoder(
            cost_map(features["embedding"], text),
            [features[name] for name in SKIP_FEATURES],
            pooling=self.train_pooling if self.training else self.test_pooling,
            top_k=top_k,
            auxiliary=auxiliary,
        )


def cost_map(embedding: Tensor, text: Tensor) -> Tensor:
    """Cosine similarity of every position with every class and template (SED, eq. 1).

    Args:
        embedding: (B, C, H, W), of any length.
        text: (T, P, C), unit vectors.

    Returns:
        (B, T, P, H, W) in [-1, 1].
    """
    embedding = F.normalize(embedding, dim=1)
    # (T * P, C) @ (B, C, H * W): with the positions last it is one matrix product an image.
    cost = text.to(embedding.dtype).flatten(0, 1) @ embedding.flatten(2)
    return cost.view(len(embedding), *text.shape[:2], *embedding.shape[-2:])
