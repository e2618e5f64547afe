"""Keys of MODEL.SEM_SEG_HEAD: what passes the skip path, and the scores before training."""

import math

import pytest
import torch

from sed_d2.modeling.sed.head import SKIP_FEATURES


def run(model, change: float = 0.0):
    """The logits, and the gradients that the skip features get; `change` is added to them."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"res4": (160, 4), "res3": (80, 8), "res2": (40, 16), "embedding": (64, 2)}
    features = {
        name: torch.randn(1, dim, side, side, generator=generator)
        for name, (dim, side) in shapes.items()
    }
    for name in SKIP_FEATURES:
        features[name] = (features[name] + change).requires_grad_()
    logits = model.sem_seg_head(features, model.text_embeddings()).logits
    logits.sum().backward()
    return logits.detach(), [features[name].grad for name in SKIP_FEATURES]


@pytest.mark.parametrize(
    "guidance, learns, sees",
    [("detached", False, True), ("attached", True, True), ("none", False, False)],
)
def test_what_passes_the_skip_path(tiny_model, guidance, learns, sees):
    model = tiny_model("MODEL.SEM_SEG_HEAD.GUIDANCE", guidance)
    logits, gradients = run(model)
    assert [bool(g is not None and g.abs().sum() > 0) for g in gradients] == [learns] * 3
    changed, _ = run(model, change=1.0)
    assert torch.equal(logits, changed) is not sees


def test_an_unknown_guidance_is_named(tiny_model):
    with pytest.raises(ValueError, match="GUIDANCE 'some' is unknown: use one of detached"):
        tiny_model("MODEL.SEM_SEG_HEAD.GUIDANCE", "some")


def head_biases(model):
    decoder = model.sem_seg_head.decoder
    heads = [*(level.aux_head for level in decoder.levels), decoder.head]
    return [head.bias.item() for head in heads]


def test_untrained_heads_give_the_prior(tiny_model):
    biases = head_biases(tiny_model("MODEL.SEM_SEG_HEAD.PRIOR_PROB", 0.01))
    assert biases == pytest.approx([math.log(0.01 / 0.99)] * 4)
    assert all(abs(bias) < 0.5 for bias in head_biases(tiny_model()))


@pytest.mark.parametrize("prior", [-0.1, 1.0])
def test_a_prior_that_is_no_probability(tiny_model, prior):
    with pytest.raises(ValueError, match=rf"PRIOR_PROB {prior} must be"):
        tiny_model("MODEL.SEM_SEG_HEAD.PRIOR_PROB", prior)


@pytest.mark.parametrize("detached", [True, False])
def test_what_the_auxiliary_losses_train(tiny_model, detached):
    """Only their heads, or also what lies before them."""
    decoder = tiny_model("MODEL.SEM_SEG_HEAD.DETACH_AUXILIARY", detached).sem_seg_head.decoder
    generator = torch.Generator().manual_seed(0)
    sizes = [(160, 4), (80, 8), (40, 16)]
    features = [torch.randn(1, dim, side, side, generator=generator) for dim, side in sizes]
    cost = torch.randn(1, 3, 80, 2, 2, generator=generator)
    output = decoder(cost, features, pooling=(1, 1), auxiliary=True)
    sum(logits.sum() for logits in output.auxiliary).backward()
    assert all(level.aux_head.weight.grad.abs().sum() > 0 for level in decoder.levels)
    before = [decoder.cost_conv, *(level.sfm.conv1 for level in decoder.levels[:2])]
    assert [layer.weight.grad is None for layer in before] == [detached] * 3
