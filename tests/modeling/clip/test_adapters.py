"""The internals of open_clip and timm that the adapters use, held to public functions.

A failure names what has changed in a new release of a library, and the function to adapt. No other
file of the package uses these internals.
"""

import copy
import logging

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from timm.models.convnext import ConvNeXt
from torch import nn
from torch.nn import functional as F

from sed_d2.modeling.clip import open_clip_adapter, timm_adapter

RELEASED = ("convnext_base_w_320", "convnext_large_d_320")


def assert_same(actual, expected, internal: str):
    """Compare tensors; the message names the internal that changed."""
    torch.testing.assert_close(
        actual,
        expected,
        atol=1e-5,
        rtol=1e-5,
        msg=lambda difference: f"{internal} computes something else now.\n{difference}",
    )


@pytest.fixture
def trunk():
    """A ConvNeXt like those of the released models, in small."""
    torch.manual_seed(0)
    return build_trunk()


def build_trunk(**options) -> ConvNeXt:
    options = {"depths": (1, 2, 1, 1), "dims": (8, 16, 24, 32), "ls_init_value": 0.5, **options}
    trunk = ConvNeXt(num_classes=0, **options).eval()
    for parameter in trunk.parameters():
        nn.init.normal_(parameter, std=0.3)
    return trunk


@torch.no_grad()
def test_encode_text(tower, tokenizer):
    tokens = tokenizer(["a photo of a cat.", "a bad photo of the traffic light, at night."])
    expected = tower.encode_text(tokens)
    internal = "open_clip's CLIP.encode_text (see open_clip_adapter.encode_text)"
    assert_same(open_clip_adapter.encode_text(tower, tokens), expected, internal)
    # A causal tower: without the padding after the end of the longest text.
    assert_same(open_clip_adapter.encode_text(tower, tokens[:, :13]), expected, internal)


def test_text_tensors_are_those_that_encode_text_reads(tower, tokenizer):
    tower = copy.deepcopy(tower)
    tower.encode_text(tokenizer(["a cat"])).square().sum().backward()
    read = {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
    tensors = open_clip_adapter.text_tensors(tower)
    buffers = {name for name, _ in tower.named_buffers() if not name.startswith("visual.")}
    assert set(tensors) == read | buffers, (
        "the names of the text tower's tensors have changed in open_clip's CLIP: open_clip_adapter."
        "text_tensors must give those that CLIP.encode_text reads"
    )
    for name, parameter in tower.named_parameters():
        assert name not in tensors or tensors[name] is parameter


@torch.no_grad()
def test_project_dense(tower):
    images = torch.rand(2, 3, 64, 64)
    pooled = tower.visual.trunk(images)
    dense = open_clip_adapter.project_dense(tower.visual, pooled.view(2, 1, 1, -1))
    assert_same(
        dense[:, 0, 0],
        tower.encode_image(images),
        "open_clip's TimmModel.head (see open_clip_adapter.project_dense)",
    )


@pytest.mark.parametrize("name", RELEASED)
def test_released_models(name):
    """Their parts are of the kinds that the adapters know."""
    with torch.device("meta"):
        clip = CLIP(**open_clip.get_model_config(name))
    width = open_clip.get_model_config(name)["embed_dim"]
    assert open_clip_adapter.embedding_width(clip) == width
    assert clip.text_pool_type == "argmax", "trim() cuts texts after their largest id"
    assert clip.attn_mask.shape == (77, 77), "the text tower of the release is causal"
    tower = open_clip_adapter.timm_tower(name)
    assert tower == open_clip.get_model_config(name)["vision_cfg"]["timm_model_name"]
    assert tower.startswith("convnext_")
    strides = [stage.stride for stage in timm_adapter.stages(clip.visual.trunk)]
    assert strides == [4, 8, 16, 32]


def test_timm_tower_of_other_models():
    assert open_clip_adapter.timm_tower("ViT-B-32") == ""
    assert open_clip_adapter.timm_tower("no_such_model") is None


def test_text_settings_name_what_has_no_weights(tower):
    settings = open_clip_adapter.text_settings(tower)
    attentions = [m for m in tower.transformer.modules() if isinstance(m, nn.MultiheadAttention)]
    layers = len(tower.transformer.resblocks)
    assert len(attentions) == layers, (
        "open_clip's text transformer has another class for attention: open_clip_adapter."
        "text_settings must list its numbers of heads"
    )
    assert str([attentions[0].num_heads] * layers) in settings
    assert "GELU" in settings and "argmax" in settings


def test_create_model_mutes_the_warning_of_random_weights_alone(caplog):
    level = logging.getLogger().level
    clip = open_clip_adapter.create_model("shapes_convnext_atto", "")
    assert not caplog.records
    assert logging.getLogger().level == level
    assert {(p.dtype, p.device.type) for p in clip.parameters()} == {(torch.float32, "cpu")}


def test_create_model_restores_the_log_level_after_an_error():
    level = logging.getLogger().level
    with pytest.raises(Exception, match="no_such_tag"):
        open_clip_adapter.create_model("shapes_convnext_atto", "no_such_tag")
    assert logging.getLogger().level == level


@torch.no_grad()
def test_stages(trunk):
    _, pyramid = trunk.forward_intermediates(torch.rand(1, 3, 64, 64))
    expected = [(feature.shape[1], 64 // feature.shape[2]) for feature in pyramid]
    assert timm_adapter.stages(trunk) == expected, "timm's ConvNeXt.feature_info has changed"


@torch.no_grad()
def test_forward_pyramid(trunk):
    images = torch.rand(2, 3, 64, 96)
    _, pyramid = timm_adapter.forward_pyramid(trunk, images)
    internal = "timm's ConvNeXt.forward_intermediates"
    assert_same(pyramid[-1], trunk.forward_features(images), internal)
    # With one position pooling changes nothing: the trunk gives the normalised last stage.
    image = images[:1, :, :32, :32]
    last, _ = timm_adapter.forward_pyramid(trunk, image)
    internal = "timm's ConvNeXt.head (see timm_adapter.forward_pyramid)"
    assert_same(last[:, :, 0, 0], trunk(image), internal)


@torch.no_grad()
def test_split_trunk(trunk):
    images = torch.rand(2, 3, 64, 96)
    parts = timm_adapter.split_trunk(trunk)
    x, pyramid = parts.stem(images), []
    for downsample, blocks in parts.stages:
        x = downsample(x)
        for block in blocks:
            x = block(x)
        pyramid.append(x)
    last, expected = timm_adapter.forward_pyramid(trunk, images)
    internal = "timm's ConvNeXt.forward_intermediates (see timm_adapter.split_trunk)"
    assert_same(pyramid, expected, internal)
    assert_same(parts.head_norm(parts.norm(x)), last, internal)


@torch.no_grad()
def test_mlp_block(trunk):
    block = trunk.stages[1].blocks[1]
    layers = timm_adapter.mlp_block(block)
    assert layers is not None, "timm's ConvNeXtBlock has other parts: see timm_adapter.mlp_block"
    x = torch.randn(2, 16, 8, 12)
    y = layers.norm(layers.conv_dw(x).permute(0, 2, 3, 1))
    y = layers.fc2(F.gelu(layers.fc1(y))) * layers.gamma
    internal = "timm's ConvNeXtBlock.forward (see timm_adapter.mlp_block)"
    assert_same(x + y.permute(0, 3, 1, 2), block(x), internal)


@pytest.mark.parametrize(
    "options",
    [
        {"use_grn": True},
        {"conv_mlp": True},
        {"ls_init_value": None},
        {"act_layer": "relu"},
        {"act_layer": "gelu_tanh"},
        {"act_layer": "quick_gelu"},
    ],
    ids=str,
)
def test_other_blocks_are_no_mlp_blocks(options):
    block = build_trunk(**options).stages[0].blocks[0]
    assert timm_adapter.mlp_block(block) is None


def test_a_block_with_a_shortcut_is_no_mlp_block():
    block = build_trunk(output_stride=8).stages[2].blocks[0]
    assert isinstance(block.shortcut, nn.Identity)
    block.shortcut = nn.AvgPool2d(1)
    assert timm_adapter.mlp_block(block) is None


@pytest.mark.parametrize("enabled", [False, True])
def test_set_checkpoints(trunk, enabled):
    """The backward pass runs the blocks a second time."""
    timm_adapter.set_checkpoints(trunk, enabled)
    runs = []
    block = trunk.stages[1].blocks[1]
    block.register_forward_pre_hook(lambda *args: runs.append(1))
    last, _ = timm_adapter.forward_pyramid(trunk, torch.rand(1, 3, 32, 32, requires_grad=True))
    assert len(runs) == 1
    last.sum().backward()
    assert len(runs) == (2 if enabled else 1), "timm's ConvNeXt.set_grad_checkpointing has changed"
