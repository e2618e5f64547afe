"""The small CLIP of the world: its initial weights, its embeddings and its accuracy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ..modeling.clip.build import build_clip
from ..modeling.clip.convnext import CLIPConvNeXt
from ..modeling.clip.text import TextEncoder
from .clip_data import Phase, SceneDataset
from .words import CLASSES, OBJECT_IDS, SEEN_IDS, UNSEEN_IDS

#: The model's name in open_clip.
NAME = "shapes_convnext_atto"

MEAN, STD = (
    255 * torch.tensor(values).view(3, 1, 1)
    for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
)


def build_backbone() -> CLIPConvNeXt:
    """Return the model with its initial weights, both towers trainable."""
    clip = build_clip(NAME)
    # timm's initial values are for wide and very deep towers. In this tower a layer scale of 1e-6
    # would switch the blocks off, and weights of 0.02 keep GELU linear, for hundreds of steps.
    for name, parameter in clip.get_submodule("visual").named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
        elif parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=parameter[0].numel() ** -0.5)
    clip.get_parameter("logit_scale").data.fill_(math.log(20.0))
    backbone = CLIPConvNeXt(clip=clip).to(memory_format=torch.channels_last)
    return backbone.requires_grad_(True)  # CLIPConvNeXt freezes the text tower


def embed_cells(backbone: CLIPConvNeXt, images: Tensor) -> Tensor:
    """Embed images: (B, 3, H, W) uint8 -> (B, H / 32, W / 32, C) unit vectors."""
    images = ((images - MEAN) / STD).contiguous(memory_format=torch.channels_last)
    return F.normalize(backbone(images)["embedding"].permute(0, 2, 3, 1), dim=-1)


@torch.no_grad()
def cell_accuracy(
    backbone: CLIPConvNeXt, tokenizer: Any, phases: Sequence[Phase], count: int, seed: int
) -> dict[str, float]:
    """Return the accuracy, in percent, of the cells that an object fills by at least 30 %.

    The candidates are the names of all 84 objects, averaged over the templates.

    Args:
        backbone: the model.
        tokenizer: its tokenizer.
        phases: the phases whose scenes are used.
        count: number of scenes of each phase, seen and unseen each.
        seed: of the training; the evaluation draws its scenes from another one.
    """
    backbone.eval()
    objects = [(name,) for name in CLASSES[OBJECT_IDS.start :]]
    names = TextEncoder(backbone.clip, tokenizer)(objects).mean(1)
    accuracy = {}
    for phase, (kind, object_ids) in itertools.product(
        phases, (("seen", SEEN_IDS), ("unseen", UNSEEN_IDS))
    ):
        scenes = SceneDataset(phase, object_ids, seed + 10**6, 0, count)
        correct = []
        for images, shares in DataLoader(scenes, batch_size=16):
            share, label = shares[..., OBJECT_IDS.start :].max(dim=-1)
            predicted = (embed_cells(backbone, images) @ names.T).argmax(dim=-1)
            correct.append((predicted == label)[share >= 0.3])
        accuracy[f"{phase.name}_{kind}"] = round(100 * torch.cat(correct).float().mean().item(), 1)
    backbone.train()
    return accuracy
