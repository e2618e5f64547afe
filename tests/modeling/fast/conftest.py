"""Small modules and inputs for the tests of the fast forms."""

import pytest
import torch
from timm.models.convnext import ConvNeXt
from torch import nn
from torch.nn import functional as F

from sed_d2.modeling.clip.build import build_clip
from sed_d2.modeling.clip.convnext import CLIPConvNeXt
from sed_d2.modeling.sed.decoder import GradualFusionDecoder
from sed_d2.modeling.sed.head import SEDHead


def randomize_vectors(module: nn.Module) -> None:
    """Move norms, biases and layer scales away from initial values that hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture
def build_decoder():
    """Build a small decoder, the same at every call."""

    def build() -> GradualFusionDecoder:
        torch.manual_seed(0)
        decoder = GradualFusionDecoder(80, 32, [32, 16, 16], [16, 8, 8], [8, 8, 8], [5, 7, 9], 4)
        randomize_vectors(decoder)
        return decoder.eval()

    return build


@pytest.fixture
def build_head(build_decoder):
    """Build a small head in eval mode, the same at every call but for its settings."""
    return lambda **settings: SEDHead(decoder=build_decoder(), **settings).eval()


@pytest.fixture
def build_backbone():
    """Build a small backbone in eval mode whose blocks have linear layers, like the base model."""

    def build() -> CLIPConvNeXt:
        torch.manual_seed(0)
        backbone = CLIPConvNeXt(clip=build_clip("shapes_convnext_atto"))
        others = ConvNeXt(depths=(1, 1, 1, 1), dims=(40, 80, 160, 320), ls_init_value=0.5)
        stages = backbone.clip.visual.trunk.stages
        for stage, other in zip(stages, others.stages, strict=True):
            stage.blocks = other.blocks
        randomize_vectors(backbone.clip.visual)
        return backbone.eval()

    return build


@pytest.fixture
def images():
    """Two normalised images."""
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def features():
    """The features of one image on a 4×4 grid."""
    generator = torch.Generator().manual_seed(1)
    sides = {"res4": 8, "res3": 16, "res2": 32}
    features = {
        name: torch.randn(1, 8, side, side, generator=generator) for name, side in sides.items()
    }
    return features | {"embedding": torch.randn(1, 24, 4, 4, generator=generator)}


@pytest.fixture
def text():
    """The embeddings of 20 classes, whose templates are nearly collinear."""
    generator = torch.Generator().manual_seed(2)
    text = torch.randn(20, 1, 24, generator=generator)
    return F.normalize(text + 0.3 * torch.randn(20, 80, 24, generator=generator), dim=-1)
