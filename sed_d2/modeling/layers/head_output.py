"""The output that every head shares, whatever its method."""

from typing import NamedTuple

from torch import Tensor


class HeadOutput(NamedTuple):
    """Output of a head.

    Attributes:
        logits: (B, T', h, w) of the T' surviving classes (all T where none is rejected).
        survivors: (T',) indices into the vocabulary, ascending; all other classes score 0.
        auxiliary: further logits (B, T, h', w') with a loss each, coarse to fine; () if not asked
            for.
    """

    logits: Tensor
    survivors: Tensor
    auxiliary: tuple[Tensor, ...] = ()

    @property
    def scores(self) -> Tensor:
        """(B, T', h, w) float32 scores in [0, 1] of the surviving classes."""
        return self.logits.float().sigmoid()
