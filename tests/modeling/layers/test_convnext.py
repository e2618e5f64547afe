import torch
from torch.nn import functional as F

from sed_d2.modeling.layers.convnext import ConvNeXtBlock


def test_it_is_the_block_of_the_paper():
    torch.manual_seed(0)
    block = ConvNeXtBlock(6, 5)
    torch.nn.init.normal_(block.gamma)
    x = torch.randn(2, 6, 7, 4)
    y = F.layer_norm(block.dwconv(x).permute(0, 2, 3, 1), (6,), block.norm.weight, eps=1e-6)
    y = block.gamma * block.pwconv2(F.gelu(block.pwconv1(y)))
    expected = x + y.permute(0, 3, 1, 2)
    torch.testing.assert_close(block(x), expected)
    ours = torch.autograd.grad(block(x).square().sum(), block.gamma)[0]
    theirs = torch.autograd.grad(expected.square().sum(), block.gamma)[0]
    torch.testing.assert_close(ours, theirs)
