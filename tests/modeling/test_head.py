"""SEDHead's approximations: fewer classes to decode, fewer channels than templates."""

import pytest
import torch

from sed_d2.modeling.sed.decoder import GradualFusionDecoder
from sed_d2.modeling.sed.head import SEDHead, cost_map, nearest_classes, reduce_templates


def head(**settings):
    torch.manual_seed(0)
    decoder = GradualFusionDecoder(80, 16, [16, 16, 16], [4, 4, 4], [8, 8, 8], [3, 3, 3], 4)
    return SEDHead(decoder=decoder, **settings).eval()


@pytest.fixture
def inputs():
    """Features, and text whose templates are nearly collinear."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    features = {f"res{i}": random(1, 8, side, side) for i, side in ((4, 4), (3, 8), (2, 16))}
    features["embedding"] = random(1, 32, 2, 2)
    text = random(20, 1, 32) + 0.3 * random(20, 80, 32)
    return features, text / text.norm(dim=-1, keepdim=True)


def test_the_nearest_classes_by_hand():
    # Two positions along the axes; the templates' means are the classes' directions.
    embedding = torch.eye(2).T.reshape(1, 2, 1, 2)
    classes = torch.tensor([[0.2, 0.1], [1.0, 0.0], [0.9, 0.0], [0.0, 1.0], [0.8, 0.3]])
    text = classes.unsqueeze(1).expand(-1, 80, -1)
    # Behind the best of their better position: 0.8, 0, 0.1, 0 and 0.2.
    assert nearest_classes(embedding, text, 2).tolist() == [1, 3]
    assert nearest_classes(embedding, text, 4).tolist() == [1, 2, 3, 4]


def test_classes_rejected_before_the_decoder_keep_their_indices(inputs):
    features, text = inputs
    with torch.no_grad():
        all_classes = head()(features, text)
        for count in (20, 100):
            kept = head(pre_reject=count)(features, text)
            assert torch.equal(kept.logits, all_classes.logits)
            assert torch.equal(kept.survivors, all_classes.survivors)
        few = head(pre_reject=7)(features, text)
        keep = nearest_classes(features["embedding"], text, 7)
        assert torch.equal(few.survivors, keep)
        assert torch.equal(few.logits, head()(features, text[keep]).logits)
        fewer = head(pre_reject=7)(features, text, top_k=1)
    assert set(fewer.survivors.tolist()) < set(keep.tolist())


def test_pre_rejection_is_an_image_s_own(inputs):
    features, text = inputs
    two = {name: feature.repeat(2, 1, 1, 1) for name, feature in features.items()}
    with pytest.raises(ValueError, match="TEST.PREREJECT works on one image"):
        head(pre_reject=7)(two, text)


def test_principal_components_of_the_templates(inputs):
    features, text = inputs
    embedding = features["embedding"]
    whole = cost_map(embedding, text)
    errors = []
    for channels in (1, 8, 40, 80):
        reduced, basis = reduce_templates(text, channels)
        assert reduced.shape == (20, channels, 32) and basis.shape == (80, channels)
        back = torch.einsum("pr,btrhw->btphw", basis, cost_map(embedding, reduced))
        errors.append((back - whole).abs().max().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6 < 1e-3 < errors[0]


def test_the_decoder_reads_the_components_as_it_reads_the_templates(inputs):
    features, text = inputs
    with torch.no_grad():
        exact = head()(features, text).logits
        logits = [head(template_channels=r)(features, text).logits for r in (1, 40, 80)]
        both = head(template_channels=80, pre_reject=7)(features, text)
        kept = head(pre_reject=7)(features, text)
    errors = [(z - exact).abs().max().item() for z in logits]
    assert errors == sorted(errors, reverse=True)
    torch.testing.assert_close(logits[-1], exact, atol=1e-4, rtol=1e-4)
    assert torch.equal(both.survivors, kept.survivors)
    torch.testing.assert_close(both.logits, kept.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [0, 40])
def test_what_is_made_of_the_text_follows_text_and_precision(inputs, channels):
    features, text = inputs
    model = head(template_channels=channels)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        own = {name: feature.to(dtype) for name, feature in features.items()}
        for some in (text, text[:5], text.flip(0), text):
            fresh = head(template_channels=channels)
            half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
            with torch.no_grad(), half:
                assert torch.equal(model(own, some).logits, fresh(own, some).logits)


@pytest.mark.parametrize("channels", [0, 40])
def test_what_is_made_of_the_text_is_kept_for_any_mode_of_autograd(inputs, channels):
    features, text = inputs
    features = {name: feature.bfloat16() for name, feature in features.items()}
    model = head(template_channels=channels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.inference_mode():
            first = model(features, text).logits
        kept = model._prepared[2]
        with torch.no_grad():
            assert torch.equal(model(features, text).logits, first)
        model(features, text).logits.float().sum().backward()
    assert model._prepared[2] is kept and kept.dtype == torch.bfloat16


def test_values_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="TEST.PREREJECT -1"):
        head(pre_reject=-1)
    with pytest.raises(ValueError, match="TEST.TEMPLATE_CHANNELS 81 .* 80"):
        head(template_channels=81)


def test_autocast_does_not_coarsen_what_is_approximated(inputs):
    features, text = inputs
    exact = [*reduce_templates(text, 4), nearest_classes(features["embedding"], text, 5)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = [*reduce_templates(text, 4), nearest_classes(features["embedding"], text, 5)]
    assert all(torch.equal(a, b) for a, b in zip(exact, under, strict=True))
