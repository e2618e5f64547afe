import open_clip
import pytest
import torch
from open_clip.model import CLIP
from timm.models.convnext import ConvNeXt
from torch import nn

from sed_d2.modeling.clip.convnext import CLIPConvNeXt
from sed_d2.modeling.clip.timm_adapter import mlp_block
from sed_d2.modeling.fast import clip_convnext
from sed_d2.modeling.fast.clip_convnext import FastCLIPConvNeXt

FEATURES = ("res2", "res3", "res4", "res5", "embedding")


@pytest.fixture
def in_place(monkeypatch):
    """The precisions of the blocks that ran in place: a list that grows."""
    calls = []
    run = clip_convnext.convnext_block_
    monkeypatch.setattr(
        clip_convnext,
        "convnext_block_",
        lambda *args: calls.append(args[3].weight.dtype) or run(*args),
    )
    return calls


@pytest.fixture
def build_tower(build_backbone):
    """Build a backbone of five blocks with some options of timm's ConvNeXt."""

    def build(**options) -> CLIPConvNeXt:
        backbone = build_backbone()
        visual = backbone.clip.visual
        torch.manual_seed(0)
        options = {"ls_init_value": 0.5, **options}
        trunk = ConvNeXt(
            depths=(1, 1, 2, 1),
            dims=(8, 16, 24, 32),
            num_classes=0,
            head_norm_first=False,
            **options,
        )
        for parameter in trunk.parameters():
            nn.init.normal_(parameter, std=0.3)
        visual.trunk, visual.head = trunk, nn.Linear(32, 24)
        return CLIPConvNeXt(clip=backbone.clip).eval()

    return build


@pytest.mark.parametrize(
    "options, count",
    [({}, 5), ({"use_grn": True}, 0), ({"conv_mlp": True}, 0), ({"ls_init_value": None}, 0)],
)
@torch.no_grad()
def test_features_are_those_of_the_plain_form(build_tower, images, in_place, options, count):
    """Of a trunk like that of the base model, and of those with other blocks."""
    backbone = build_tower(**options)
    before = images.clone()
    fast, plain = FastCLIPConvNeXt(backbone, torch.float32)(images), backbone(images)
    assert len(in_place) == count
    assert tuple(fast) == tuple(plain) == FEATURES
    for name in FEATURES:
        torch.testing.assert_close(fast[name], plain[name], atol=1e-5, rtol=1e-4)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", ["convnext_base_w_320", "convnext_large_d_320"])
def test_all_blocks_of_the_released_towers_run_in_place(name):
    with torch.device("meta"):
        trunk = CLIP(**open_clip.get_model_config(name)).visual.trunk
    blocks = [block for stage in trunk.stages for block in stage.blocks]
    assert len(blocks) == 36 and None not in map(mlp_block, blocks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options, count", [({}, 5), ({"conv_mlp": True}, 0)])
@torch.no_grad()
def test_half_precision_is_about_as_near_as_autocast(
    build_tower, images, in_place, options, count, dtype
):
    backbone = build_tower(**options)
    expected = backbone(images)
    half = FastCLIPConvNeXt(backbone, dtype)(images)
    with torch.autocast("cpu", dtype):
        autocast = backbone(images)
    assert in_place == [dtype] * count
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert half["embedding"].dtype == dtype
    for name in ("res5", "embedding"):
        errors = [
            (features[name].float() - expected[name]).square().mean().sqrt()
            for features in (half, autocast)
        ]
        assert 0.5 * errors[1] < errors[0] < 1.7 * errors[1], name


@pytest.mark.parametrize("options", [{}, {"conv_mlp": True}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_the_residual_stream_stays_in_float32(build_tower, images, options, dtype):
    """Both blocks add 1 to 4,000; float16 has even numbers only, bfloat16 multiples of 16."""
    backbone = build_tower(ls_init_value=1.0, **options)
    stage = backbone.clip.visual.trunk.stages[2]
    for block in stage.blocks:
        nn.init.ones_(block.gamma)
        nn.init.zeros_(block.mlp.fc2.weight)
        nn.init.ones_(block.mlp.fc2.bias)
    nn.init.zeros_(stage.downsample[1].weight)
    nn.init.constant_(stage.downsample[1].bias, 4000)
    res4 = FastCLIPConvNeXt(backbone, dtype)(images)["res4"]
    assert res4.dtype == torch.float32 and (res4 == 4002).all()


def test_only_inference_without_gradients_is_in_place(tiny_model, build_backbone, in_place):
    model = tiny_model()
    model.backbone = build_backbone()
    sem_seg = torch.zeros(64, 64, dtype=torch.int64)
    batch = [{"image": 255 * torch.rand(3, 64, 64), "sem_seg": sem_seg}]
    model(batch)
    model.train()(batch)
    with torch.no_grad():
        model(batch)
        assert not in_place
        model.eval()(batch)
        assert in_place == [torch.float32] * 4
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(batch)
        assert in_place[4:] == [torch.bfloat16] * 4
