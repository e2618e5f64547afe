import pytest
import torch
from torch.nn import functional as F

from sed_d2.modeling.sed.decoder import FAM, SFM, GradualFusionDecoder, union_of_top_k


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return GradualFusionDecoder(80, 16, [16, 16, 16], [4, 4, 4], [8, 8, 8], [3, 3, 3], 4)


def features(num_images=1):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(num_images, 8, side, side, generator=generator) for side in (4, 8, 16)]


def test_union_of_top_k():
    logits = torch.tensor([[9.0, 1.0], [5.0, 2.0], [4.0, 0.0], [1.0, 8.0]]).view(4, 1, 2)
    assert union_of_top_k(logits, 1).tolist() == [0, 3]
    assert union_of_top_k(logits, 2).tolist() == [0, 1, 3]
    for k in (4, 9):
        assert union_of_top_k(logits, k).tolist() == [0, 1, 2, 3]


def test_fam_mixes_positions_and_classes():
    torch.manual_seed(0)
    fam = FAM(8, 3, 2)
    x = torch.randn(3, 8, 5, 5, requires_grad=True)
    (reach,) = torch.autograd.grad(fam(x, 1, (1, 1))[0, :, 0, 0].sum(), x)
    assert reach[0, :, 1, 1].abs().sum() > 0  # a neighbour, by spatial fusion
    assert reach[2, :, 0, 0].abs().sum() > 0  # another class, by class fusion
    assert reach[:, :, 3, 3].abs().sum() == 0  # beyond the kernel


def test_sfm_is_the_convolution_of_the_concatenation():
    torch.manual_seed(0)
    layer = SFM(16, 16, 4)
    x, image, cost = torch.randn(6, 16, 3, 3), torch.randn(2, 4, 6, 6), torch.randn(6, 4, 6, 6)
    repeated = image.repeat_interleave(3, dim=0)  # guidance of image 0 for classes 0 to 2
    y = torch.cat([layer.up(x), repeated, cost], dim=1)
    y = F.relu(layer.norm1(layer.conv1(y)))
    y = F.relu(layer.norm2(layer.conv2(y)))
    torch.testing.assert_close(layer(x, image, cost), y, atol=1e-5, rtol=1e-5)


def test_logits_have_eight_times_the_resolution(decoder):
    cost = torch.rand(2, 3, 80, 2, 2)
    output = decoder(cost, features(2), pooling=(1, 1), auxiliary=True)
    assert output.logits.shape == (2, 3, 16, 16)
    assert [x.shape for x in output.auxiliary] == [(2, 3, s, s) for s in (2, 4, 8)]
    assert output.survivors.tolist() == [0, 1, 2]
    for i in range(2):
        alone = decoder(cost[i : i + 1], [f[i : i + 1] for f in features(2)], pooling=(1, 1))
        torch.testing.assert_close(alone.logits[0], output.logits[i], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_early_rejection_is_the_decoder_of_the_survivors(decoder):
    cost, maps = torch.rand(1, 12, 80, 2, 2), features()
    full = decoder(cost, maps, pooling=(1, 1), auxiliary=True)
    first = union_of_top_k(full.auxiliary[0][0], 1)
    output = decoder(cost, maps, pooling=(1, 1), top_k=1)
    assert set(output.survivors.tolist()) <= set(first.tolist()) < set(range(12))
    again = decoder(cost[:, output.survivors], maps, pooling=(1, 1), top_k=1)
    assert len(again.survivors) <= len(output.survivors)
    kept = decoder(cost, maps, pooling=(1, 1), top_k=12)
    torch.testing.assert_close(kept.logits, full.logits)


def test_early_rejection_counts_for_one_image(decoder):
    with pytest.raises(ValueError, match="one image at a time"):
        decoder(torch.randn(2, 3, 80, 2, 2), features(2), pooling=(1, 1), top_k=1)
    with pytest.raises(ValueError, match="ask for them without top_k"):
        decoder(torch.rand(1, 3, 80, 2, 2), [], pooling=(1, 1), top_k=1, auxiliary=True)


def test_forms_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="must have 3 entries, one for each image feature"):
        GradualFusionDecoder(80, 16, [16, 16], [4, 4], [8, 8, 8], [3, 3], 4)
    with pytest.raises(ValueError, match="kernel size 4 .* is even"):
        GradualFusionDecoder(80, 16, [16], [4], [8], [4], 4)
