import weakref

import pytest
import torch

from sed_d2.modeling.fast import sed_head
from sed_d2.modeling.fast.sed_head import KEPT_TEXTS, FastSEDHead, cost_map
from sed_d2.modeling.layers.cost_map import cost_map as plain_cost_map


@pytest.fixture
def reductions(monkeypatch):
    """The calls of ``template_basis``: a list that grows."""
    calls = []
    reduce = sed_head.template_basis
    monkeypatch.setattr(
        sed_head, "template_basis", lambda text, channels: calls.append(1) or reduce(text, channels)
    )
    return calls


def assert_same(output, expected, tolerance=1e-5):
    assert torch.equal(output.survivors, expected.survivors)
    torch.testing.assert_close(output.logits, expected.logits, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_cost_map_is_the_plain_one(features, text):
    embedding = features["embedding"]
    expected = plain_cost_map(embedding, text)[0]
    torch.testing.assert_close(cost_map(embedding[0], text), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"pre_reject": 7},
        {"pre_reject": 100},
        {"pre_reject": 7, "top_k": 1},
        {"template_channels": 1},
        {"template_channels": 40},
        {"template_channels": 40, "pre_reject": 7, "top_k": 2},
        {"test_pooling": (2, 2), "train_pooling": (1, 1)},
        {"guidance": "none"},
    ],
    ids=str,
)
@torch.no_grad()
def test_head_is_the_plain_head(build_head, features, text, settings):
    head = build_head(**settings)
    assert_same(FastSEDHead(head, torch.float32)(features, text), head(features, text))


@torch.no_grad()
def test_settings_may_change_between_calls(build_head, features, text):
    head = build_head()
    fast = FastSEDHead(head, torch.float32)
    for name, value in (("top_k", 1), ("pre_reject", 7), ("template_channels", 8), ("top_k", 0)):
        setattr(head, name, value)
        assert_same(fast(features, text), head(features, text))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_auxiliary_logits_are_those_of_the_plain_head(build_head, features, text, precision):
    head = build_head()
    output = FastSEDHead(head, precision)(features, text, auxiliary=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != torch.float32):
        expected = head(features, text, auxiliary=True)
    assert len(output.auxiliary) == 3
    for logits, expected_logits in zip(output.auxiliary, expected.auxiliary, strict=True):
        assert torch.equal(logits, expected_logits)


@torch.no_grad()
def test_what_the_plain_head_refuses_is_refused(build_head, features, text):
    two = {name: feature.repeat(2, 1, 1, 1) for name, feature in features.items()}
    with pytest.raises(ValueError, match="early rejection works on one image"):
        FastSEDHead(build_head(top_k=1), torch.float32)(two, text)
    with pytest.raises(ValueError, match="TEST.PREREJECT works on one image"):
        FastSEDHead(build_head(pre_reject=7), torch.float32)(two, text)
    with pytest.raises(ValueError, match="text has 79 templates a class"):
        FastSEDHead(build_head(), torch.float32)(features, text[:, :79])


@pytest.mark.parametrize("channels", [0, 40])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_logits_follow_the_text(build_head, features, text, channels, precision):
    fast = FastSEDHead(build_head(template_channels=channels), precision)
    for classes in (text, text[:5], text.flip(0), text):
        expected = FastSEDHead(fast.head, precision)(features, classes)
        assert torch.equal(fast(features, classes).logits, expected.logits)


@torch.no_grad()
def test_embeddings_are_cast_or_reduced_once(build_head, features, text, reductions):
    cast = FastSEDHead(build_head(), torch.bfloat16)
    assert cast._prepare(text).embeddings.dtype == torch.bfloat16
    assert cast._prepare(text) is cast._prepare(text)
    reduced = FastSEDHead(build_head(template_channels=8), torch.bfloat16)
    for _ in range(3):
        reduced(features, text)
    assert len(reductions) == 1
    assert reduced._prepare(text).embeddings.shape == (20, 8, 24)


@torch.no_grad()
def test_texts_of_several_callers_are_reduced_once(build_head, features, text, reductions):
    fast = FastSEDHead(build_head(template_channels=8), torch.bfloat16)
    texts = [text.clone() for _ in range(KEPT_TEXTS)]
    for _ in range(3):
        for classes in texts:
            fast(features, classes)
    assert len(reductions) == KEPT_TEXTS
    for classes in (text, *texts[1:]):  # one more: the oldest is dropped
        fast(features, classes)
    assert len(reductions) == KEPT_TEXTS + 1
    fast(features, texts[0])
    assert len(reductions) == KEPT_TEXTS + 2


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [0, 8])
@torch.no_grad()
def test_a_text_that_its_caller_drops_is_freed(build_head, features, text, precision, channels):
    fast = FastSEDHead(build_head(template_channels=channels), precision)
    classes = text.clone()
    fast(features, classes)
    alive = weakref.ref(classes)
    del classes
    assert alive() is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [0, 8])
def test_a_text_that_changes_in_place_is_read_again(
    build_head, features, text, precision, channels, mode
):
    with mode():
        text = text.clone()  # made in this mode
        fast = FastSEDHead(build_head(template_channels=channels), precision)
        fast(features, text)
        text[:5] = text[:5].flip(0)
        expected = FastSEDHead(fast.head, precision)(features, text)
        assert torch.equal(fast(features, text).logits, expected.logits)


@pytest.mark.parametrize("channels", [0, 40])
def test_prepared_text_serves_every_mode_of_autograd(build_head, features, text, channels):
    fast = FastSEDHead(build_head(template_channels=channels), torch.bfloat16)
    with torch.inference_mode():
        first = fast(features, text).logits
        prepared = fast._prepare(text)
    assert not prepared.embeddings.is_inference()
    with torch.no_grad():
        assert torch.equal(fast(features, text).logits, first)
        assert fast._prepare(text) is prepared
