import pytest
import torch
from torch import nn

from sed_d2.modeling.fast.convnext import convnext_block_
from sed_d2.modeling.layers.convnext import ConvNeXtBlock


@pytest.mark.parametrize("chunk", [1, 300, 10**6])
@torch.no_grad()
def test_block_in_place_is_the_plain_block(chunk):
    torch.manual_seed(0)
    block = ConvNeXtBlock(8, 5)
    nn.init.normal_(block.gamma)
    x = torch.randn(5, 8, 6, 4).contiguous(memory_format=torch.channels_last)
    expected = block(x)
    layers = (block.dwconv, block.norm, block.pwconv1, block.pwconv2, block.gamma)
    convnext_block_(x, *layers, chunk)
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)
