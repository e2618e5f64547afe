"""What the tests of text embeddings share."""

import copy

import open_clip
import pytest
import torch

from sed_d2.modeling.clip.convnext import build_clip
from sed_d2.modeling.clip.text import TextEncoder
from sed_d2.modeling.clip.text_cache import TextCache

CLASSES = (("cat",), ("windowpane", "window"), ("sky",))  # four names


@pytest.fixture(scope="module")
def tower():
    """An open_clip model that tells words apart, unlike one with the usual initial values.

    Tests change copies of it only.
    """
    torch.manual_seed(0)
    model = build_clip("shapes_convnext_atto").eval()
    torch.nn.init.normal_(model.token_embedding.weight)
    return model


@pytest.fixture
def folder(tmp_path):
    """Where the cache is to be; nothing is there yet."""
    return tmp_path / "some" / "cache"


class Start:
    """A text encoder as a new process has it; ``passes`` counts the tower's runs."""

    def __init__(self, tower, folder, max_bytes=10**9, tokenizer=None):
        self.clip = copy.deepcopy(tower)
        self.passes = 0
        self.clip.transformer.register_forward_pre_hook(self._count)
        tokenizer = tokenizer or open_clip.get_tokenizer("shapes_convnext_atto")
        self.encoder = TextEncoder(
            self.clip, tokenizer, batch_size=80, cache=TextCache(folder, max_bytes)
        )

    def _count(self, *args):
        self.passes += 1

    def __call__(self, classes=CLASSES):
        """The embeddings, and how many names were embedded for them."""
        self.passes = 0
        return self.encoder(classes), self.passes
