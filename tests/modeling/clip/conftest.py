"""What the tests of text embeddings share."""

import copy
import functools
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor, nn

from sed_d2.modeling.clip.build import build_clip
from sed_d2.modeling.clip.text import TextEncoder
from sed_d2.modeling.clip.text_cache import TextCache

#: Three classes, four names.
CLASSES = (("cat",), ("windowpane", "window"), ("sky",))


@functools.cache
def small_tokenizer():
    return open_clip.get_tokenizer("shapes_convnext_atto")


@pytest.fixture
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="session")
def tower() -> nn.Module:
    """An open_clip model that tells words apart, unlike one with the usual initial values.

    Tests change copies of it only.
    """
    torch.manual_seed(0)
    model = build_clip("shapes_convnext_atto").eval()
    nn.init.normal_(model.token_embedding.weight)
    return model


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of the cache, which does not exist yet."""
    return tmp_path / "some" / "cache"


class NewProcess:
    """A text encoder as a new process has it: with a copy of the tower and nothing in memory.

    Attributes:
        passes: runs of the text tower in the last call, one for each name.
    """

    def __init__(self, tower, folder=None, max_bytes=10**9, tokenizer=None, **settings):
        self.clip = copy.deepcopy(tower, {id(tower.visual): tower.visual})  # no copy of that
        self.passes = 0
        self.clip.transformer.register_forward_pre_hook(self._count)
        self.encoder = TextEncoder(
            self.clip,
            tokenizer or small_tokenizer(),
            batch_size=80,
            cache=None if folder is None else TextCache(folder, max_bytes),
            **settings,
        )

    def _count(self, *args) -> None:
        self.passes += 1

    def __call__(self, classes=CLASSES) -> tuple[Tensor, int]:
        """Return the embeddings and how many names were embedded for them."""
        self.passes = 0
        return self.encoder(classes), self.passes
