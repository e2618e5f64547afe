"""SEDHead's approximations: fewer classes to decode, fewer channels than templates."""

import pytest
import torch

from sed_d2.modeling.layers.cost_map import cost_map
from sed_d2.modeling.layers.head_output import HeadOutput
from sed_d2.modeling.sed.approximations import nearest_classes, template_basis
from sed_d2.modeling.sed.decoder import GradualFusionDecoder
from sed_d2.modeling.sed.head import SEDHead


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
        fewer = head(pre_reject=7, top_k=1)(features, text)
    assert set(fewer.survivors.tolist()) < set(keep.tolist())


def test_pre_rejection_counts_for_one_image(inputs):
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
        basis = template_basis(text, channels)
        assert basis.shape == (80, channels)
        torch.testing.assert_close(basis.T @ basis, torch.eye(channels), atol=1e-5, rtol=0)
        reduced = torch.einsum("pr,tpc->trc", basis, text)
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


def test_values_that_cannot_work_are_refused(inputs):
    for settings, message in (
        ({"pre_reject": -1}, "TEST.PREREJECT -1"),
        ({"template_channels": 81}, "TEST.TEMPLATE_CHANNELS 81 .* 80"),
        ({"top_k": -1}, "TEST.TOPK -1 is negative"),
        ({"test_pooling": (0, 1)}, r"TEST.POOLING_SIZES \[0, 1\]"),
        ({"train_pooling": (2, 2, 2)}, r"MODEL.SEM_SEG_HEAD.POOLING_SIZES \[2, 2, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            head(**settings)
    features, text = inputs
    with pytest.raises(ValueError, match="text has 79 templates a class, the decoder .* 80"):
        head()(features, text[:, :79])


def test_autocast_does_not_coarsen_the_approximations(inputs):
    features, text = inputs
    exact = [template_basis(text, 4), nearest_classes(features["embedding"], text, 5)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = [template_basis(text, 4), nearest_classes(features["embedding"], text, 5)]
    assert all(torch.equal(a, b) for a, b in zip(exact, under, strict=True))


def test_training_ignores_what_is_for_inference(inputs):
    features, text = inputs
    settings = {"top_k": 1, "pre_reject": 5, "template_channels": 3, "test_pooling": (1, 1)}
    model, reference = head(**settings).train(), head().train()
    outputs = [m(features, text, auxiliary=True) for m in (model, reference)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert len(outputs[0].auxiliary) == 3


def test_with_auxiliary_logits_no_class_is_rejected(inputs):
    features, text = inputs
    output = head(top_k=1, pre_reject=5)(features, text, auxiliary=True)
    assert len(output.survivors) == 20 and len(output.auxiliary) == 3


def test_scores_are_in_float32():
    scores = HeadOutput(torch.zeros(1, 2, 3, 3).half(), torch.arange(2)).scores
    assert scores.dtype == torch.float32 and (scores == 0.5).all()
