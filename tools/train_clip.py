"""Train the small CLIP of the world of shapes from scratch, in open_clip's own format.

    python tools/train_clip.py --output output/clip     # a second call goes on where it stopped

First come crops that one object fills, then one or two objects anywhere, then whole scenes: on
whole scenes alone the backgrounds are learned at once and the objects hardly at all. Each position
of the dense image embedding, which is what SED reads, is matched with the names of the training
classes, each in a random prompt. Pictures are drawn as they are needed, none twice. The result is
`clip.pt`, half precision, for `open_clip.create_model("shapes_convnext_atto", pretrained=...)`.
"""

import argparse
import itertools
import json
import logging
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
from detectron2.utils.logger import setup_logger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from sed_d2.cli.errors import one_sentence
from sed_d2.data.files import write_whole
from sed_d2.device import keep_freed_memory
from sed_d2.engine.solver import Muon
from sed_d2.modeling.clip.convnext import CLIPConvNeXt, build_clip
from sed_d2.modeling.clip.text import PROMPT_TEMPLATES, TextEncoder, encode_text, trim
from sed_d2.shapes import scenes as shapes
from sed_d2.shapes.pictures import PHASES, Phase, Pictures

NAME = "shapes_convnext_atto"
MUON_LR = 10
"""Muon's learning rate is this multiple of AdamW's."""

NUM_NAMES = len(shapes.TRAIN_CLASSES)
FIRST_OBJECT = shapes.SEEN_IDS.start
MEAN, STD = (
    255 * torch.tensor(values).view(3, 1, 1)
    for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
)
logger = logging.getLogger("sed_d2.train_clip")


def embed_cells(backbone: CLIPConvNeXt, images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> (B, H / 32, W / 32, C) unit vectors."""
    images = ((images - MEAN) / STD).contiguous(memory_format=torch.channels_last)
    return F.normalize(backbone(images)["embedding"].permute(0, 2, 3, 1), dim=-1)


class Prompts:
    """The training names in all templates, as token ids."""

    def __init__(self, tokenizer):
        prompts = [template(n) for template in PROMPT_TEMPLATES for n in shapes.TRAIN_CLASSES]
        # (P, T, L)
        self.tokens = trim(tokenizer(prompts)).unflatten(0, (len(PROMPT_TEMPLATES), NUM_NAMES))
        words = {word for name in shapes.TRAIN_CLASSES for word in name.split()}
        self.name_tokens = torch.tensor(sorted({i for w in words for i in tokenizer.encode(w)}))
        self.vocabulary_size = min(tokenizer.all_special_ids)

    def sample(self) -> Tensor:
        """Each name in a random template, (T, L)."""
        return self.tokens[torch.randint(len(self.tokens), (NUM_NAMES,)), torch.arange(NUM_NAMES)]

    def sample_wrong(self, count: int) -> Tensor:
        """Names that no picture shows, (count, L): random tokens in place of some of the words.

        They teach that a name with an unknown word fits nothing.
        """
        tokens = self.tokens.flatten(0, 1)
        tokens = tokens[torch.randint(len(tokens), (count,))]
        is_name = torch.isin(tokens, self.name_tokens)
        swapped = is_name & (torch.rand(tokens.shape) < 0.5)
        swapped |= is_name & ~swapped.any(dim=1, keepdim=True)
        return torch.where(swapped, torch.randint(self.vocabulary_size, tokens.shape), tokens)


class WordReadout(nn.Module):
    """Reads the words of a name from an embedding of either tower; not part of the result.

    At first the text embeddings of all names are alike and teach the image tower nothing. Reading
    words from both sides, as in bag-of-words pre-training (SuperClass, arXiv 2411.03313), makes
    the attributes directions of the common space from the start.

    Of an object, an attribute is read among the values that make a training name together with the
    other two. Else "no plain red thing is a circle" would be learned from what is held out.
    """

    SCALE = 15.0

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.ModuleList()
        for key in range(3):
            groups, held_out = attribute_values(key)
            self.register_buffer(f"groups{key}", groups, persistent=False)
            self.register_buffer(f"held_out{key}", held_out, persistent=False)
            self.layers.append(nn.Linear(dim, groups.shape[1], bias=False))

    def forward(self, embeddings: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum of the losses of colour, pattern and shape.

        Args:
            embeddings: (N, C) unit vectors.
            targets: (N, T) shares of the training names.
            weights: (N,) or None for equal weights.
        """
        loss = 0
        for key, layer in enumerate(self.layers):
            logits = self.SCALE * embeddings @ F.normalize(layer.weight, dim=-1).T
            target = targets @ getattr(self, f"groups{key}")
            masked = (targets @ getattr(self, f"held_out{key}") > 0) & (target == 0)
            loss = loss + soft_cross_entropy(logits - 1e4 * masked, target, weights)
        return loss


def attribute_values(key: int) -> tuple[Tensor, Tensor]:
    """The values of one attribute of the training names: 0 colour, 1 pattern, 2 shape.

    A background is a value of its own.

    Returns:
        one-hot rows (T, V), and (T, V) 1 where an object's name with that value in place of its
        own is held out.
    """
    names, unseen = shapes.ATTRIBUTES[:NUM_NAMES], shapes.ATTRIBUTES[NUM_NAMES:]
    values = list(dict.fromkeys(name[key] if len(name) > 1 else name for name in names))
    groups, held_out = torch.zeros(2, len(names), len(values))
    for (row, name), (column, value) in itertools.product(enumerate(names), enumerate(values)):
        groups[row, column] = value == (name[key] if len(name) > 1 else name)
        held_out[row, column] = name[:key] + (value,) + name[key + 1 :] in unseen
    return groups, held_out


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of (N, K) logits and (N, M) shares, M <= K; logits after M are wrong names."""
    loss = -(targets * logits.log_softmax(dim=-1)[:, : targets.shape[1]]).sum(dim=-1)
    return loss.mean() if weights is None else (loss * weights).sum() / weights.sum()


def training_loss(backbone, readout, prompts: Prompts, images: Tensor, shares: Tensor) -> Tensor:
    """Contrast of cells and names, and the words read from both."""
    clip = backbone.clip
    targets = shares[..., :NUM_NAMES].flatten(0, 2)  # (N, T)
    # Backgrounds fill most of a scene and are easy.
    weights = 0.25 + 0.75 * targets[:, FIRST_OBJECT:].sum(dim=-1)
    cells = embed_cells(backbone, images).flatten(0, 2)  # (N, C)
    tokens = torch.cat([prompts.sample(), prompts.sample_wrong(NUM_NAMES // 3)])
    names = F.normalize(encode_text(clip, trim(tokens)), dim=-1)
    logits = clip.logit_scale.exp().clamp(max=100) * cells @ names.T
    return (
        soft_cross_entropy(logits, targets, weights)
        + readout(cells, targets, weights)
        + readout(names[:NUM_NAMES], torch.eye(NUM_NAMES))
    )


@torch.no_grad()
def evaluate(backbone: CLIPConvNeXt, tokenizer, phases, count: int, seed: int) -> dict[str, float]:
    """Per cent of right cells among those that objects fill by at least 30 %, on new pictures.

    The names of all 84 objects are asked for, seen and unseen, averaged over the templates.

    Args:
        backbone: the model.
        tokenizer: its tokenizer.
        phases: whose pictures are looked at.
        count: number of pictures of each phase, seen and unseen each.
        seed: of the training; the pictures are those of another one.
    """
    backbone.eval()
    classes = [(name,) for name in shapes.CLASSES[FIRST_OBJECT:]]
    names = TextEncoder(backbone.clip, tokenizer)(classes).mean(1)
    accuracy = {}
    splits = (("seen", shapes.SEEN_IDS), ("unseen", shapes.UNSEEN_IDS))
    for phase, (split, ids) in itertools.product(phases, splits):
        pictures = Pictures(phase, ids, seed + 10**6, 0, count)
        right = []
        for images, shares in DataLoader(pictures, batch_size=16):
            share, label = shares[..., FIRST_OBJECT:].max(dim=-1)
            guess = (embed_cells(backbone, images) @ names.T).argmax(dim=-1)
            right.append((guess == label)[share >= 0.3])
        accuracy[f"{phase.name}_{split}"] = round(100 * torch.cat(right).float().mean().item(), 1)
    backbone.train()
    return accuracy


def build(seed: int):
    """The model, the readout and the optimizers at the start of the training."""
    torch.manual_seed(seed)
    clip = build_clip(NAME)
    # timm's initial values are for wide and very deep towers. Here its layer scale of 1e-6 would
    # shut the blocks, and weights of 0.02 leave GELU linear, for hundreds of steps.
    for name, parameter in clip.visual.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
        elif parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=parameter[0].numel() ** -0.5)
    clip.logit_scale.data.fill_(math.log(20.0))
    backbone = CLIPConvNeXt(clip=clip).to(memory_format=torch.channels_last)
    backbone.requires_grad_(True)  # the backbone freezes the text tower
    readout = WordReadout(clip.text_projection.shape[1])
    matrices = {
        parameter: None
        for name, parameter in clip.visual.named_parameters()
        if parameter.ndim > 1 and not name.startswith("trunk.stem")
    }
    others = [p for p in (*backbone.parameters(), *readout.parameters()) if p not in matrices]
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    return backbone, readout, (Muon(matrices, weight_decay=0.05), adam)


def train(phases: list[Phase], args) -> None:
    """Train through the phases, going on where a state in the output folder says."""
    backbone, readout, optimizers = build(args.seed)
    tokenizer = open_clip.get_tokenizer(NAME)
    prompts = Prompts(tokenizer)
    modules = nn.ModuleList([backbone, readout])
    state_file = args.output / "last.pth"
    total, done = sum(phase.steps for phase in phases), 0
    recipe = {"phases": repr(phases), "seed": args.seed, "lr": args.lr}
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        if state["recipe"] != recipe:
            raise ValueError(
                f"{state_file} was trained with {state['recipe']}, not with {recipe}; "
                "give the same options or another output folder."
            )
        modules.load_state_dict(state["modules"])
        for optimizer, content in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(content)
        done = state["step"]
    seconds, losses = time.monotonic(), []
    progress = tqdm(total=total, initial=done, unit="step", desc="CLIP")
    for step, (images, shares) in enumerate(batches(phases, done, args), start=done):
        torch.manual_seed(args.seed * 10**6 + step)  # so that a resumed run draws the same prompts
        for optimizer, lr in zip(optimizers, (MUON_LR * args.lr, args.lr), strict=True):
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(lr, step, total)
        loss = training_loss(backbone, readout, prompts, images, shares)
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
        progress.update()
        progress.set_postfix(loss=f"{losses[-1]:.2f}")
        if (step + 1) % args.period == 0 or step + 1 == total:
            figures = {
                "step": step + 1,
                "seconds": round(time.monotonic() - seconds),
                "loss": round(float(np.mean(losses)), 3),
                **evaluate(backbone, tokenizer, phases, args.eval_pictures, args.seed),
            }
            losses.clear()
            logger.info(json.dumps(figures))
            content = {
                "modules": modules.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step + 1,
                "recipe": recipe,
            }
            write_whole(state_file, partial(torch.save, content))
    weights = {key: value.half() for key, value in backbone.clip.state_dict().items()}
    write_whole(args.output / "clip.pt", partial(torch.save, weights))
    logger.info("CLIP weights: %s", args.output / "clip.pt")


def learning_rate(greatest: float, step: int, total: int) -> float:
    """A warm-up of 50 steps, then half a cosine down to 1 % of the greatest rate."""
    return greatest * min((step + 1) / 50, 0.505 + 0.495 * math.cos(math.pi * step / total))


def batches(phases: list[Phase], done: int, args):
    """The batches of all phases after the first `done` ones."""
    for phase in phases:
        start = min(done, phase.steps)
        done -= start
        if start < phase.steps:
            pictures = Pictures(
                phase, shapes.SEEN_IDS, args.seed, start * phase.batch, phase.steps * phase.batch
            )
            yield from DataLoader(pictures, phase.batch, num_workers=args.workers)


@one_sentence()
def main(arguments=None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/clip"), help="the folder")
    for option, what in (("steps", "number of batches"), ("batch", "pictures in a batch")):
        parser.add_argument(
            f"--{option}",
            type=int,
            nargs=len(PHASES),
            metavar=tuple(phase.name for phase in PHASES),
            default=[getattr(phase, option) for phase in PHASES],
            help=f"{what} of each phase (default: %(default)s)",
        )
    parser.add_argument("--lr", type=float, default=2e-3, help="greatest learning rate")
    for option, default, what in (
        ("period", 250, "steps between two evaluations, each with a saved state"),
        ("eval-pictures", 64, "pictures of each kind in an evaluation"),
        ("workers", 1, "processes that draw"),
        ("seed", 0, "of the weights, pictures and prompts"),
    ):
        parser.add_argument(f"--{option}", type=int, default=default, help=what)
    args = parser.parse_args(arguments)
    phases = [
        replace(phase, steps=steps, batch=batch)
        for phase, steps, batch in zip(PHASES, args.steps, args.batch, strict=True)
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    keep_freed_memory("cpu")
    setup_logger(str(args.output / "log.txt"), name="sed_d2", abbrev_name="sed")
    train(phases, args)


if __name__ == "__main__":
    main()
