import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch.nn import functional as F

from sed_d2.modeling.clip import text as text_module
from sed_d2.modeling.clip.templates import PROMPT_TEMPLATES
from sed_d2.modeling.clip.text import TextEncoder, trim

from .conftest import CLASSES, NewProcess

CLASS_BYTES = 80 * 64 * 4  # (P, C) float32


def test_templates_are_those_of_imagenet():
    assert len(PROMPT_TEMPLATES) == 80
    assert PROMPT_TEMPLATES[0]("cat") == "a bad photo of a cat."
    assert PROMPT_TEMPLATES[-1]("{0}") == "a tattoo of the {0}."


def test_trim_cuts_after_the_end_of_the_longest_text(tokenizer):
    tokens = tokenizer(["a photo of a cat.", "a bad photo of the traffic light, at night."])
    trimmed = trim(tokens)
    assert tokens.shape == (2, 77)
    assert trimmed.shape == (2, 13)  # start, 11 tokens of the longer text, end
    assert torch.equal(trimmed, tokens[:, :13]) and not tokens[:, 13:].any()


@torch.no_grad()
def test_embeddings_are_the_normalised_mean_of_normalised_synonyms(tower, tokenizer):
    def embed(name):
        tokens = tokenizer([template(name) for template in PROMPT_TEMPLATES])
        return F.normalize(tower.encode_text(tokens), dim=-1)

    text = TextEncoder(tower, tokenizer)([("windowpane", "window"), ("sky",)])
    assert text.shape == (2, 80, 64) and text.dtype == torch.float32
    expected = F.normalize((embed("windowpane") + embed("window")) / 2, dim=-1)
    torch.testing.assert_close(text[0], expected)
    torch.testing.assert_close(text[1], embed("sky"))


def test_templates_are_the_caller_s_choice(tower, tokenizer):
    few = TextEncoder(tower, tokenizer, templates=["{}".format, PROMPT_TEMPLATES[3]])(CLASSES)
    assert few.shape == (3, 2, 64)
    torch.testing.assert_close(few[:, 1], TextEncoder(tower, tokenizer)(CLASSES)[:, 3])


def test_the_rule_first_takes_the_first_synonym(tower, tokenizer):
    first = TextEncoder(tower, tokenizer, synonyms="first")
    mean = TextEncoder(tower, tokenizer)
    torch.testing.assert_close(
        first([("windowpane", "window"), ("sky",)]), mean([("windowpane",), ("sky",)])
    )
    assert not torch.allclose(first(CLASSES)[1], mean(CLASSES)[1], atol=1e-2)


def test_an_unknown_rule_for_synonyms_is_refused(tower, tokenizer):
    with pytest.raises(ValueError, match="rule 'last' for synonyms is unknown: use mean or first"):
        TextEncoder(tower, tokenizer, synonyms="last")


def test_the_batch_size_does_not_matter(tower, tokenizer):
    classes = [("cat",), ("a very long name of a thing",), ("sky",)]
    text = TextEncoder(tower, tokenizer, batch_size=7)(classes)
    torch.testing.assert_close(text, TextEncoder(tower, tokenizer, batch_size=1000)(classes))


def test_autocast_of_the_caller_does_not_matter(tower):
    with torch.autocast("cpu", torch.bfloat16):
        text, _ = NewProcess(tower)()
    assert torch.equal(text, NewProcess(tower)()[0])


def test_a_frozen_tower_gives_the_same_tensor_without_gradients(tower):
    process = NewProcess(tower)
    text, passes = process()
    assert passes == 4 and not text.requires_grad
    again, passes = process([list(synonyms) for synonyms in CLASSES])
    assert passes == 0 and again is text


def test_a_trainable_encoder_records_gradients_and_remembers_nothing(tower, folder):
    process = NewProcess(tower, folder, trainable=True)
    for _ in range(2):
        text, passes = process()
        assert passes == 4 and text.requires_grad
    weights = torch.randn(text.shape)
    (text * weights).sum().backward()
    for name in ("token_embedding.weight", "ln_final.weight", "text_projection"):
        assert process.clip.get_parameter(name).grad.abs().sum() > 0, name
    assert not folder.exists()
    torch.testing.assert_close(text.detach(), NewProcess(tower)()[0])
    with torch.no_grad():
        assert not process()[0].requires_grad


@pytest.mark.parametrize("on_disk", [False, True])
def test_embeddings_made_in_inference_mode_serve_a_training_step(tower, folder, on_disk):
    process = NewProcess(tower, folder if on_disk else None)
    with torch.inference_mode():
        text, _ = process()
    assert not text.is_inference()
    again, passes = process()
    assert passes == 0 and again is text
    weight = torch.ones(text.shape[-1], requires_grad=True)
    (text * weight).sum().backward()  # saves the embeddings
    torch.testing.assert_close(weight.grad, text.sum(dim=(0, 1)))


def test_memory_is_bounded_and_the_least_recently_used_go_first(tower, monkeypatch):
    monkeypatch.setattr(text_module, "MEMORY_BYTES", 2 * CLASS_BYTES)
    process = NewProcess(tower)
    cat, dog, sky = ((("cat",),), (("dog",),), (("sky",),))
    for classes, passes in ((cat, 1), (dog, 1), (cat, 0), (sky, 1), (cat, 0), (dog, 1), (sky, 1)):
        assert process(classes)[1] == passes, classes


def test_the_latest_embeddings_stay_whatever_their_size(tower, monkeypatch):
    monkeypatch.setattr(text_module, "MEMORY_BYTES", CLASS_BYTES)
    process = NewProcess(tower)
    assert process()[1] == 4  # three classes
    assert process()[1] == 0
    assert process((("dog",),))[1] == 1
    assert process()[1] == 4


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("synonyms", ["mean", "first"])
@torch.no_grad()
def test_a_copy_has_its_weights_and_its_memory(tower, tokenizer, duplicate, synonyms):
    encoder = TextEncoder(copy.deepcopy(tower), tokenizer, synonyms=synonyms)
    before = encoder(CLASSES)
    other = duplicate(encoder)
    assert torch.equal(other(CLASSES), before)
    assert other(CLASSES) is not before
    other.clip.text_projection.neg_()
    torch.testing.assert_close(other(CLASSES), -before)
    assert encoder(CLASSES) is before


def test_a_copy_of_a_model_embeds_with_the_tower_of_the_copy(tiny_model):
    model = copy.deepcopy(tiny_model())
    assert model.text_encoder.clip is model.backbone.clip
    before = model.text_embeddings()
    with torch.no_grad():
        model.backbone.clip.text_projection.neg_()
    torch.testing.assert_close(model.text_embeddings(), -before)


@pytest.mark.parametrize("on_disk", [False, True])
def test_threads_share_an_encoder(tower, folder, on_disk):
    process, barrier = NewProcess(tower, folder if on_disk else None), Barrier(8)
    vocabularies = [CLASSES, *((("sky",), (f"thing {i}",)) for i in range(3))]

    def run(i):
        barrier.wait()
        return [process.encoder(vocabularies[(i + j) % 4]) for j in range(8)]

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(run, range(8)))
    expected = [NewProcess(tower)(classes)[0] for classes in vocabularies]
    for i, of_thread in enumerate(texts):
        for j, text in enumerate(of_thread):
            torch.testing.assert_close(text, expected[(i + j) % 4])
    for classes in vocabularies:
        assert process(classes)[1] == 0
