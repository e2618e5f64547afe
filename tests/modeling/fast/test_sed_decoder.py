import copy

import pytest
import torch
from torch.nn import functional as F

from sed_d2.modeling.fast import sed_decoder
from sed_d2.modeling.fast.sed_decoder import FastDecoder, FastLevel, FastSFM, compose_up
from sed_d2.modeling.sed.decoder import SFM


@pytest.fixture
def skips(features):
    return [features[name] for name in ("res4", "res3", "res2")]


def cost_maps(classes: int) -> torch.Tensor:
    """(T, 80, 4, 4) cosines."""
    return 2 * torch.rand(classes, 80, 4, 4, generator=torch.Generator().manual_seed(3)) - 1


def decode(decoder, cost, skips, precision=torch.float32, chunk=0, pooling=(1, 1), top_k=0):
    """Decode by the fast form."""
    fast = FastDecoder(decoder, precision, chunk)
    cost, skips = cost.to(precision), [skip.to(precision) for skip in skips]
    return fast(cost, skips, fast.input_layers, pooling=pooling, top_k=top_k)


@torch.no_grad()
def test_compose_up():
    torch.manual_seed(0)
    up, conv = torch.randn(6, 5, 2, 2), torch.randn(4, 5, 3, 3)
    x = torch.randn(2, 6, 3, 4)
    expected = F.conv2d(F.conv_transpose2d(x, up, stride=2), conv, padding=1)
    y = F.conv_transpose2d(x, compose_up(up, conv), stride=2, padding=1)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_sfm_is_the_plain_sfm():
    torch.manual_seed(0)
    sfm = SFM(16, 16, 4)
    torch.nn.init.normal_(sfm.up.bias)  # it shows at the border
    fast = FastSFM(sfm, sfm)
    x, image, cost = torch.randn(6, 16, 3, 5), torch.randn(1, 4, 6, 10), torch.randn(6, 4, 6, 10)
    expected = sfm(x, image, cost)
    torch.testing.assert_close(fast(x, fast.shared(image), cost), expected, atol=1e-5, rtol=1e-5)
    out = torch.empty_like(expected)
    fast(x, fast.shared(image), cost, out=out)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("classes", [20, 3])  # by spectral convolution, and directly
@pytest.mark.parametrize("pooling", [(1, 1), (2, 2)])
@pytest.mark.parametrize("top_k", [0, 2, 100])
@torch.no_grad()
def test_decoder_is_the_plain_decoder(build_decoder, skips, classes, pooling, top_k):
    decoder, cost = build_decoder(), cost_maps(classes)
    expected = decoder(cost[None], skips, pooling=pooling, top_k=top_k)
    output = decode(decoder, cost, skips, pooling=pooling, top_k=top_k)
    assert torch.equal(output.survivors, expected.survivors)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_inputs_stay_as_they_are(build_decoder, skips):
    cost = cost_maps(20)
    before = [tensor.clone() for tensor in (cost, *skips)]
    decode(build_decoder(), cost, skips, top_k=2)
    assert all(map(torch.equal, (cost, *skips), before))


@pytest.mark.parametrize("classes, chunk", [(2, 1), (3, 1000), (20, 10000), (20, 40000)])
@pytest.mark.parametrize("top_k", [0, 2])
@torch.no_grad()
def test_the_chunk_size_changes_nothing(build_decoder, skips, classes, chunk, top_k):
    cost = cost_maps(classes)
    expected = decode(build_decoder(), cost, skips, top_k=top_k)
    output = decode(build_decoder(), cost, skips, chunk=chunk, top_k=top_k)
    assert torch.equal(output.survivors, expected.survivors)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_chunk_size_bounds_the_classes_that_sfm_works_on(build_decoder, skips, monkeypatch):
    counts = []
    fuse = FastSFM.__call__

    def count(self, x, *args, **kwargs):
        counts.append(len(x))
        return fuse(self, x, *args, **kwargs)

    monkeypatch.setattr(FastSFM, "__call__", count)
    decode(build_decoder(), cost_maps(20), skips, chunk=6 * 16 * 16 * 16)
    # A class has 32 * 8 * 8, 16 * 16 * 16 and 16 * 32 * 32 elements at the three levels.
    assert counts == [12, 8, *[6, 6, 6, 2], *[1] * 20]


@pytest.mark.parametrize("classes", [20, 3])
@torch.no_grad()
def test_first_rejection_needs_no_features(build_decoder, classes):
    decoder, cost = build_decoder(), cost_maps(classes)
    expected = decoder.levels[0].aux_head(decoder.cost_conv(cost))[:, 0]
    fast = FastDecoder(decoder, torch.float32, 0)
    scores = fast._score(cost, fast.input_layers)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    fast = FastDecoder(decoder, torch.bfloat16, 0)
    scores = fast._score(cost.bfloat16(), fast.input_layers)
    assert scores.dtype == torch.float32
    assert (scores - expected).std() < 0.02 * expected.std()


@pytest.mark.parametrize("chunk", [1, 10**6])
@torch.no_grad()
def test_scores_of_later_rejections(build_decoder, chunk):
    level = build_decoder().levels[1]
    x = torch.randn(7, 32, 8, 8).contiguous(memory_format=torch.channels_last)
    scores = FastLevel(level, torch.float32, chunk).score(x)
    torch.testing.assert_close(scores, level.aux_head(x)[:, 0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rejected_classes_are_never_convolved(build_decoder, skips, monkeypatch):
    decoder, cost = build_decoder(), cost_maps(20)
    counts = []
    convolve = FastDecoder._conv7

    def count(self, cost, weight, bias):
        counts.append((len(cost), len(weight)))
        return convolve(self, cost, weight, bias)

    monkeypatch.setattr(FastDecoder, "_conv7", count)
    decode(decoder, cost, skips, top_k=1)
    scores = decoder.levels[0].aux_head(decoder.cost_conv(cost))[:, 0]
    survivors = len(scores.argmax(dim=0).unique())
    assert 1 < survivors < 20
    assert counts == [(20, 9), (survivors, 32)]


@pytest.mark.parametrize(
    "classes, precision, spectral",
    [(20, torch.float32, True), (3, torch.float32, False), (20, torch.bfloat16, False)],
)
@torch.no_grad()
def test_spectral_convolution_is_for_many_classes_in_float32(
    build_decoder, skips, monkeypatch, classes, precision, spectral
):
    calls = []
    convolve = sed_decoder.spectral_conv
    monkeypatch.setattr(
        sed_decoder, "spectral_conv", lambda *args: calls.append(1) or convolve(*args)
    )
    decode(build_decoder(), cost_maps(classes), skips, precision)
    assert bool(calls) == spectral


@pytest.mark.parametrize("dtype, agreement", [(torch.bfloat16, 0.85), (torch.float16, 0.97)])
@torch.no_grad()
def test_half_precision(build_decoder, skips, dtype, agreement):
    decoder, cost = build_decoder(), cost_maps(20)
    whole = decoder(cost[None], skips, pooling=(1, 1)).logits[0]
    before = copy.deepcopy(decoder.state_dict())
    for pooling, top_k in (((1, 1), 0), ((2, 2), 3)):
        output = decode(decoder, cost, skips, dtype, pooling=pooling, top_k=top_k)
        assert output.logits.dtype == dtype and torch.isfinite(output.logits).all()
        if not top_k:
            same = output.logits[0].argmax(0) == whole.argmax(0)
            assert same.float().mean() > agreement
    for name, value in decoder.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_about_as_near_as_autocast(build_decoder, skips, dtype):
    decoder, cost = build_decoder(), cost_maps(20)
    whole = decoder(cost[None], skips, pooling=(1, 1)).logits
    with torch.autocast("cpu", dtype):
        autocast = decoder(cost[None], skips, pooling=(1, 1)).logits
    half = decode(decoder, cost, skips, dtype).logits
    errors = [(logits.float() - whole).std() for logits in (half, autocast)]
    assert 0.5 * errors[1] < errors[0] < 1.7 * errors[1]
