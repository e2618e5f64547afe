"""The paper's ablations in small: variants of the embedded model, trained for a short while."""

from __future__ import annotations

from pathlib import Path

#: Classes of a batch; fewer than in the embedded model's training, to save time.
SAMPLED_CLASSES = 48

#: The ``KEY VALUE`` pairs of each variant.
VARIANTS: dict[str, tuple[str, ...]] = {
    "full recipe": (),
    "frozen image tower": ("MODEL.CLIP.FINETUNE", "frozen"),
    "guidance not detached": ("MODEL.SEM_SEG_HEAD.GUIDANCE", "attached"),
    "no skip fusion": ("MODEL.SEM_SEG_HEAD.GUIDANCE", "none"),
}


def training_options(variant: str, clip: Path, iterations: int, output: Path) -> list[str]:
    """Return the ``KEY VALUE`` pairs that train a variant of the embedded model on the CPU.

    Args:
        variant: a key of ``VARIANTS``.
        clip: CLIP's weights, the same for all variants.
        iterations: number of batches.
        output: folder of the training.
    """
    return [
        *("MODEL.CLIP.PRETRAINED", str(clip), "MODEL.DEVICE", "cpu"),
        *("MODEL.SEM_SEG_HEAD.SAMPLED_CLASSES", str(SAMPLED_CLASSES), *VARIANTS[variant]),
        *("SOLVER.MAX_ITER", str(iterations), "SEED", "1", "OUTPUT_DIR", str(output)),
        *("DATASETS.TEST", "()", "TEST.EVAL_PERIOD", "0"),
    ]
