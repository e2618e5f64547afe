import pytest
import torch
from torch.nn import functional as F

from sed_d2.modeling.fast.spectral import inverse_transform, spectral_conv, transform


@pytest.mark.parametrize("size", [(5, 6), (8, 7), (1, 2)])  # odd and even periods
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_spectral_conv_is_the_convolution(size, kernel):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 6, *size), torch.randn(4, 6, kernel, kernel), torch.randn(4)
    expected = F.conv2d(x, weight, bias, padding=kernel // 2)
    for chunk in (2, 5):
        y = spectral_conv(x, weight, bias, chunk)
        torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-5)
        assert y.permute(0, 2, 3, 1).is_contiguous()


def test_transform_is_the_fourier_transform():
    x = torch.randn(4, 5, 3)
    rows, columns = torch.arange(4), torch.arange(5)
    real, imaginary = transform(x, rows, columns, (6, 7), 1)
    expected = torch.fft.rfft2(x, s=(6, 7), dim=(0, 1)).transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(torch.complex(real, imaginary), expected, atol=1e-5, rtol=1e-5)
    y = inverse_transform(real, imaginary, rows, columns, (6, 7))
    torch.testing.assert_close(y, x, atol=1e-5, rtol=1e-5)
