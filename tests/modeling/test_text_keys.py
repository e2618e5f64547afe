"""Cached text embeddings belong to exactly what they were made from."""

import copy

import open_clip
import pytest
import torch

from sed_d2.modeling import text_encoder
from tests.modeling.conftest import Start


@pytest.mark.parametrize(
    "synonyms", [("window",), ("window", "windowpane"), ("windowpane window",)]
)
def test_other_synonyms_are_another_class(tower, folder, synonyms):
    Start(tower, folder)()
    ours, passes = Start(tower, folder)((synonyms,))
    assert passes == len(synonyms)
    expected, _ = Start(tower, folder.parent / "other")((synonyms,))
    assert torch.equal(ours, expected)


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
def test_another_weight_is_another_tower(tower, folder, name):
    start = Start(tower, folder)
    before, _ = start()
    numbers = start.clip.get_parameter(name).view(-1)
    last = numbers[-1].clone()
    numbers[-1] += 1  # between two calls of one process
    after, passes = start()
    assert passes == 4
    cached, passes = Start(start.clip, folder)()
    assert passes == 0 and torch.equal(cached, after)
    numbers[-1] = last
    again, passes = start()
    assert passes == 0 and torch.equal(again, before)


def test_a_later_load_is_noticed(tower, folder):
    start = Start(tower, folder)
    start()
    state = {key: value.clone() for key, value in tower.state_dict().items()}
    state["text_projection"] = -state["text_projection"]
    start.clip.load_state_dict(state)
    after, passes = start()
    assert passes == 4
    before, passes = Start(tower, folder)()
    assert passes == 0
    torch.testing.assert_close(after, -before)


def test_changes_of_weights_made_in_inference_mode_are_noticed(tower, folder):
    with torch.inference_mode():
        start = Start(tower, folder)
        before, _ = start()
        start.clip.text_projection *= -1
        after, passes = start()
    assert passes == 4
    torch.testing.assert_close(after, -before)


@torch.no_grad()
def test_the_image_tower_and_the_logit_scale_do_not_matter(tower, folder):
    before, _ = Start(tower, folder)()
    other = copy.deepcopy(tower)
    other.logit_scale += 1
    for parameter in other.visual.parameters():
        parameter += 1
    after, passes = Start(other, folder)()
    assert passes == 0 and torch.equal(after, before)


def test_another_activation_or_number_of_heads_is_another_tower(tower, folder):
    Start(tower, folder)()
    other = copy.deepcopy(tower)
    other.transformer.resblocks[0].mlp.gelu = open_clip.model.QuickGELU()
    assert Start(other, folder)()[1] == 4
    other = copy.deepcopy(tower)
    attention = other.transformer.resblocks[0].attn
    attention.num_heads, attention.head_dim = 4, 16
    assert Start(other, folder)()[1] == 4


def test_other_templates_are_other_prompts(tower, folder, monkeypatch):
    Start(tower, folder)()
    templates = [*text_encoder.PROMPT_TEMPLATES[:79], "no {} at all".format]
    monkeypatch.setattr(text_encoder, "PROMPT_TEMPLATES", templates)
    start = Start(tower, folder)
    ours, passes = start()
    assert passes == 4
    start.encoder.cache = None
    assert torch.equal(ours, start()[0])


def test_another_tokenizer_is_another_text(tower, folder):
    tokenizer = open_clip.get_tokenizer("shapes_convnext_atto")

    def shorter(texts):
        return tokenizer(texts, context_length=40)

    def other_cats(texts):
        return tokenizer([text.replace("cat", "feline") for text in texts])

    def other_photos(texts):
        return tokenizer([text.replace("photo", "picture") for text in texts])

    Start(tower, folder)()
    assert Start(tower, folder, tokenizer=shorter)()[1] == 4
    assert Start(tower, folder, tokenizer=other_cats)()[1] == 1
    assert Start(tower, folder, tokenizer=other_photos)()[1] == 4
    assert Start(tower, folder)()[1] == 0


def test_a_tower_of_another_type_has_its_own_entries(tower, folder):
    Start(tower, folder)()
    half = copy.deepcopy(tower).bfloat16()
    fresh, passes = Start(half, folder)()
    assert passes == 4 and fresh.dtype == torch.bfloat16
    cached, passes = Start(half, folder)()
    assert passes == 0 and torch.equal(cached, fresh)


def test_less_exact_products_are_not_kept_for_exact_ones(tower, folder):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        Start(tower, folder)()
    finally:
        torch.set_float32_matmul_precision(before)
    assert Start(tower, folder)()[1] == 4
