"""The words of the world: its classes, the held-out combinations, and the distractors.

An object is named by its colour, pattern and shape: "red striped circle". A fifth of these
combinations is held out of training, so that a model can be tested on combinations of known words
that it has not seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from ..vocabulary import Vocabulary

BACKGROUNDS = ("grass", "water", "sand", "sky", "brick", "wood", "gravel", "snow")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
#: The plain pattern has no word: "blue star".
PATTERNS = ("", "striped")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")


def object_name(colour: str, pattern: str, shape: str) -> str:
    """Return the name of one combination: "red striped circle", "blue star"."""
    return " ".join(word for word in (colour, pattern, shape) if word)


def _split_combinations() -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Return the 84 combinations as (colour, pattern, shape): those of training, those held out.

    The held-out combinations are spread so that every colour, pattern and shape, and every pair of
    them, occurs in training.
    """
    seen: list[tuple[str, ...]] = []
    unseen: list[tuple[str, ...]] = []
    for (c, colour), (s, shape), (p, pattern) in itertools.product(
        enumerate(COLOURS), enumerate(SHAPES), enumerate(PATTERNS)
    ):
        (unseen if (c + 2 * s + 3 * p) % 5 == 0 else seen).append((colour, pattern, shape))
    return seen, unseen


_SEEN, _UNSEEN = _split_combinations()
#: (background,) or (colour, pattern, shape) of each class id.
ATTRIBUTES: tuple[tuple[str, ...], ...] = (*((name,) for name in BACKGROUNDS), *_SEEN, *_UNSEEN)
BACKGROUND_IDS = range(len(BACKGROUNDS))
SEEN_IDS = range(len(BACKGROUNDS), len(BACKGROUNDS) + len(_SEEN))
UNSEEN_IDS = range(SEEN_IDS.stop, len(ATTRIBUTES))
OBJECT_IDS = range(len(BACKGROUNDS), len(ATTRIBUTES))
#: The name of each class id: backgrounds, combinations of training, held-out combinations.
CLASSES = tuple(a[0] if len(a) == 1 else object_name(*a) for a in ATTRIBUTES)
TRAIN_CLASSES = CLASSES[: SEEN_IDS.stop]


def _add_looks(things: list[str]) -> list[str]:
    """Return each thing twice: one with a colour and perhaps stripes, and one without.

    The two of a pair are different things.
    """
    looks = itertools.cycle(itertools.product(COLOURS, PATTERNS))
    shuffled = [things[i] for i in np.random.RandomState(0).permutation(len(things))]
    coloured = [object_name(*look, thing) for look, thing in zip(looks, shuffled, strict=False)]
    return list(itertools.chain.from_iterable(zip(coloured, things, strict=True)))


def _without_words_of(names: Iterable[str], things: Iterable[str]) -> list[str]:
    """Return the things that share no word with ``names``."""
    words = {word for name in names for word in name.split()}
    return [thing for thing in things if words.isdisjoint(thing.split())]


_THINGS = _without_words_of(
    CLASSES, dict.fromkeys(synonyms[0] for synonyms in Vocabulary.builtin("ade20k_847").classes)
)
#: Names that training asks for and that no scene shows; no label has them. There are more of them
#: than training classes. Without them a model does not learn that a name can fit nothing.
TRAIN_DISTRACTORS = tuple(_add_looks(_THINGS[1::2])[:105])
_TEST_THINGS = _without_words_of(TRAIN_DISTRACTORS, _THINGS)


def distractors(count: int) -> tuple[str, ...]:
    """Return ``count`` names of things that no scene shows, for tests.

    They are the things of ADE20K-847 that share no word with the classes. Every other one has a
    colour and perhaps stripes: "red chair", "blue striped curtain". No word for a thing is in a
    name of training.

    Raises:
        ValueError: there are fewer, or ``count`` is negative.
    """
    names = _add_looks(_TEST_THINGS)
    if not 0 <= count <= len(names):
        raise ValueError(
            f"{count} distractors were asked for, but the world has 0 to {len(names)}: ask for "
            f"{len(CLASSES)} to {len(CLASSES) + len(names)} names in all."
        )
    return tuple(names[:count])


def vocabulary_of_size(count: int) -> tuple[str, ...]:
    """Return ``count`` names, the backgrounds and the held-out combinations among them.

    From ``len(CLASSES)`` on these are all classes and then distractors; a smaller vocabulary leaves
    out combinations of training.

    Raises:
        ValueError: ``count`` is below 25, or there are too few distractors.
    """
    if count >= len(CLASSES):
        return CLASSES + distractors(count - len(CLASSES))
    required = (*BACKGROUND_IDS, *UNSEEN_IDS)
    if count < len(required):
        raise ValueError(
            f"A vocabulary of {count} names has no room for the backgrounds and the held-out "
            f"combinations; ask for {len(required)} or more."
        )
    return tuple(CLASSES[i] for i in (*required, *SEEN_IDS[: count - len(required)]))
