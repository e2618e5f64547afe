"""The auxiliary readout of colour, pattern and shape that the small CLIP is trained with."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .words import ATTRIBUTES, TRAIN_CLASSES


class WordReadout(nn.Module):
    """Predicts the words of a name from an embedding of either tower; discarded after training.

    At the start the text embeddings of all names are alike and teach the image tower nothing.
    Reading words from both towers makes the attributes directions of the common space from the
    start, as bag-of-words pre-training does (SuperClass, arXiv 2411.03313).

    An object's attribute is classified among the values that form a training name with its other
    two attributes. Otherwise the readout would learn from the held-out combinations: "no plain
    red object is a circle".

    Args:
        dim: C, the width of the embeddings.
    """

    #: Multiplies the cosine of an embedding and a value's direction.
    SCALE = 15.0

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.ModuleList()
        for attribute in range(3):
            one_hot, held_out = attribute_values(attribute)
            self.register_buffer(f"one_hot{attribute}", one_hot, persistent=False)
            self.register_buffer(f"held_out{attribute}", held_out, persistent=False)
            self.layers.append(nn.Linear(dim, one_hot.shape[1], bias=False))

    def forward(self, embeddings: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the sum of the losses of colour, pattern and shape.

        Args:
            embeddings: (N, C) unit vectors.
            targets: (N, T) shares of the training names.
            weights: (N,), or None for equal weights.
        """
        loss = embeddings.new_zeros(())
        for attribute, layer in enumerate(self.layers):
            directions = F.normalize(layer.get_parameter("weight"), dim=-1)
            logits = self.SCALE * embeddings @ directions.T  # (N, V)
            target = targets @ self.get_buffer(f"one_hot{attribute}")
            held_out = targets @ self.get_buffer(f"held_out{attribute}") > 0
            masked = held_out & (target == 0)
            loss = loss + soft_cross_entropy(logits - 1e4 * masked, target, weights)
        return loss


def attribute_values(attribute: int) -> tuple[Tensor, Tensor]:
    """Return the values of one attribute of the training names.

    A background is a value of its own.

    Args:
        attribute: 0 colour, 1 pattern, 2 shape.

    Returns:
        (T, V) one-hot rows, and (T, V) rows that are 1 at the values that turn the name into a
        held-out one.
    """
    names, unseen = ATTRIBUTES[: len(TRAIN_CLASSES)], ATTRIBUTES[len(TRAIN_CLASSES) :]
    value_of = [name[attribute] if len(name) > 1 else name for name in names]
    values = list(dict.fromkeys(value_of))
    one_hot, held_out = torch.zeros(2, len(names), len(values))
    for (row, name), (column, value) in itertools.product(enumerate(names), enumerate(values)):
        one_hot[row, column] = value == value_of[row]
        held_out[row, column] = (*name[:attribute], value, *name[attribute + 1 :]) in unseen
    return one_hot, held_out


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of soft targets.

    Args:
        logits: (N, K).
        targets: (N, M) shares, M <= K; the logits from M on belong to wrong names.
        weights: (N,), or None for equal weights.
    """
    loss = -(targets * logits.log_softmax(dim=-1)[:, : targets.shape[1]]).sum(dim=-1)
    return loss.mean() if weights is None else (loss * weights).sum() / weights.sum()
