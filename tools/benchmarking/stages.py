"""The stages that `tools/benchmark.py` measures, each in our form and in the plain one."""

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import transforms
from detectron2.modeling import build_model
from open_clip import get_tokenizer
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sed_d2 import Vocabulary, shapes
from sed_d2.checkpoint import SEDCheckpointer
from sed_d2.data.files import read_image
from sed_d2.modeling.clip.text import PROMPT_TEMPLATES, TextEncoder
from sed_d2.modeling.clip.text_cache import TextCache, TextKeys
from sed_d2.modeling.sed.head import SKIP_FEATURES, cost_map
from sed_d2.modeling.views import ViewScores, merged_labels, merged_scores
from tools.benchmarking import floor, plain

OUTPUT_SIZE = (480, 640)
"""Height and width of the picture that is read and that labels are made for."""


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        stage: "read", "encoder", "text", "second start", "cost map", "decoder", "upsampling",
            "labels" (upsampling and argmax) or "whole image".
        classes: T.
        mode: "full", or "early" for early rejection with TEST.TOPK.
        dtype: of ours, by autocast; plain is always float32.
        batch: images at a time.
        plain: whether the plain form is measured too.
    """

    stage: str
    classes: int = 0
    mode: str = "full"
    dtype: str = "float32"
    batch: int = 1
    plain: bool = True

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the dtype."""
        return getattr(torch, self.dtype).itemsize


class Pair(NamedTuple):
    """The two forms of a stage.

    Attributes:
        ours: runs the package's form.
        plain: runs the plain one; None where there is none.
        check: compares the answers (plain's, ours); where there is no plain form, looks at ours.
        work: multiply-adds and bytes of each part, given the survivors of each level that rejected;
            empty where a file is what takes the time.
        parts: the names of the parts.
    """

    ours: Callable[[], object]
    plain: Callable[[], object] | None
    check: Callable[[object, object], dict[str, float]]
    work: Callable[[list[int]], list[floor.Work]]
    parts: tuple[str, ...] = ()


class Bench:
    """A model and the pairs of its stages.

    Args:
        cfg: config of the model.
        needs_plain: whether a plain form is measured, which takes a copy of the weights.
        structured: random texts and features also where MODEL.WEIGHTS are given.
    """

    def __init__(self, cfg, needs_plain: bool, structured: bool = False):
        cfg.MODEL.AUTOCAST = ""  # each case has its own
        self.cfg = cfg
        self.device = torch.device(cfg.MODEL.DEVICE)
        torch.manual_seed(0)
        self.model = build_model(cfg).eval()
        # Of a picture, random weights make nearly the same everywhere.
        self.structured = structured or not cfg.MODEL.WEIGHTS
        SEDCheckpointer(self.model, strict=cfg.MODEL.WEIGHTS_STRICT).load(cfg.MODEL.WEIGHTS)
        self.resolution = cfg.MODEL.CLIP.RESOLUTION
        self.head = self.model.sem_seg_head
        self.text_encoder = self.model.text_encoder
        self.clip = self.model.backbone.clip
        if needs_plain:
            self.visual = plain.plain_copy(self.clip.visual)
            self.plain_decoder = plain.plain_copy(self.head.decoder)
        # When a level of the decoder begins: both forms ask once a level for its image guidance.
        self.marks: list[float] = []
        decoders = [self.head.decoder, *([self.plain_decoder] if needs_plain else [])]
        for decoder in decoders:
            for level in decoder.levels:
                level.image_guidance.register_forward_pre_hook(self._mark)

    def _mark(self, *_) -> None:
        self.marks.append(floor.clock(self.device))

    def pair(self, case: Case) -> Pair:
        """The two forms of a case's stage, with inputs."""
        self.top_k = self.cfg.TEST.TOPK if case.mode == "early" else 0
        self.model.top_k = self.top_k
        return getattr(self, f"_{case.stage.replace(' ', '_')}")(case)

    def autocast(self, dtype: str):
        """Where ours runs in another dtype."""
        if dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, dtype))

    def _picture(self) -> np.ndarray:
        """A scene of the world of shapes, (height, width, 3) uint8."""
        scene, _ = shapes.make_scene(0, "val_seen")
        return np.asarray(Image.fromarray(scene).resize(OUTPUT_SIZE[::-1], Image.BILINEAR))

    def _resized(self, picture: np.ndarray) -> Tensor:
        """What Detectron2's mapper makes of a picture, (3, H, W) uint8."""
        size = self.cfg.INPUT.MIN_SIZE_TEST
        resize = transforms.ResizeShortestEdge([size, size], self.cfg.INPUT.MAX_SIZE_TEST)
        resized = resize.get_transform(picture).apply_image(picture)
        return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))

    def _plain_images(self, count: int) -> Tensor:
        """The picture as the encoder sees it, (count, 3, R, R)."""
        image = self._resized(self._picture()).to(self.device)
        mean, std = self.model.pixel_mean, self.model.pixel_std
        return plain.plain_preprocess(image, mean, std, self.resolution).repeat(count, 1, 1, 1)

    def vocabulary(self, count: int) -> Vocabulary:
        """Names for ``count`` classes: real ones of a trained model, else numbers."""
        if self.structured:
            return Vocabulary.from_names([f"class {i}" for i in range(count)])
        if self.cfg.MODEL.CLIP.NAME.startswith("shapes"):
            names = shapes.CLASSES[:count]
            return Vocabulary.from_names(
                names if count == len(names) else shapes.vocabulary_of_size(count)
            )
        return _spaced(Vocabulary.builtin("ade20k_847"), count)

    def text(self, vocabulary: Vocabulary) -> Tensor:
        """(T, P, C): real embeddings of a trained model, else random unit vectors."""
        if not self.structured:
            return self.text_encoder(vocabulary.classes)
        width = self.clip.text_projection.shape[1]
        text = torch.randn(len(vocabulary), len(PROMPT_TEMPLATES), width, device=self.device)
        return F.normalize(text, dim=-1, out=text)

    def _read(self, case: Case) -> Pair:
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name, "picture.jpg")
        Image.fromarray(self._picture()).save(path, quality=95)

        def ours(folder=folder):  # the folder lives as long as this function
            image = self._resized(read_image(path)).to(self.device)
            image = (image - self.model.pixel_mean) / self.model.pixel_std
            return [view.cut(image) for group in self.model.views(*OUTPUT_SIZE) for view in group]

        return Pair(ours, None, no_check, lambda _: [])

    def _encoder(self, case: Case) -> Pair:
        images = self._plain_images(case.batch)
        size = images.shape[-2:]
        work = floor.encoder_work(self.clip.visual, size, case.batch, case.itemsize)
        return Pair(
            lambda: self.model.backbone(images),
            lambda: plain.plain_encode(self.visual, images),
            relative_difference,
            lambda _: [work],
        )

    def _text(self, case: Case) -> Pair:
        classes = _spaced(Vocabulary.builtin("ade20k_847"), case.classes).classes
        tokenizer = get_tokenizer(self.cfg.MODEL.CLIP.NAME)
        prompts = [t(name) for names in classes for name in names for t in PROMPT_TEMPLATES]
        lengths = (tokenizer(prompts).argmax(dim=-1) + 1).tolist()
        work = floor.text_work(self.clip, lengths)
        return Pair(
            # A new encoder without a cache on disk: nothing is known.
            lambda: {"text": TextEncoder(self.clip, tokenizer)(classes)},
            lambda: {"text": plain.plain_text(self.clip, tokenizer, classes)},
            relative_difference,
            lambda _: [work],
        )

    def _second_start(self, case: Case) -> Pair:
        """The cache is filled with random vectors under the true keys; what they are is nothing."""
        classes = _spaced(Vocabulary.builtin("ade20k_847"), case.classes).classes
        tokenizer = get_tokenizer(self.cfg.MODEL.CLIP.NAME)
        folder = tempfile.TemporaryDirectory()
        keys = TextKeys(self.clip, tokenizer)(classes, PROMPT_TEMPLATES)
        width = self.clip.text_projection.shape[1]
        entries = {key: torch.randn(len(PROMPT_TEMPLATES), width) for key in keys}
        TextCache(Path(folder.name), 10**12).write(entries)
        passes = []
        self.clip.transformer.register_forward_pre_hook(lambda *_: passes.append(1))

        def ours(folder=folder):
            cache = TextCache(Path(folder.name), 10**12)
            TextEncoder(self.clip, tokenizer, cache=cache)(classes)
            return {"text_passes": len(passes)}

        return Pair(ours, None, lambda _, answer: answer, lambda _: [])

    def _cost_map(self, case: Case) -> Pair:
        text = self.text(self.vocabulary(case.classes))
        side = self.resolution // self.model.backbone.size_divisibility
        embedding = torch.randn(1, text.shape[2], side, side, device=self.device)
        work = floor.cost_map_work(*text.shape, side * side, case.itemsize)
        return Pair(
            lambda: {"cost map": cost_map(embedding, text)},
            lambda: {"cost map": plain.plain_cost_map(embedding, text)},
            relative_difference,
            lambda _: [work],
        )

    def _decoder(self, case: Case) -> Pair:
        text = self.text(self.vocabulary(case.classes))
        features = self._features()
        cost = cost_map(features["embedding"], text).contiguous()
        skips = [features[name].contiguous() for name in SKIP_FEATURES]
        options = {"pooling": self.head.test_pooling, "top_k": self.top_k}

        def scores(answer) -> Tensor:
            all_classes = torch.zeros(case.classes, *answer[0].shape[-2:], device=self.device)
            all_classes[answer[1]] = answer[0][0].float().sigmoid()
            return all_classes

        return Pair(
            lambda: self.head.decoder(cost, skips, **options),
            lambda: plain.plain_decode(self.plain_decoder, cost, skips, **options),
            lambda theirs, ours: compare_scores(scores(theirs), scores(ours)),
            lambda survivors: self._decoder_work(case, survivors),
            ("7×7 convolution", *(f"level {i + 1}" for i in range(len(skips)))),
        )

    def _features(self) -> dict[str, Tensor]:
        """The encoder's answer to the picture; random where weights are."""
        if not self.structured:
            return self.model.backbone(self._plain_images(1))
        side, shapes_of = self.resolution, self.model.backbone.output_shape()
        return {
            name: torch.randn(1, s.channels, side // s.stride, side // s.stride).to(self.device)
            for name, s in shapes_of.items()
        }

    def _alive(self, case: Case, survivors: list[int]) -> list[int]:
        """T and the classes at each level; a level with too few to reject any keeps all."""
        alive = [case.classes, *survivors]
        return alive + alive[-1:] * (1 + len(self.head.decoder.levels) - len(alive))

    def _decoder_work(self, case: Case, survivors: list[int]) -> list[floor.Work]:
        side = self.resolution // self.model.backbone.size_divisibility
        return floor.decoder_work(
            self.head.decoder,
            self._alive(case, survivors),
            (side, side),
            rejects=bool(survivors),
            itemsize=case.itemsize,
        )

    def _decoded(self, case: Case) -> Tensor:
        """Logits as the decoder gives them, smooth enough to have regions, (1, T, h, w)."""
        side = self.resolution // self.model.backbone.size_divisibility
        coarse = torch.randn(1, case.classes, side, side, device=self.device)
        return F.interpolate(coarse, scale_factor=8, mode="bilinear")

    def _views(self, logits: Tensor) -> list[list[ViewScores]]:
        view = self.model.views(*OUTPUT_SIZE)[0][0]
        classes = torch.arange(logits.shape[1], device=self.device)
        return [[ViewScores(view, logits[0].float().sigmoid(), classes)]]

    def _upsampling(self, case: Case) -> Pair:
        logits = self._decoded(case)

        def ours():
            groups = self._views(logits)
            for _, scores in merged_scores(groups, groups[0][0].survivors, OUTPUT_SIZE):
                del scores  # none is kept, as where labels are made

        work = floor.labels_work(case.classes, logits.shape[-2:], OUTPUT_SIZE)
        return Pair(
            ours, lambda: plain.plain_upsample(logits, OUTPUT_SIZE), no_check, lambda _: [work]
        )

    def _labels(self, case: Case) -> Pair:
        logits = self._decoded(case)
        work = floor.labels_work(case.classes, logits.shape[-2:], OUTPUT_SIZE)
        return Pair(
            lambda: merged_labels(self._views(logits), OUTPUT_SIZE),
            lambda: plain.plain_upsample(logits, OUTPUT_SIZE)[0].argmax(dim=0),
            lambda theirs, ours: {"argmax_equal": (theirs == ours).float().mean().item()},
            lambda _: [work],
        )

    def _whole_image(self, case: Case) -> Pair:
        vocabulary = self.vocabulary(case.classes)
        text = self.text(vocabulary)
        self.model.text_encoder = lambda classes: text
        self.model.set_vocabulary(vocabulary)
        image = self._resized(self._picture())
        height, width = OUTPUT_SIZE
        records = [{"image": image, "height": height, "width": width}] * case.batch

        def theirs():
            mean, std = self.model.pixel_mean, self.model.pixel_std
            images = [
                plain.plain_preprocess(r["image"].to(self.device), mean, std, self.resolution)
                for r in records
            ]
            scores = plain.plain_segment(
                self.visual,
                self.plain_decoder,
                torch.cat(images),
                text,
                OUTPUT_SIZE,
                pooling=self.head.test_pooling,
                top_k=self.top_k,
            )
            return scores, scores.argmax(dim=1)

        def check(theirs, ours):
            scores, labels = theirs
            equal = torch.stack([answer["labels"] for answer in ours]) == labels
            with self.autocast(case.dtype):
                own = self.model(records[:1])[0]["sem_seg"]
            return {
                "argmax_equal": equal.float().mean().item(),
                "max_difference": (scores[0] - own).abs().max().item(),
            }

        def work(survivors: list[int]) -> list[floor.Work]:
            side = self.resolution // self.model.backbone.size_divisibility
            alive = self._alive(case, survivors)
            parts = [
                floor.cost_map_work(*text.shape, side * side, case.itemsize),
                *self._decoder_work(case, survivors),
                floor.labels_work(alive[-1], (8 * side, 8 * side), OUTPUT_SIZE),
            ]
            # The parts of one image, for each of the batch, and the encoder of all.
            square = (self.resolution, self.resolution)
            encoder = floor.encoder_work(self.clip.visual, square, case.batch, case.itemsize)
            return [sum(parts * case.batch, encoder)]

        return Pair(lambda: self.model(records, labels_only=True), theirs, check, work)


def _spaced(vocabulary: Vocabulary, count: int) -> Vocabulary:
    """``count`` classes evenly spaced in a vocabulary."""
    if not 1 <= count <= len(vocabulary):
        raise ValueError(
            f"{count} classes were asked for, but {vocabulary.source} has {len(vocabulary)}: give "
            "smaller --vocabulary-sizes"
        )
    chosen = [i * len(vocabulary) // count for i in range(count)]
    return Vocabulary(tuple(vocabulary[i] for i in chosen), vocabulary.source)


def no_check(*_) -> dict[str, float]:
    """For a stage with nothing to compare."""
    return {}


def relative_difference(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, float]:
    """The greatest difference of any tensor, in standard deviations of plain's."""
    return {
        "relative_difference": max(
            ((theirs[name] - ours[name].float()).abs().max() / theirs[name].std()).item()
            for name in theirs
        )
    }


def compare_scores(theirs: Tensor, ours: Tensor) -> dict[str, float]:
    """The share of pixels of equal argmax, and the greatest difference, of (T, h, w) scores."""
    return {
        "argmax_equal": (theirs.argmax(0) == ours.argmax(0)).float().mean().item(),
        "max_difference": (theirs - ours).abs().max().item(),
    }
