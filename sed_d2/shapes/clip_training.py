"""Training of the small CLIP from scratch, in open_clip's own format.

Each position of the dense image embedding, which is what SED reads, is matched with the names of
the training classes, each in a random prompt. Scenes are drawn on demand, and none is drawn twice.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.files import write_whole
from ..modeling.clip.convnext import CLIPConvNeXt
from ..modeling.clip.open_clip_adapter import embedding_width, encode_text
from ..modeling.clip.text import trim
from .clip_data import PHASES, Phase, SceneDataset
from .clip_model import NAME, build_backbone, cell_accuracy, embed_cells
from .muon import Muon
from .prompts import PromptSampler
from .readout import WordReadout, soft_cross_entropy
from .words import OBJECT_IDS, SEEN_IDS, TRAIN_CLASSES

#: Muon's learning rate is this multiple of AdamW's.
MUON_LR = 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the training.

    Attributes:
        output: the folder of the state and the weights.
        phases: the phases, in order.
        lr: the largest learning rate of AdamW.
        period: steps between two evaluations; each also saves the state.
        eval_scenes: scenes of each phase, seen and unseen each, in an evaluation.
        workers: processes that draw.
        seed: of the weights, scenes and prompts.
    """

    output: Path
    phases: Sequence[Phase] = PHASES
    lr: float = 2e-3
    period: int = 250
    eval_scenes: int = 64
    workers: int = 1
    seed: int = 0


class ClipTraining:
    """The model, its optimizers and the step that the training has reached.

    Args:
        options: the options of the training.
    """

    def __init__(self, options: TrainingOptions):
        self.options = options
        torch.manual_seed(options.seed)
        self.backbone = build_backbone()
        self.readout = WordReadout(embedding_width(self.backbone.clip))
        self.modules = nn.ModuleList([self.backbone, self.readout])
        self.muon, self.adamw = build_optimizers(self.backbone, self.readout)
        self.tokenizer = open_clip.get_tokenizer(NAME)
        self.prompts = PromptSampler(self.tokenizer)
        self.total_steps = sum(phase.steps for phase in options.phases)
        self.steps_done = 0
        self.state_file = options.output / "last.pth"
        phases = repr(list(options.phases))
        self.recipe = {"phases": phases, "seed": options.seed, "lr": options.lr}

    def run(self) -> None:
        """Train through the phases and write ``clip.pt``, half-precision weights, to the output.

        The training continues from the state in the output folder if there is one.

        Raises:
            ValueError: the state is that of other options.
        """
        options = self.options
        self.load_state()
        started, losses = time.monotonic(), []
        progress = tqdm(total=self.total_steps, initial=self.steps_done, unit="step", desc="CLIP")
        for images, shares in draw_batches(
            options.phases, self.steps_done, options.seed, options.workers
        ):
            losses.append(self.train_step(images, shares))
            progress.update()
            progress.set_postfix(loss=f"{losses[-1]:.2f}")
            if self.steps_done % options.period == 0 or self.steps_done == self.total_steps:
                results = {
                    "step": self.steps_done,
                    "seconds": round(time.monotonic() - started),
                    "loss": round(float(np.mean(losses)), 3),
                    **self.evaluate(),
                }
                losses.clear()
                logger.info(json.dumps(results))
                self.save_state()
        progress.close()
        weights = {key: value.half() for key, value in self.backbone.clip.state_dict().items()}
        write_whole(options.output / "clip.pt", partial(torch.save, weights))
        logger.info("CLIP weights: %s", options.output / "clip.pt")

    def train_step(self, images: Tensor, shares: Tensor) -> float:
        """Train on one batch and return its loss.

        Args:
            images: (B, 3, H, W) uint8.
            shares: (B, H / 32, W / 32, T) share of each class in each cell.
        """
        options, step = self.options, self.steps_done
        # A resumed run samples the same prompts.
        torch.manual_seed(options.seed * 10**6 + step)
        for optimizer, lr in ((self.muon, MUON_LR * options.lr), (self.adamw, options.lr)):
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(lr, step, self.total_steps)
        loss = training_loss(self.backbone, self.readout, self.prompts, images, shares)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.muon.step()
        self.adamw.step()
        self.steps_done += 1
        return loss.item()

    def evaluate(self) -> dict[str, float]:
        """Return the accuracy on new scenes of each phase, see :func:`cell_accuracy`."""
        options = self.options
        return cell_accuracy(
            self.backbone, self.tokenizer, options.phases, options.eval_scenes, options.seed
        )

    def save_state(self) -> None:
        """Write the state to ``last.pth`` in the output folder."""
        state = {
            "modules": self.modules.state_dict(),
            "optimizers": [self.muon.state_dict(), self.adamw.state_dict()],
            "step": self.steps_done,
            "recipe": self.recipe,
        }
        write_whole(self.state_file, partial(torch.save, state))

    def load_state(self) -> None:
        """Load the state of the output folder if there is one.

        Raises:
            ValueError: the state is that of other options.
        """
        if not self.state_file.is_file():
            return
        state = torch.load(self.state_file, weights_only=True)
        if state["recipe"] != self.recipe:
            raise ValueError(
                f"{self.state_file} was trained with {state['recipe']}, not with {self.recipe}; "
                "give the same options or another output folder."
            )
        self.modules.load_state_dict(state["modules"])
        for optimizer, content in zip((self.muon, self.adamw), state["optimizers"], strict=True):
            optimizer.load_state_dict(content)
        self.steps_done = state["step"]


def build_optimizers(
    backbone: CLIPConvNeXt, readout: WordReadout
) -> tuple[Muon, torch.optim.AdamW]:
    """Return Muon for the image tower's weights after the stem, and AdamW for all others."""
    matrices = [
        parameter
        for name, parameter in backbone.clip.get_submodule("visual").named_parameters()
        if parameter.ndim > 1 and not name.startswith("trunk.stem")
    ]
    matrix_ids = {id(parameter) for parameter in matrices}
    others = [
        parameter
        for parameter in (*backbone.parameters(), *readout.parameters())
        if id(parameter) not in matrix_ids
    ]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    return Muon(matrices, weight_decay=0.05), adamw


def learning_rate(largest: float, step: int, total_steps: int) -> float:
    """Return the rate at a step: a warm-up of 50 steps, then half a cosine down to 1 %."""
    return largest * min((step + 1) / 50, 0.505 + 0.495 * math.cos(math.pi * step / total_steps))


def draw_batches(
    phases: Sequence[Phase], steps_done: int, seed: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of all phases after the first ``steps_done``."""
    for phase in phases:
        skipped = min(steps_done, phase.steps)
        steps_done -= skipped
        if skipped < phase.steps:
            scenes = SceneDataset(
                phase, SEEN_IDS, seed, skipped * phase.batch, phase.steps * phase.batch
            )
            yield from DataLoader(scenes, phase.batch, num_workers=workers)


def training_loss(
    backbone: CLIPConvNeXt,
    readout: WordReadout,
    prompts: PromptSampler,
    images: Tensor,
    shares: Tensor,
) -> Tensor:
    """Return the contrastive loss of cells and names, plus the readouts of both.

    Args:
        backbone: the model.
        readout: the auxiliary readout.
        prompts: the training names in prompts.
        images: (B, 3, H, W) uint8.
        shares: (B, H / 32, W / 32, T) share of each class in each cell.
    """
    clip = backbone.clip
    targets = shares[..., : len(TRAIN_CLASSES)].flatten(0, 2)  # (N, T)
    # Backgrounds fill most of a scene and are easy.
    weights = 0.25 + 0.75 * targets[:, OBJECT_IDS.start :].sum(dim=-1)
    cells = embed_cells(backbone, images).flatten(0, 2)  # (N, C)
    tokens = torch.cat([prompts.sample(), prompts.sample_wrong(len(TRAIN_CLASSES) // 3)])
    names = F.normalize(encode_text(clip, trim(tokens)), dim=-1)  # (K, C)
    scale = clip.get_parameter("logit_scale").exp().clamp(max=100)
    logits = scale * cells @ names.T  # (N, K)
    return (
        soft_cross_entropy(logits, targets, weights)
        + readout(cells, targets, weights)
        + readout(names[: len(TRAIN_CLASSES)], torch.eye(len(TRAIN_CLASSES)))
    )
