import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sed_d2.modeling.fast.conv import conv_to_one, cost_guidance, up_as_linear


@pytest.mark.parametrize("dim", [4, 16])
@pytest.mark.parametrize("size", [(5, 4), (1, 3), (1, 1)])
@torch.no_grad()
def test_convolution_to_one_channel(dim, size):
    torch.manual_seed(0)
    conv = nn.Conv2d(dim, 1, 3, padding=1)
    x = torch.randn(2, dim, *size).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(conv_to_one(x, conv), conv(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_convolution_to_one_channel_rounds_once_in_half_precision():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 1, 3, padding=1).bfloat16()
    x = torch.randn(2, 16, 5, 4).bfloat16()
    assert torch.equal(conv_to_one(x, conv), conv(x))


@torch.no_grad()
def test_chain_of_cost_guidance():
    torch.manual_seed(0)
    ups = [nn.ConvTranspose2d(c, g, 2, stride=2) for c, g in ((6, 4), (4, 3), (3, 2))]
    x = expected = torch.randn(2, 6, 3, 5)
    for i, up in enumerate(ups):
        expected = F.relu(up(expected))
        layers = [up_as_linear(layer) for layer in ups[: i + 1]]
        y = cost_guidance(layers, x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
        assert y.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_up_as_linear_takes_another_weight():
    torch.manual_seed(0)
    up, weight = nn.ConvTranspose2d(6, 4, 2, stride=2), torch.randn(3, 4, 2, 2)
    x = torch.randn(2, 3, 3, 5)
    expected = F.relu(F.conv_transpose2d(x, weight, up.bias, stride=2))
    y = cost_guidance([up_as_linear(up, weight)], x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
