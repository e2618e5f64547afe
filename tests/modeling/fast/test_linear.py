import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sed_d2.modeling.fast import linear as linear_module
from sed_d2.modeling.fast.linear import add_mlp_, linear

#: (rows, C, C'), on both sides of every limit between the two libraries.
SIZES = [(5, 3, 4), (20481, 1, 4), (7000, 3, 1), (500, 64, 1024), (1100, 64, 1024)]


@pytest.fixture(params=[False, True], ids=["torch", "onednn"])
def library(request, monkeypatch):
    """Choose the library as a CPU with or without AVX-512 and with several threads does."""
    monkeypatch.setattr(linear_module, "_has_avx512", lambda: request.param)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return request.param


@pytest.mark.parametrize("rows, width, out_width", SIZES)
def test_linear_of_either_library(library, rows, width, out_width):
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(rows, width),
        torch.randn(out_width, width),
        torch.randn(out_width),
    )
    for bias_or_none in (bias, None):
        y = linear(x, weight, bias_or_none)
        assert y.is_contiguous()
        torch.testing.assert_close(y, F.linear(x, weight, bias_or_none), atol=1e-5, rtol=1e-5)
    half = [tensor.bfloat16() for tensor in (x, weight, bias)]
    torch.testing.assert_close(linear(*half), F.linear(*half), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    "rows, dtype, convolves",
    [
        (1100, torch.float32, True),
        (500, torch.float32, False),
        (1100, torch.bfloat16, True),
        (1000, torch.bfloat16, False),
        (1100, torch.float16, False),
    ],
)
def test_many_rows_are_a_convolution_where_the_cpu_has_avx512(
    library, monkeypatch, rows, dtype, convolves
):
    calls = []
    conv2d = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args: calls.append(1) or conv2d(*args))
    linear(torch.randn(rows, 64, dtype=dtype), torch.randn(1024, 64, dtype=dtype))
    assert bool(calls) == (convolves and library)


@pytest.mark.parametrize("chunk", [1, 60, 10**6])
@torch.no_grad()
def test_add_mlp(chunk):
    torch.manual_seed(0)
    first, second, scale = nn.Linear(4, 12), nn.Linear(12, 4), torch.randn(4)
    x, y = torch.randn(11, 4), torch.randn(11, 4)
    expected = x + scale * second(F.gelu(first(y)))
    add_mlp_(x, y, first, torch.ops.aten.gelu_, second, scale, chunk)
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_add_mlp_sums_in_the_precision_of_x():
    first, second = nn.Linear(4, 12).bfloat16(), nn.Linear(12, 4).bfloat16()
    nn.init.zeros_(second.weight)
    nn.init.ones_(second.bias)
    x = torch.full((11, 4), 4001.0)  # bfloat16 has multiples of 16 there
    add_mlp_(x, torch.randn(11, 4).bfloat16(), first, F.relu_, second, torch.ones(()), 60)
    assert x.dtype == torch.float32 and (x == 4002).all()
