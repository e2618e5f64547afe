"""The stages that the benchmark times, for any method that keeps the package's contracts."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor
from torch.nn import functional as F

from sed_d2 import Vocabulary, shapes
from sed_d2.checkpoint import SEDCheckpointer
from sed_d2.modeling.clip import text as text_module
from sed_d2.modeling.clip.text import TextEncoder
from sed_d2.modeling.clip.text_cache import TextCache, TextKeys
from sed_d2.modeling.layers.head_output import HeadOutput
from sed_d2.modeling.sed import decoder
from sed_d2.modeling.views import View, ViewScores, merged_labels
from tools.benchmarking.floor import Forms

#: The (height, width) of the image and of its labels.
IMAGE_SIZE = (480, 640)

#: Stage -> the fields of :class:`Case` that it depends on.
STAGES = {
    "encoder": ("dtype", "batch"),
    "text": (),
    "second start": (),
    "head": ("classes", "mode", "dtype"),
    "labels": ("classes",),
    "whole image": ("classes", "mode", "dtype", "batch"),
    "training step": ("classes", "batch"),
}

#: Stage -> its number of classes of ADE20K-847. The plain form of text takes seconds for each.
FIXED_CLASSES = {"text": 4, "second start": 847}


#: What a stage reads, and its forms.
Stage = tuple[Any, Forms]


class Case(NamedTuple):
    """A stage and its sizes."""

    stage: str  # a key of STAGES
    classes: int = 0  # T; 0 where the stage has no classes
    mode: str = "full"  # or "early" for early rejection with TEST.TOPK
    dtype: str = "float32"  # of the fast form; the plain form runs in float32
    batch: int = 1  # images at a time
    plain: bool = True  # also run the plain form

    def __str__(self) -> str:
        parts = [self.stage, self.mode if "mode" in STAGES[self.stage] else ""]
        parts += [f"T={self.classes}" if self.classes else ""]
        parts += [self.dtype if self.dtype != "float32" else ""]
        parts += [f"batch {self.batch}" if self.batch > 1 else ""]
        return ", ".join(filter(None, parts))


class Stages:
    """A model and its stages; random texts and features if asked for or without MODEL.WEIGHTS."""

    def __init__(self, cfg: CfgNode, random_inputs: bool = False):
        torch.manual_seed(0)
        self.cfg = cfg
        self.model = build_model(cfg).eval()
        SEDCheckpointer(self.model, strict=cfg.MODEL.WEIGHTS_STRICT).load(cfg.MODEL.WEIGHTS)
        # Random weights make nearly constant features, of which rejection would be arbitrary.
        self.random_inputs = random_inputs or not cfg.MODEL.WEIGHTS
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.side = cfg.MODEL.CLIP.RESOLUTION
        width = self.model.backbone.output_shape()["embedding"].channels
        self.text_shape = (len(self.model.text_encoder.templates), width)  # (P, C)

    def build(self, case: Case) -> Stage:
        """Return what a stage reads, and its forms.

        "fast" runs what inference runs, in the precision of the caller's autocast, and "plain" the
        modules' own ``forward``. Some stages have one form only.
        """
        head, early = self.model.sem_seg_head, case.mode == "early"
        if hasattr(head, "top_k"):
            head.top_k = self.cfg.TEST.TOPK if early else 0
        elif early:
            raise ValueError(f"{type(head).__name__} has no early rejection: use --modes full")
        return getattr(self, f"_{case.stage.replace(' ', '_')}")(case)

    def _encoder(self, case: Case) -> Stage:
        model, image = self.model, self._image(self.side, self.side).repeat(case.batch, 1, 1, 1)
        images = (image - model.pixel_mean) / model.pixel_std
        forms = {"fast": lambda: model.inference_forms()[0](images)}
        return images, forms | {"plain": lambda: model.backbone(images)}

    def _text(self, case: Case) -> Stage:
        """Embed names without caches; the plain form takes one class and all tokens at a time."""
        clip, tokenizer = self.model.text_encoder.clip, self.model.text_encoder.tokenizer
        encoder = TextEncoder(clip, tokenizer, trainable=True)  # keeps nothing
        classes = spaced_classes(case.classes)

        def plain() -> Tensor:
            with patch.object(text_module, "trim", lambda tokens: tokens):
                return torch.cat([encoder([names]) for names in classes])

        return (), {"fast": lambda: encoder(classes), "plain": plain}

    def _second_start(self, case: Case) -> Stage:
        """Embed names that a cache on disk has; random ones show that no text tower ran."""
        encoder, classes = self.model.text_encoder, spaced_classes(case.classes)
        folder = tempfile.TemporaryDirectory()
        keys = TextKeys(encoder.clip, encoder.tokenizer)(classes, encoder.templates)
        cached = torch.randn(len(classes), *self.text_shape)
        TextCache(Path(folder.name), 10**12).write(dict(zip(keys, cached, strict=True)))

        def fast() -> Tensor:
            cache = TextCache(Path(folder.name), 10**12)
            text = TextEncoder(encoder.clip, encoder.tokenizer, cache=cache)(classes)
            if not torch.equal(text.cpu(), cached):
                raise RuntimeError("the text tower ran, although the cache has all classes")
            return text

        return (), {"fast": fast}

    def _head(self, case: Case) -> Stage:
        model, text = self.model, self._text_embeddings(case.classes)
        if self.random_inputs:
            features = {
                name: torch.randn(1, x.channels, *[self.side // x.stride] * 2, device=self.device)
                for name, x in model.backbone.output_shape().items()
            }
        else:
            features = self._encoder(case)[1]["plain"]()
        forms = {"fast": lambda: model.inference_forms()[1](features, text)}
        return (features, text), forms | {"plain": lambda: model.sem_seg_head(features, text)}

    def _labels(self, case: Case) -> Stage:
        """Upsample scores and take the best class; the plain form holds all scores."""
        coarse = torch.randn(1, case.classes, self.side // 32, self.side // 32, device=self.device)
        scores = F.interpolate(coarse, scale_factor=8, mode="bilinear").sigmoid()
        view = View((0.0, 0.0, 1.0, 1.0), (self.side, self.side))
        scored = [ViewScores(view, scores[0], torch.arange(case.classes, device=self.device))]
        return scores, {
            "fast": lambda: merged_labels([scored], IMAGE_SIZE),
            "plain": lambda: F.interpolate(scores, IMAGE_SIZE, mode="bilinear").argmax(dim=1)[0],
        }

    def _whole_image(self, case: Case) -> Stage:
        model, text = self.model, self._text_embeddings(case.classes)
        height, width = IMAGE_SIZE
        record = {"image": self._image(height, width), "height": height, "width": width}

        def fast() -> Tensor:
            results = model([record] * case.batch, text=text, labels_only=True)
            return torch.stack([result["labels"] for result in results])

        def plain() -> Tensor:
            forms = (model.backbone, model.sem_seg_head)
            with patch.object(model, "inference_forms", lambda *_: forms):
                return fast()

        return (record, text), {"fast": fast, "plain": plain}

    def _training_step(self, case: Case) -> Stage:
        """Compute the losses and their gradients; training has one form."""
        image, text = self._image(self.side, self.side), self._text_embeddings(case.classes)
        record = {"image": image, "sem_seg": torch.randint(case.classes, image.shape[1:])}

        @torch.enable_grad()
        def step() -> None:
            sum(self.model.train()([record] * case.batch, text=text).values()).backward()
            self.model.eval().zero_grad()

        return (record, text), {"fast": step}

    def _image(self, *size: int) -> Tensor:
        """Draw a scene of the world of shapes, (3, height, width) in 0..255."""
        scene = torch.from_numpy(shapes.make_scene(0, "val_seen")[0]).permute(2, 0, 1)
        return F.interpolate(scene[None].float(), size)[0].to(self.device)

    def _text_embeddings(self, classes: int) -> Tensor:
        """Make (T, P, C) unit embeddings, of real names where the weights are trained."""
        if self.random_inputs:
            text = torch.randn(classes, *self.text_shape, device=self.device)
            return F.normalize(text, dim=-1)
        if self.cfg.MODEL.CLIP.NAME.startswith("shapes"):
            return self.model.text_embeddings(shapes.vocabulary_of_size(classes))
        return self.model.text_embeddings(Vocabulary(spaced_classes(classes)))


def spaced_classes(count: int) -> tuple[tuple[str, ...], ...]:
    """Return the synonyms of ``count`` classes evenly spaced in ADE20K-847."""
    classes = Vocabulary.builtin("ade20k_847").classes
    if count > len(classes):
        raise ValueError(f"ADE20K-847 has no {count} classes: give smaller --vocabulary-sizes")
    return tuple(classes[i * len(classes) // count] for i in range(count))


@contextmanager
def chosen_survivors(count: int) -> Iterator[None]:
    """Let SED's early rejection keep so many classes after its own choice ran; 0: that choice."""
    choose = decoder.union_of_top_k

    def union_of_top_k(logits: Tensor, k: int) -> Tensor:
        survivors, number = choose(logits, k), min(count, len(logits))
        if number < 1:
            return survivors
        return torch.arange(number, device=logits.device) * len(logits) // number

    with patch.object(decoder, "union_of_top_k", union_of_top_k):
        yield


def compare(plain: Any, fast: Any) -> dict[str, float]:
    """Measure the difference of two outputs of a stage: features, text, scores or labels."""
    if isinstance(plain, HeadOutput):  # of the first image; rejected classes score 0
        survivors = torch.cat([plain.survivors, fast.survivors])
        scores = plain.scores.new_zeros(2, int(survivors.max()) + 1, *plain.logits.shape[-2:])
        scores[0, plain.survivors], scores[1, fast.survivors] = plain.scores[0], fast.scores[0]
        return {
            **compare(*scores.argmax(dim=1)),
            "max difference": (scores[0] - scores[1]).abs().max().item(),
            "survivors": len(fast.survivors),
            "other survivors": int((survivors.unique(return_counts=True)[1] == 1).sum()),
        }
    if isinstance(plain, dict):
        return max((compare(plain[n], fast[n]) for n in plain), key=lambda x: [*x.values()])
    if plain.is_floating_point():
        difference = (plain - fast.float()).abs().max() / plain.std()
        return {"relative difference": difference.item()}
    return {"labels equal": (plain == fast).float().mean().item()}
