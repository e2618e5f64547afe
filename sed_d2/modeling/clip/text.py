"""The prompt ensemble: class names -> (T, P, C) unit embeddings."""

import logging
from collections.abc import Sequence

import open_clip
import torch
from open_clip.transformer import text_global_pool
from torch import Tensor, nn
from torch.nn import functional as F

from .text_cache import TextCache, TextKeys

logger = logging.getLogger(__name__)

#: The 80 ImageNet templates in open_clip's order, which is part of SED's weights.
PROMPT_TEMPLATES = open_clip.OPENAI_IMAGENET_TEMPLATES

# Classes embedded between two writes to the cache: what a killed process loses at most.
_CLASSES_AT_ONCE = 64


class TextEncoder:
    """Embeds class names with CLIP's frozen text tower.

    It is no ``nn.Module``: the tower belongs to the backbone, which saves and moves it.

    Args:
        clip: the open_clip model that holds the text tower.
        tokenizer: texts -> (N, context length) token ids, zero-padded.
        batch_size: prompts in one pass of the tower.
        cache: where embeddings are kept between processes; None embeds at every call.
    """

    def __init__(
        self, clip: nn.Module, tokenizer, batch_size: int = 256, cache: TextCache | None = None
    ):
        self.clip = clip
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.cache = cache
        self._keys = TextKeys(clip, tokenizer)

    @torch.no_grad()
    def __call__(self, classes: Sequence[Sequence[str]]) -> Tensor:
        """Embed classes.

        Each prompt of a synonym is normalised; per template the synonyms are averaged and the
        mean is normalised again. The templates are not averaged (SED, section 3.1).

        Args:
            classes: the synonyms of each class.

        Returns:
            (T, P, C) float32 unit vectors on the tower's device.
        """
        projection = self.clip.text_projection
        text = torch.empty(
            len(classes), len(PROMPT_TEMPLATES), projection.shape[1], dtype=projection.dtype
        )
        missing = list(range(len(classes)))
        if self.cache is not None:
            keys = self._keys(classes, PROMPT_TEMPLATES)
            missing = [i for i in missing if not self.cache.read(keys[i], text[i])]
            known = len(classes) - len(missing)
            logger.info("%d of %d text embeddings are in %s", known, len(text), self.cache.folder)
        for start in range(0, len(missing), _CLASSES_AT_ONCE):
            part = missing[start : start + _CLASSES_AT_ONCE]
            text[part] = self._embed_classes([classes[i] for i in part]).cpu()
            if self.cache is not None:
                self.cache.write({keys[i]: text[i] for i in part})
        return text.to(projection.device)

    def _embed_classes(self, classes: Sequence[Sequence[str]]) -> Tensor:
        """(T, P, C) unit vectors by the tower."""
        names = list(dict.fromkeys(name for synonyms in classes for name in synonyms))
        prompts = [template(name) for name in names for template in PROMPT_TEMPLATES]
        by_name = dict(zip(names, self._embed(prompts).unflatten(0, (len(names), -1)), strict=True))
        means = [torch.stack([by_name[name] for name in synonyms]).mean(0) for synonyms in classes]
        return F.normalize(torch.stack(means), dim=-1)

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        """(N, C) unit vectors of N prompts."""
        tokens = self.tokenizer(prompts)
        device = self.clip.positional_embedding.device
        # Prompts of like length share a batch, so that little of a trimmed batch is padding.
        order = tokens.argmax(dim=-1).argsort(stable=True)
        embeddings = []
        with torch.autocast(device.type, enabled=False):
            for batch in tokens[order].split(self.batch_size):
                embeddings.append(encode_text(self.clip, trim(batch).to(device)))
        return F.normalize(torch.cat(embeddings)[order.argsort().to(device)], dim=-1)


def trim(tokens: Tensor) -> Tensor:
    """Cut (N, L) token ids right after the longest text's end-of-text token.

    The tower is causal and reads its answer at that token (the largest id), so what follows
    cannot change it.
    """
    return tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]


def encode_text(clip: nn.Module, tokens: Tensor) -> Tensor:
    """``clip.encode_text`` for sequences shorter than the context length.

    Args:
        clip: an open_clip model with a causal text tower.
        tokens: (N, L) ids, L at most the context length.

    Returns:
        (N, C), not normalised.
    """
    length = tokens.shape[1]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
    x = text_global_pool(clip.ln_final(x), tokens, clip.text_pool_type, clip.text_eos_id)
    return x @ clip.text_projection
