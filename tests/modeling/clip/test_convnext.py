import copy

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor, nn

from sed_d2 import get_sed_cfg
from sed_d2.modeling import SEDHead
from sed_d2.modeling.clip.build import build_clip
from sed_d2.modeling.clip.convnext import CLIPConvNeXt
from sed_d2.modeling.released_keys import rename_keys
from tests.conftest import ROOT, released_shapes

BLOCK = "trunk.stages.1.blocks.0"


@pytest.mark.parametrize("size", ["b", "l"])
def test_keys_and_shapes_are_those_of_the_released_checkpoints(size):
    cfg = get_sed_cfg(ROOT / "configs" / f"convnext{size.upper()}_768.yaml")
    with torch.device("meta"):  # shapes without memory
        backbone = CLIPConvNeXt(clip=CLIP(**open_clip.get_model_config(cfg.MODEL.CLIP.NAME)))
        head = SEDHead(cfg, backbone.output_shape())
    model = nn.ModuleDict({"backbone": backbone, "sem_seg_head": head})
    expected = released_shapes(size)
    rename_keys(expected, SEDHead.released_prefixes)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected


def test_features_have_the_declared_shapes():
    backbone = CLIPConvNeXt(clip=build_clip("shapes_convnext_atto")).eval()
    features = backbone(torch.rand(2, 3, 64, 96))
    shapes = backbone.output_shape()
    assert set(shapes) == {"res2", "res3", "res4", "res5", "embedding"} == set(features)
    for name, shape in shapes.items():
        expected = (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
        assert features[name].shape == expected, name
    assert [shapes[f"res{i}"].stride for i in (2, 3, 4, 5)] == [4, 8, 16, 32]
    assert backbone.size_divisibility == 32


@torch.no_grad()
def test_dense_embedding_of_one_position_is_that_of_clip():
    # On a 32×32 image the pooled embedding of CLIP is that of the only position.
    clip = build_clip("shapes_convnext_atto").eval()
    image = torch.rand(1, 3, 32, 32)
    dense = CLIPConvNeXt(clip=clip)(image)["embedding"]
    torch.testing.assert_close(dense[:, :, 0, 0], clip.encode_image(image))


def encode_contiguous(visual: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Encode by the public functions of timm and open_clip, in whatever memory format there is."""
    last, stages = visual.trunk.forward_intermediates(images)
    dense = visual.head(visual.trunk.head.norm(last).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return {f"res{i + 2}": stage for i, stage in enumerate(stages)} | {"embedding": dense}


def test_channels_last_memory_changes_nothing():
    clip = build_clip("shapes_convnext_atto")
    contiguous = copy.deepcopy(clip.visual).eval()
    assert contiguous.trunk.stem[0].weight.is_contiguous()
    backbone = CLIPConvNeXt(clip=clip).eval()
    weight = clip.visual.trunk.stem[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 64, 64)
    features, expected = backbone(images), encode_contiguous(contiguous, images)
    assert features.keys() == expected.keys()
    for name, feature in expected.items():
        torch.testing.assert_close(features[name], feature, atol=1e-5, rtol=1e-5)
    for outputs in (features, expected):
        sum(feature.square().mean() for feature in outputs.values()).backward()
    others = dict(contiguous.named_parameters())
    for name, parameter in clip.visual.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.stride() == parameter.stride(), name
            torch.testing.assert_close(parameter.grad, others[name].grad, atol=1e-5, rtol=1e-4)
    # Weights saved in either layout load into the other.
    clip.visual.load_state_dict(contiguous.state_dict())
    contiguous.load_state_dict(clip.visual.state_dict())
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "finetune, trained, frozen",
    [
        ("full", "trunk.stem.0.weight", None),
        ("frozen", None, "head.proj.weight"),
        ("conv", f"{BLOCK}.conv_dw.weight", f"{BLOCK}.mlp.fc1.weight"),
        ("mlp", f"{BLOCK}.mlp.fc1.weight", f"{BLOCK}.conv_dw.weight"),
        ("last_stage", "head.proj.weight", "trunk.stages.2.blocks.0.gamma"),
    ],
)
def test_finetune_chooses_what_is_trained(finetune, trained, frozen):
    backbone = CLIPConvNeXt(clip=build_clip("shapes_convnext_atto"), finetune=finetune)
    tower = dict(backbone.clip.visual.named_parameters())
    assert trained is None or tower[trained].requires_grad
    assert frozen is None or not tower[frozen].requires_grad
    text = [p for n, p in backbone.clip.named_parameters() if not n.startswith("visual.")]
    assert text and not any(parameter.requires_grad for parameter in text)


def test_an_unknown_finetune_is_refused():
    with pytest.raises(ValueError, match="MODEL.CLIP.FINETUNE 'all' is unknown.*last_stage"):
        CLIPConvNeXt(clip=build_clip("shapes_convnext_atto"), finetune="all")


def test_a_frozen_tower_has_no_drop_path():
    clip = build_clip("shapes_convnext_atto")
    assert not CLIPConvNeXt(clip=clip, finetune="frozen").train().clip.visual.training
    assert CLIPConvNeXt(clip=clip, finetune="mlp").train().clip.visual.training


def test_a_full_checkpoint_needs_no_pretrained_weights(tiny_cfg, tmp_path):
    """A tag that does not exist stands for one whose download fails."""
    opts = ("MODEL.CLIP.PRETRAINED", "no_such_tag", "MODEL.WEIGHTS", "checkpoint.pth")
    assert not CLIPConvNeXt(tiny_cfg(*opts), None).pretrained
    with pytest.raises(ValueError, match="PRETRAINED 'no_such_tag'"):
        CLIPConvNeXt(tiny_cfg(*opts, "MODEL.WEIGHTS_STRICT", False), None)
    path = tmp_path / "clip.pt"
    clip = build_clip("shapes_convnext_atto")
    torch.save(clip.state_dict(), path)
    backbone = CLIPConvNeXt(tiny_cfg(*opts, "MODEL.CLIP.PRETRAINED", str(path)), None)
    assert backbone.pretrained
    assert torch.equal(backbone.clip.text_projection, clip.text_projection)
