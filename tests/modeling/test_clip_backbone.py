import open_clip
import pytest
import torch
from open_clip.model import CLIP
from timm.models.convnext import ConvNeXt

from sed_d2 import get_sed_cfg
from sed_d2.checkpoint import rename_released_keys
from sed_d2.modeling import SEDHead, clip_backbone
from sed_d2.modeling.clip.convnext import CLIPConvNeXt, build_clip, has_linear_mlp, infer_trunk
from tools.benchmarking.plain import plain_copy, plain_encode

from ..conftest import ROOT, released_shapes

BLOCK = "trunk.stages.1.blocks.0"


@pytest.mark.parametrize("size", ["b", "l"])
def test_keys_and_shapes_are_those_of_the_released_checkpoints(size):
    cfg = get_sed_cfg(ROOT / "configs" / f"convnext{size.upper()}_768.yaml")
    with torch.device("meta"):  # shapes without memory
        backbone = CLIPConvNeXt(clip=CLIP(**open_clip.get_model_config(cfg.MODEL.CLIP.NAME)))
        head = SEDHead(cfg, backbone.output_shape())
    model = torch.nn.ModuleDict({"backbone": backbone, "sem_seg_head": head})
    expected = released_shapes(size)
    rename_released_keys(expected)
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


def test_dense_embedding_of_one_position_is_clip_s_own():
    # On a 32×32 image the pooled embedding of CLIP is that of the only position.
    clip = build_clip("shapes_convnext_atto").eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        dense = CLIPConvNeXt(clip=clip)(image)["embedding"]
        torch.testing.assert_close(dense[:, :, 0, 0], clip.encode_image(image))


def test_channels_last_memory_changes_nothing():
    clip = build_clip("shapes_convnext_atto")
    plain = plain_copy(clip.visual)
    backbone = CLIPConvNeXt(clip=clip).eval()
    weight = clip.visual.trunk.stem[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 64, 64)
    ours, expected = backbone(images), plain_encode(plain.eval(), images)
    assert ours.keys() == expected.keys()
    for name, feature in expected.items():
        torch.testing.assert_close(ours[name], feature, atol=1e-5, rtol=1e-5)
    for features in (ours, expected):
        sum(feature.square().mean() for feature in features.values()).backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in clip.visual.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.stride() == parameter.stride(), name
            torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4)
    # Weights saved in either layout load into the other.
    clip.visual.load_state_dict(plain.state_dict())
    plain.load_state_dict(clip.visual.state_dict())
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def in_place(monkeypatch):
    """The precisions of the blocks that were computed in place: a list that grows."""
    calls = []
    own = clip_backbone.convnext_block_
    monkeypatch.setattr(
        clip_backbone,
        "convnext_block_",
        lambda *args: calls.append(args[3].weight.dtype) or own(*args),
    )
    return calls


@pytest.mark.parametrize(
    "options, count",
    [({}, 5), ({"use_grn": True}, 0), ({"conv_mlp": True}, 0), ({"ls_init_value": None}, 0)],
)
def test_inference_in_place_gives_timms_own_features(in_place, options, count):
    """Of a trunk like that of the base model, and of those with other blocks."""
    torch.manual_seed(0)
    options = {"ls_init_value": 0.5, **options}
    trunk = ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), **options)
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    trunk = trunk.eval().to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        last, stages = infer_trunk(trunk, images, torch.float32)
        expected, features = trunk.forward_intermediates(images)
    assert len(in_place) == count
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(stages, features, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["convnext_base_w_320", "convnext_large_d_320"])
def test_all_blocks_of_the_released_towers_can_be_computed_in_place(name):
    with torch.device("meta"):
        trunk = CLIP(**open_clip.get_model_config(name)).visual.trunk
    blocks = [block for stage in trunk.stages for block in stage.blocks]
    assert len(blocks) == 36 and all(map(has_linear_mlp, blocks))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options, count", [({}, 5), ({"conv_mlp": True}, 0)])
def test_half_precision_is_about_as_near_as_autocast(in_place, options, count, dtype):
    torch.manual_seed(0)
    trunk = ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), ls_init_value=0.5, **options).eval()
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = torch.rand(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected, _ = trunk.forward_intermediates(images)
        last, stages = infer_trunk(trunk, images, dtype)
        with torch.autocast("cpu", dtype=dtype):
            autocast, _ = trunk.forward_intermediates(images)
    assert in_place == [dtype] * count
    assert {p.dtype for p in trunk.parameters()} == {torch.float32}
    errors = [(x - expected).square().mean().sqrt() for x in (last, autocast)]
    assert 0.5 * errors[1] < errors[0] < 1.7 * errors[1]


@pytest.mark.parametrize("options", [{}, {"conv_mlp": True}])
def test_what_the_blocks_add_up_to_stays_in_float32(options):
    """Ten blocks add 1 each to 4,000; float16 has even numbers only, bfloat16 multiples of 16."""
    trunk = ConvNeXt(depths=(1, 1, 10, 1), dims=(8, 16, 24, 32), ls_init_value=1.0, **options)
    for block in trunk.stages[2].blocks:
        torch.nn.init.zeros_(block.mlp.fc2.weight)
        torch.nn.init.ones_(block.mlp.fc2.bias)
    down = trunk.stages[2].downsample[1]
    torch.nn.init.zeros_(down.weight)
    torch.nn.init.constant_(down.bias, 4000)
    images = torch.rand(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for dtype in (torch.bfloat16, torch.float16):
            stage = infer_trunk(trunk.eval(), images, dtype)[1][2]
            assert stage.dtype == torch.float32 and (stage == 4010).all()


def test_only_inference_is_in_place(in_place):
    backbone = CLIPConvNeXt(clip=build_clip("shapes_convnext_atto"))
    # The small model's blocks are convolutions: give it some with linear layers.
    others = ConvNeXt(depths=(1, 1, 1, 1), dims=(40, 80, 160, 320)).stages
    for stage, other in zip(backbone.clip.visual.trunk.stages, others, strict=True):
        stage.blocks = other.blocks
    images = torch.rand(1, 3, 32, 32)
    backbone.eval()(images)
    with torch.no_grad():
        backbone.train()(images)
        assert not in_place
        backbone.eval()(images)
        assert in_place == [torch.float32] * 4
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert backbone(images)["embedding"].dtype == torch.bfloat16
        assert in_place[4:] == [torch.bfloat16] * 4


@pytest.mark.parametrize(
    "finetune, trained, frozen",
    [
        ("full", "trunk.stem.0.weight", None),
        ("frozen", None, "head.proj.weight"),
        (
            "conv",
            f"{BLOCK}.conv_dw.weight",
            f"{BLOCK}.mlp.fc1.weight",
        ),
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


def test_a_tower_that_is_not_trained_keeps_its_drop_path_off():
    clip = build_clip("shapes_convnext_atto")
    assert not CLIPConvNeXt(clip=clip, finetune="frozen").train().clip.visual.training
    assert CLIPConvNeXt(clip=clip, finetune="mlp").train().clip.visual.training


def test_what_cannot_be_built_is_said_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="'convnext_base_w_32O' .* convnext_base_w_320"):
        build_clip("convnext_base_w_32O")
    with pytest.raises(ValueError, match="'ViT-B-32' has no ConvNeXt image tower"):
        build_clip("ViT-B-32")
    with pytest.raises(ValueError, match="PRETRAINED 'no_such_tag'"):
        build_clip("shapes_convnext_atto", "no_such_tag")
    damaged = tmp_path / "clip.pt"
    damaged.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="clip.pt"):
        build_clip("shapes_convnext_atto", str(damaged))
    with pytest.raises(ValueError, match="MODEL.CLIP_FINETUNE 'all'.*last_stage"):
        CLIPConvNeXt(clip=build_clip("shapes_convnext_atto"), finetune="all")


def test_weights_come_from_a_local_file(tmp_path):
    clip = build_clip("shapes_convnext_atto")
    path = tmp_path / "clip.pt"
    torch.save(clip.state_dict(), path)
    again = build_clip("shapes_convnext_atto", str(path))
    assert torch.equal(again.text_projection, clip.text_projection)
