"""The embedded model: what it scores, what early rejection costs, and damaged weights."""

import hashlib
import json

import open_clip
import pytest
import torch

from sed_d2 import Vocabulary, embedded
from sed_d2.predictor import OpenVocabPredictor
from sed_d2.shapes import scenes as shapes
from tools import quickstart_report as report

FIGURES = {row["kind"]: row for row in json.loads(report.FIGURES.read_text())["recorded"]["rows"]}
"""What the shipped weights scored on the first scenes of each split."""


@pytest.fixture(scope="module")
def predictor():
    """Builds the embedded model with early rejection at k; 0 keeps all classes."""
    return lambda k: OpenVocabPredictor(embedded.get_embedded_cfg(report.rejection(k)))


@pytest.mark.parametrize("kind", ["seen", "unseen"])
def test_it_scores_what_was_recorded(predictor, kind):
    figures = report.evaluate(predictor(0), report.SPLITS[kind], report.RECORDED_SCENES)
    assert figures["mIoU"] >= FIGURES[kind]["mIoU"] - 2
    assert figures["objects"] >= FIGURES[kind]["objects"] - 2


@pytest.mark.parametrize("kind", ["seen", "unseen"])
def test_early_rejection_among_459_names_loses_at_most_half_a_point(predictor, kind):
    """Most are of things that no scene shows, by words that training never asked for."""
    ids, names = report.vocabulary_of(459)
    full, early = (
        report.evaluate(predictor(k), report.SPLITS[kind], report.RECORDED_SCENES, ids, names)
        for k in (0, 8)
    )
    assert early["survivors"] < 459 / 4
    assert early["mIoU"] >= full["mIoU"] - 0.5
    # Nor do these names cost much, beside all of the world's own names kept.
    assert early["mIoU"] >= FIGURES[kind]["mIoU"] - 2


@pytest.mark.parametrize("kind", ["seen", "unseen"])
def test_half_precision_keeps_the_labels(predictor, kind):
    cfg = embedded.get_embedded_cfg(["MODEL.AUTOCAST", "bfloat16", *report.rejection(0)])
    whole, half = predictor(0), OpenVocabPredictor(cfg)
    same = []
    for number in range(8):
        image, _ = shapes.make_scene(number, report.SPLITS[kind])
        own, other = (model(image, shapes.CLASSES).labels for model in (whole, half))
        same.append((own == other).mean())
    assert sum(same) / len(same) >= 0.99


def test_its_clip_is_open_clips_own():
    model = open_clip.create_model("shapes_convnext_atto", pretrained=str(embedded.CLIP_FILE))
    weights = torch.load(embedded.CLIP_FILE, weights_only=True)
    assert torch.equal(model.text_projection, weights["text_projection"].float())


def test_the_weights_are_small():
    assert embedded.CLIP_FILE.stat().st_size + embedded.SED_FILE.stat().st_size <= 16e6


def test_words_that_it_never_learned():
    vocabulary = Vocabulary.parse("red striped circle, giraffe|tall Giraffe, blue star, Grass")
    assert embedded.unknown_words(vocabulary) == ["giraffe", "tall", "Giraffe"]
    assert embedded.unknown_words(Vocabulary.from_names(shapes.CLASSES)) == []


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A copy of the files, where they are looked for."""
    for name in ("CLIP_FILE", "SED_FILE", "DIGESTS"):
        file = tmp_path / getattr(embedded, name).name
        file.write_bytes(getattr(embedded, name).read_bytes())
        monkeypatch.setattr(embedded, name, file)
    embedded.check_weights()


@pytest.mark.parametrize("name", ["CLIP_FILE", "SED_FILE"])
def test_damaged_and_missing_weights(copies, name):
    file = getattr(embedded, name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name}' is damaged.*make quickstart"):
        embedded.get_embedded_cfg()
    file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file.name}' is missing.*make quickstart"):
        embedded.get_embedded_cfg()


def test_digests_are_as_sha256sum_writes_them(tmp_path):
    file = tmp_path / "some.pt"
    file.write_bytes(b"weights")
    assert embedded.digest_line(file) == f"{hashlib.sha256(b'weights').hexdigest()}  some.pt\n"
