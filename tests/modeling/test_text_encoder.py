import open_clip
import pytest
import torch
from torch.nn import functional as F

from sed_d2.modeling.clip.text import PROMPT_TEMPLATES, TextEncoder, encode_text, trim


@pytest.fixture(scope="module")
def tokenizer():
    return open_clip.get_tokenizer("shapes_convnext_atto")


@torch.no_grad()
def test_a_trimmed_text_has_the_embedding_of_the_whole_one(tower, tokenizer):
    tokens = tokenizer(["a photo of a cat.", "a bad photo of the traffic light, at night."])
    trimmed = trim(tokens)
    assert tokens.shape == (2, 77)
    assert trimmed.shape == (2, 13)  # start, 11 tokens of the longer text, end
    torch.testing.assert_close(encode_text(tower, trimmed), tower.encode_text(tokens))


@torch.no_grad()
def test_embeddings_are_the_normalised_mean_of_normalised_synonyms(tower, tokenizer):
    def plain(name):
        tokens = tokenizer([template(name) for template in PROMPT_TEMPLATES])
        return F.normalize(tower.encode_text(tokens), dim=-1)

    encoder = TextEncoder(tower, tokenizer)
    ours = encoder([("windowpane", "window"), ("sky",)])
    assert ours.shape == (2, 80, 64)
    expected = F.normalize((plain("windowpane") + plain("window")) / 2, dim=-1)
    torch.testing.assert_close(ours[0], expected)
    torch.testing.assert_close(ours[1], plain("sky"))


def test_the_batch_size_does_not_matter(tower, tokenizer):
    classes = [("cat",), ("a very long name of a thing",), ("sky",)]
    one = TextEncoder(tower, tokenizer, batch_size=7)(classes)
    torch.testing.assert_close(one, TextEncoder(tower, tokenizer, batch_size=1000)(classes))
    assert not one.requires_grad
