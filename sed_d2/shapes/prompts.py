"""Prompts of the training names, as token ids, for the small CLIP's training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..modeling.clip.templates import PROMPT_TEMPLATES
from ..modeling.clip.text import trim
from .words import TRAIN_CLASSES


class PromptSampler:
    """Samples prompts of the training names with torch's random numbers.

    Args:
        tokenizer: open_clip's tokenizer of the model.

    Attributes:
        tokens: (P, T, L) ids, each training name in each template.
    """

    def __init__(self, tokenizer: Any):
        prompts = [template(name) for template in PROMPT_TEMPLATES for name in TRAIN_CLASSES]
        self.tokens: Tensor = trim(tokenizer(prompts)).unflatten(0, (-1, len(TRAIN_CLASSES)))
        words = {word for name in TRAIN_CLASSES for word in name.split()}
        self.name_tokens = torch.tensor(
            sorted({token for word in words for token in tokenizer.encode(word)})
        )
        self.num_word_tokens = min(tokenizer.all_special_ids)

    def sample(self) -> Tensor:
        """Return each training name in a random template, (T, L)."""
        num_templates, num_names, _ = self.tokens.shape
        return self.tokens[torch.randint(num_templates, (num_names,)), torch.arange(num_names)]

    def sample_wrong(self, count: int) -> Tensor:
        """Return prompts of names that no scene shows, (count, L).

        Random tokens replace one or more words of a training name. These prompts teach that a name
        with an unknown word fits nothing.
        """
        tokens = self.tokens.flatten(0, 1)
        tokens = tokens[torch.randint(len(tokens), (count,))]
        is_name = torch.isin(tokens, self.name_tokens)
        replaced = is_name & (torch.rand(tokens.shape) < 0.5)
        replaced |= is_name & ~replaced.any(dim=1, keepdim=True)
        return torch.where(replaced, torch.randint(self.num_word_tokens, tokens.shape), tokens)
