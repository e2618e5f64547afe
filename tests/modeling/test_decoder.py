import copy
import math

import pytest
import torch
from torch.nn import functional as F

from sed_d2.modeling import linear as linear_module
from sed_d2.modeling.fast.decoder import (
    SFM,
    ClassAttention,
    LinearAttention,
    as_linear,
    conv_to_one,
    guidance_chain,
)
from sed_d2.modeling.sed.decoder import GradualFusionDecoder, union_of_top_k
from sed_d2.modeling.sed.head import cost_map
from tools.benchmarking.plain import plain_cost_map, plain_decode


def test_cost_map_is_the_cosine():
    embedding = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)  # length 5
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [-0.8, 0.6]]])
    expected = torch.tensor([[0.6, 0.8], [1.0, 0.0]]).view(1, 2, 2, 1, 1)
    torch.testing.assert_close(cost_map(embedding, text), expected)
    torch.manual_seed(0)
    embedding, text = torch.randn(3, 4, 2, 5), torch.randn(6, 7, 4)  # three images
    torch.testing.assert_close(cost_map(embedding, text), plain_cost_map(embedding, text))


def test_union_of_top_k():
    logits = torch.tensor([[9.0, 1.0], [5.0, 2.0], [4.0, 0.0], [1.0, 8.0]]).view(4, 1, 2)
    assert union_of_top_k(logits, 1).tolist() == [0, 3]
    assert union_of_top_k(logits, 2).tolist() == [0, 1, 3]
    assert union_of_top_k(logits, 4).tolist() == [0, 1, 2, 3]


def test_linear_attention_by_hand():
    attention = LinearAttention(1, 1)
    for layer in (attention.q, attention.k, attention.v):
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)  # two tokens
    # k = elu(x) + 1 = 3 and 1/e; whatever q is, y = (3 * 2 - 1/e) / (3 + 1/e).
    expected = (6 - math.exp(-1)) / (3 + math.exp(-1))
    assert attention(x).flatten().tolist() == pytest.approx([expected, expected], rel=1e-5)


def test_linear_attention_survives_half_precision():
    attention = LinearAttention(8, 2).half()
    torch.nn.init.constant_(attention.q.bias, -20)  # elu(.) + 1 rounds to 0
    torch.nn.init.constant_(attention.k.bias, 300)
    y = attention(torch.randn(1, 171, 2, 8).half())
    assert y.dtype == torch.float16 and torch.isfinite(y).all()


@pytest.mark.parametrize("dim, heads", [(8, 2), (32, 4), (64, 4), (64, 2), (48, 3), (16, 16)])
@torch.no_grad()
def test_linear_attention_in_place(dim, heads):
    torch.manual_seed(0)
    attention = LinearAttention(dim, heads)
    x = 3 * torch.randn(1, 9, 5, dim)  # nine tokens at five positions
    y = x[0].transpose(0, 1).contiguous()
    attention.add_(y, y.clone(), *attention.joined())
    torch.testing.assert_close(y.transpose(0, 1), (x + attention(x))[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_linear_attention_in_place_survives_half_precision():
    attention = LinearAttention(8, 2).half()
    torch.nn.init.constant_(attention.q.bias, -20)
    torch.nn.init.constant_(attention.k.bias, 300)
    y = torch.zeros(2, 847, 8).half()
    attention.add_(y, torch.randn(2, 847, 8).half(), *attention.joined())
    assert y.dtype == torch.float16 and torch.isfinite(y).all()


@torch.no_grad()
def test_linear_attention_of_many_classes_in_half_precision():
    """Small weights of v over 2,000 classes: nothing is lost among subnormal numbers."""
    torch.manual_seed(0)
    attention = LinearAttention(16, 2)
    attention.v.weight.mul_(0.02)
    x = torch.randn(2, 2000, 16)
    exact, half = torch.zeros_like(x), torch.zeros_like(x).half()
    attention.add_(exact, x, *attention.joined())
    attention.half().add_(half, x.half(), *attention.joined())
    assert (half.float() - exact).std() < 1.5e-3 * exact.std()


@pytest.mark.parametrize("dim", [4, 16])
@torch.no_grad()
def test_convolution_to_one_channel(dim):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(dim, 1, 3, padding=1)
    for size in ((5, 4), (1, 3)):
        x = torch.randn(2, dim, *size).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(conv_to_one(x, conv), conv(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("has_avx512", [False, True])
def test_linear_by_either_library(has_avx512, monkeypatch):
    monkeypatch.setattr(linear_module, "_has_avx512", lambda: has_avx512)
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for rows, width, out_width in (
        (5, 3, 4),
        (20481, 1, 4),
        (7000, 3, 1),
        (500, 64, 1024),
        (1100, 64, 1024),
    ):
        x, weight, bias = (
            torch.randn(rows, width),
            torch.randn(out_width, width),
            torch.randn(out_width),
        )
        for own in (bias, None):
            y = linear_module.linear(x, weight, own)
            assert y.is_contiguous()
            torch.testing.assert_close(y, F.linear(x, weight, own), atol=1e-5, rtol=1e-5)
        half = [z.bfloat16() for z in (x, weight, bias)]
        torch.testing.assert_close(
            linear_module.linear(*half), F.linear(*half), atol=0.02, rtol=0.02
        )
        weight.requires_grad_()
        gradients = [
            torch.autograd.grad(f(x, weight, bias).square().mean(), weight)[0]
            for f in (linear_module.linear, F.linear)
        ]
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_chain_of_cost_guidance():
    torch.manual_seed(0)
    links = [torch.nn.ConvTranspose2d(c, g, 2, stride=2) for c, g in ((6, 4), (4, 3), (3, 2))]
    x = expected = torch.randn(2, 6, 3, 5)
    for i, link in enumerate(links):
        expected = F.relu(link(expected))
        layers = [as_linear(own) for own in links[: i + 1]]
        y = guidance_chain(layers, x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
        assert y.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_the_first_choice_needs_no_features():
    torch.manual_seed(0)
    decoder = GradualFusionDecoder(80, 32, [32, 16, 16], [16, 8, 8], [8, 8, 8], [5, 7, 9], 4)
    head = decoder.levels[0].aux_head
    for count in (20, 3):  # by way of the frequency domain, and directly
        cost = torch.rand(count, 80, 5, 8)
        expected = head(decoder.cost_conv(cost))[:, 0]
        logits = decoder.score(head, None, cost, 1000)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        half = copy.deepcopy(decoder).bfloat16()
        logits = half.score(half.levels[0].aux_head, None, cost.bfloat16(), 1000)
        assert logits.dtype == torch.float32
        assert (logits - expected).std() < 0.02 * expected.std()
    with pytest.raises(ValueError, match="ask for them without top_k"):
        decoder(cost[None], [], pooling=(1, 1), top_k=1, auxiliary=True)


def test_class_attention_pools_and_comes_back_to_size():
    torch.manual_seed(0)
    layer = ClassAttention(8, 2)
    x = torch.randn(1, 8, 4, 6).expand(3, 8, 4, 6)  # three times the same class
    y = layer(x, 1, (2, 2))
    assert y.shape == x.shape
    torch.testing.assert_close(y[0], y[1])
    flat = torch.ones(3, 8, 4, 6)  # pooling and upsampling keep what is constant
    torch.testing.assert_close(layer(flat, 1, (2, 2)), layer(flat, 1, (1, 1)))


def test_sfm_is_convolution_of_the_concatenation():
    torch.manual_seed(0)
    layer = SFM(16, 16, 4)
    x, image, cost = torch.randn(6, 16, 3, 3), torch.randn(2, 4, 6, 6), torch.randn(6, 4, 6, 6)
    repeated = image.repeat_interleave(3, dim=0)  # guidance of image 0 for classes 0 to 2
    y = torch.cat([layer.up(x), repeated, cost], dim=1)
    y = F.relu(layer.norm1(layer.conv1(y)))
    y = F.relu(layer.norm2(layer.conv2(y)))
    ours = layer(x, layer.shared(image), cost, layer.composed_weight())
    torch.testing.assert_close(ours, y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", [1, 2])
@torch.no_grad()
def test_it_answers_as_its_plain_form(pooling):
    torch.manual_seed(0)
    decoder = GradualFusionDecoder(80, 32, [32, 16, 16], [16, 8, 8], [8, 8, 8], [5, 7, 9], 4)
    features = [torch.randn(1, 8, s, s) for s in (16, 32, 64)]
    # 64 * 64 * 32 elements of some classes are more than one chunk.
    cost = torch.rand(1, 40, 80, 8, 8)
    for top_k in (0, 2):
        output = decoder(cost, features, pooling=(pooling, pooling), top_k=top_k)
        logits, survivors = plain_decode(decoder, cost, features, (pooling, pooling), top_k)
        assert torch.equal(output.survivors, survivors)
        torch.testing.assert_close(output.logits, logits, atol=1e-5, rtol=1e-5)
    with torch.enable_grad():  # in one piece
        whole = decoder(cost[:, :5], features, pooling=(pooling, pooling)).logits
    few = decoder(cost[:, :5], features, pooling=(pooling, pooling)).logits
    torch.testing.assert_close(few, whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_memory_budget_changes_nothing():
    torch.manual_seed(0)
    features = [torch.randn(1, 8, s, s) for s in (4, 8, 16)]
    cost = torch.rand(1, 20, 80, 2, 2)
    outputs = []
    for chunk in (0, 1, 1000):
        torch.manual_seed(1)
        decoder = GradualFusionDecoder(
            80, 16, [16, 16, 16], [4, 4, 4], [8, 8, 8], [3, 3, 3], 4, chunk_elements=chunk
        )
        outputs.append(decoder(cost, features, pooling=(1, 1)).logits)
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="TEST.CHUNK_ELEMENTS -1 is negative"):
        GradualFusionDecoder(80, 16, [16], [4], [8], [3], 4, chunk_elements=-1)


@pytest.mark.parametrize("dtype, agreement", [(torch.bfloat16, 0.85), (torch.float16, 0.97)])
@torch.no_grad()
def test_half_precision(dtype, agreement):
    torch.manual_seed(0)
    decoder = GradualFusionDecoder(80, 16, [16, 16, 16], [4, 4, 4], [8, 8, 8], [3, 3, 3], 4)
    features = [torch.randn(1, 8, s, s) for s in (4, 8, 16)]
    cost = torch.rand(1, 20, 80, 2, 2)
    whole = decoder(cost, features, pooling=(1, 1)).logits
    before = [p.dtype for p in decoder.parameters()]
    for pooling, top_k in (((1, 1), 0), ((2, 2), 3)):
        with torch.autocast("cpu", dtype=dtype):
            output = decoder(cost, features, pooling=pooling, top_k=top_k)
            assert torch.is_autocast_enabled("cpu")
        assert output.logits.dtype == dtype and torch.isfinite(output.logits).all()
        if not top_k:
            same = output.logits[0].argmax(0) == whole[0].argmax(0)
            assert same.float().mean() > agreement
    assert [p.dtype for p in decoder.parameters()] == before


def test_early_rejection_is_an_image_s_own():
    decoder = GradualFusionDecoder(80, 16, [16, 16, 16], [4, 4, 4], [8, 8, 8], [3, 3, 3], 4)
    features = [torch.randn(2, 8, s, s) for s in (4, 8, 16)]
    with pytest.raises(ValueError, match="one image at a time"):
        decoder(torch.randn(2, 3, 80, 2, 2), features, pooling=(1, 1), top_k=1)
