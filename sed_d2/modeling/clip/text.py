"""The text encoder: class names -> (T, P, C) unit embeddings."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock

import torch
from open_clip import CLIP
from torch import Tensor
from torch.nn import functional as F

from .open_clip_adapter import embedding_width, encode_text
from .templates import PROMPT_TEMPLATES
from .text_cache import TextCache, TextKeys

logger = logging.getLogger(__name__)

#: The synonyms of a class, one entry a class.
Classes = Sequence[Sequence[str]]

#: Rule -> the synonyms of a class that are embedded.
SYNONYM_RULES: dict[str, Callable[[Sequence[str]], Sequence[str]]] = {
    "mean": lambda synonyms: synonyms,
    "first": lambda synonyms: synonyms[:1],
}

#: Classes embedded between two writes to the cache on disk; a killed process loses at most these.
CLASSES_PER_WRITE = 64

#: Bytes that the embeddings kept in memory may take; the latest ones are always kept.
MEMORY_BYTES = 1 << 29


class TextEncoder:
    """Embeds class names with CLIP's text tower.

    It is no ``nn.Module``: the backbone owns, saves and moves the tower. Several threads may call
    it at once.

    Args:
        clip: the open_clip model that holds the text tower.
        tokenizer: texts -> (N, context length) token ids, zero-padded.
        templates: name -> prompt, P of them.
        synonyms: "mean" averages the embeddings of a class's synonyms, "first" uses the first one.
        trainable: record gradients where autograd is on, and keep no embeddings.
        batch_size: prompts in one pass of the tower.
        cache: keeps embeddings of a frozen tower between processes; None embeds in each process.

    Raises:
        ValueError: the rule for synonyms is unknown.
    """

    def __init__(
        self,
        clip: CLIP,
        tokenizer: Callable[[Sequence[str]], Tensor],
        *,
        templates: Sequence[Callable[[str], str]] = PROMPT_TEMPLATES,
        synonyms: str = "mean",
        trainable: bool = False,
        batch_size: int = 256,
        cache: TextCache | None = None,
    ):
        if synonyms not in SYNONYM_RULES:
            raise ValueError(
                f"the rule '{synonyms}' for synonyms is unknown: use {' or '.join(SYNONYM_RULES)}"
            )
        self.clip = clip
        self.tokenizer = tokenizer
        self.templates = tuple(templates)
        self.synonyms = synonyms
        self.trainable = trainable
        self.batch_size = batch_size
        self.cache = cache
        self._keys = TextKeys(clip, tokenizer)
        self._memory = _Memory(MEMORY_BYTES)

    def __call__(self, classes: Classes) -> Tensor:
        """Embed classes.

        Each prompt of a synonym is normalised; per template the synonyms are averaged and the
        mean is normalised again. The templates are not averaged (SED, section 3.1).

        Args:
            classes: the synonyms of each class.

        Returns:
            (T, P, C) float32 unit vectors on the tower's device. Those of a frozen tower are kept
            in memory and shared between calls: do not change them in place.
        """
        choose = SYNONYM_RULES[self.synonyms]
        classes = tuple(tuple(choose(synonyms)) for synonyms in classes)
        if self.trainable:
            return self._embed_classes(classes)
        state = self._keys.tower_state()
        key = (classes, self.templates, state, self.clip.text_projection.device)
        text = self._memory.get(key)
        if text is None:
            # Normal tensors, whatever the caller's mode: a later training step may save them.
            with torch.inference_mode(False), torch.no_grad():
                text = self._embed_frozen(classes)
            if not self.clip.text_projection.is_inference():  # its changes cannot be seen
                self._memory.put(key, text)
        return text

    def _embed_frozen(self, classes: Classes) -> Tensor:
        """Read (T, P, C) from the cache on disk; embed and write what is not there."""
        projection = self.clip.text_projection
        text = torch.empty(
            len(classes), len(self.templates), embedding_width(self.clip), dtype=projection.dtype
        )
        missing, keys = list(range(len(classes))), []
        if self.cache is not None:
            keys = self._keys(classes, self.templates)
            missing = [i for i in missing if not self.cache.read(keys[i], text[i])]
            known = len(classes) - len(missing)
            logger.info("%d of %d text embeddings are in %s", known, len(text), self.cache.folder)
        for start in range(0, len(missing), CLASSES_PER_WRITE):
            batch = missing[start : start + CLASSES_PER_WRITE]
            text[batch] = self._embed_classes([classes[i] for i in batch]).cpu()
            if self.cache is not None:
                self.cache.write({keys[i]: text[i] for i in batch})
        return text.to(projection.device)

    def _embed_classes(self, classes: Classes) -> Tensor:
        """Compute (T, P, C) unit vectors."""
        names = list(dict.fromkeys(name for synonyms in classes for name in synonyms))
        prompts = [template(name) for name in names for template in self.templates]
        by_name = dict(zip(names, self._embed(prompts).unflatten(0, (len(names), -1)), strict=True))
        means = [torch.stack([by_name[name] for name in synonyms]).mean(0) for synonyms in classes]
        return F.normalize(torch.stack(means), dim=-1)

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        """Compute (N, C) unit vectors of N prompts."""
        tokens = self.tokenizer(prompts)
        device = self.clip.positional_embedding.device
        # Prompts of similar length share a batch, so that a trimmed batch has little padding.
        order = tokens.argmax(dim=-1).argsort(stable=True)
        embeddings = []
        with torch.autocast(device.type, enabled=False):
            for batch in tokens[order].split(self.batch_size):
                embeddings.append(encode_text(self.clip, trim(batch).to(device)))
        return F.normalize(torch.cat(embeddings)[order.argsort().to(device)], dim=-1)


class _Memory:
    """Least recently used embeddings, at most ``max_bytes`` of them and the latest in any case."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._entries: OrderedDict[tuple, Tensor] = OrderedDict()
        self._lock = Lock()

    def __deepcopy__(self, memo: dict) -> "_Memory":
        return type(self)(self.max_bytes)  # a lock cannot be copied; entries are made again

    def __reduce__(self) -> tuple:
        return type(self), (self.max_bytes,)

    def get(self, key: tuple) -> Tensor | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: tuple, text: Tensor) -> None:
        with self._lock:
            self._entries[key] = text
            while len(self._entries) > 1 and self._size() > self.max_bytes:
                self._entries.popitem(last=False)

    def _size(self) -> int:
        return sum(text.numel() * text.element_size() for text in self._entries.values())


def trim(tokens: Tensor) -> Tensor:
    """Cut (N, L) token ids right after the longest text's end-of-text token.

    The tower is causal and reads its output at that token, the largest id, so later tokens cannot
    change it.
    """
    return tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
