import math

import pytest
import torch
from torch.nn import functional as F

from sed_d2.modeling.decoder import GradualFusionDecoder, union_of_top_k
from sed_d2.modeling.head import cost_map
from sed_d2.modeling.layers import SFM, ClassAttention, LinearAttention
from tools.plain import plain_decode


def test_cost_map_is_the_cosine():
    embedding = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)  # length 5
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [-0.8, 0.6]]])
    expected = torch.tensor([[0.6, 0.8], [1.0, 0.0]]).view(1, 2, 2, 1, 1)
    torch.testing.assert_close(cost_map(embedding, text), expected)


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
    # 8 * 8 * 32 elements of 300 classes are more than one chunk.
    cost = torch.rand(1, 300, 80, 8, 8)
    for top_k in (0, 2):
        output = decoder(cost, features, pooling=(pooling, pooling), top_k=top_k)
        logits, survivors = plain_decode(decoder, cost, features, (pooling, pooling), top_k)
        assert torch.equal(output.survivors, survivors)
        torch.testing.assert_close(output.logits, logits, atol=1e-5, rtol=1e-5)
    with torch.enable_grad():  # in one piece
        whole = decoder(cost[:, :5], features, pooling=(pooling, pooling)).logits
    few = decoder(cost[:, :5], features, pooling=(pooling, pooling)).logits
    torch.testing.assert_close(few, whole, atol=1e-5, rtol=1e-5)


def test_early_rejection_is_an_image_s_own():
    decoder = GradualFusionDecoder(80, 16, [16, 16, 16], [4, 4, 4], [8, 8, 8], [3, 3, 3], 4)
    features = [torch.randn(2, 8, s, s) for s in (4, 8, 16)]
    with pytest.raises(ValueError, match="one image at a time"):
        decoder(torch.randn(2, 3, 80, 2, 2), features, pooling=(1, 1), top_k=1)
