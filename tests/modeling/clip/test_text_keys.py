"""The keys of cached text embeddings name everything that the embeddings are made from."""

import copy

import open_clip
import pytest
import torch

from sed_d2.modeling.clip.templates import PROMPT_TEMPLATES

from .conftest import NewProcess


@pytest.mark.parametrize(
    "synonyms", [("window",), ("window", "windowpane"), ("windowpane window",)]
)
def test_the_key_depends_on_the_synonyms(tower, folder, synonyms):
    NewProcess(tower, folder)()
    embeddings, passes = NewProcess(tower, folder)((synonyms,))
    assert passes == len(synonyms)
    expected, _ = NewProcess(tower, folder.parent / "other")((synonyms,))
    assert torch.equal(embeddings, expected)


@pytest.mark.parametrize(
    "name",
    [
        "token_embedding.weight",
        "positional_embedding",
        "transformer.resblocks.2.mlp.c_proj.bias",
        "ln_final.weight",
        "text_projection",
    ],
)
@torch.no_grad()
def test_the_key_depends_on_every_weight(tower, folder, name):
    process = NewProcess(tower, folder)
    before, _ = process()
    numbers = process.clip.get_parameter(name).view(-1)
    last = numbers[-1].clone()
    numbers[-1] += 1  # between two calls of one process
    after, passes = process()
    assert passes == 4
    cached, passes = NewProcess(process.clip, folder)()
    assert passes == 0 and torch.equal(cached, after)
    numbers[-1] = last
    again, passes = process()
    assert passes == 0 and torch.equal(again, before)


def test_loaded_weights_are_noticed(tower, folder):
    process = NewProcess(tower, folder)
    process()
    state = {key: value.clone() for key, value in tower.state_dict().items()}
    state["text_projection"] = -state["text_projection"]
    process.clip.load_state_dict(state)
    after, passes = process()
    assert passes == 4
    before, passes = NewProcess(tower, folder)()
    assert passes == 0
    torch.testing.assert_close(after, -before)


def test_changes_of_weights_made_in_inference_mode_are_noticed(tower, folder):
    with torch.inference_mode():
        process = NewProcess(tower, folder)
        before, _ = process()
        process.clip.text_projection *= -1
        after, passes = process()
    assert passes == 4
    torch.testing.assert_close(after, -before)


@torch.no_grad()
def test_the_key_does_not_depend_on_image_tower_and_logit_scale(tower, folder):
    before, _ = NewProcess(tower, folder)()
    other = copy.deepcopy(tower)
    other.logit_scale += 1
    for parameter in other.visual.parameters():
        parameter += 1
    after, passes = NewProcess(other, folder)()
    assert passes == 0 and torch.equal(after, before)


def test_the_key_depends_on_activations_and_heads(tower, folder):
    NewProcess(tower, folder)()
    other = copy.deepcopy(tower)
    other.transformer.resblocks[0].mlp.gelu = open_clip.model.QuickGELU()
    assert NewProcess(other, folder)()[1] == 4
    other = copy.deepcopy(tower)
    attention = other.transformer.resblocks[0].attn
    attention.num_heads, attention.head_dim = 4, 16
    assert NewProcess(other, folder)()[1] == 4


def test_the_key_depends_on_the_templates(tower, folder):
    NewProcess(tower, folder)()
    templates = [*PROMPT_TEMPLATES[:79], "no {} at all".format]
    embeddings, passes = NewProcess(tower, folder, templates=templates)()
    assert passes == 4
    assert torch.equal(embeddings, NewProcess(tower, templates=templates)()[0])


def test_the_rules_for_synonyms_share_entries(tower, folder):
    NewProcess(tower, folder, synonyms="first")()
    assert NewProcess(tower, folder)()[1] == 2  # "windowpane" and "window"
    assert NewProcess(tower, folder, synonyms="first")()[1] == 0


def test_the_key_depends_on_the_tokenizer(tower, folder):
    tokenizer = open_clip.get_tokenizer("shapes_convnext_atto")

    def shorter(texts):
        return tokenizer(texts, context_length=40)

    def other_cats(texts):
        return tokenizer([text.replace("cat", "feline") for text in texts])

    def other_photos(texts):
        return tokenizer([text.replace("photo", "picture") for text in texts])

    NewProcess(tower, folder)()
    assert NewProcess(tower, folder, tokenizer=shorter)()[1] == 4
    assert NewProcess(tower, folder, tokenizer=other_cats)()[1] == 1
    assert NewProcess(tower, folder, tokenizer=other_photos)()[1] == 4
    assert NewProcess(tower, folder)()[1] == 0


def test_the_key_depends_on_the_precision_of_the_tower(tower, folder):
    NewProcess(tower, folder)()
    half = copy.deepcopy(tower).bfloat16()
    fresh, passes = NewProcess(half, folder)()
    assert passes == 4 and fresh.dtype == torch.bfloat16
    cached, passes = NewProcess(half, folder)()
    assert passes == 0 and torch.equal(cached, fresh)


def test_the_key_depends_on_the_precision_of_products(tower, folder):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        NewProcess(tower, folder)()
    finally:
        torch.set_float32_matmul_precision(before)
    assert NewProcess(tower, folder)()[1] == 4
