"""The embedded model: what it scores, what early rejection costs, and damaged weights."""

import hashlib
import json

import open_clip
import pytest
import torch

from sed_d2 import OpenVocabPredictor, Vocabulary, shapes
from sed_d2.shapes import embedded
from sed_d2.shapes.scores import SPLITS, score
from tools.quickstart_report import CPU, FIGURES, RECORDED_SCENES, load_embedded

#: The scores of the shipped weights on the first scenes of each split.
RECORDED = {row["kind"]: row for row in json.loads(FIGURES.read_text())["recorded"]["rows"]}


@pytest.mark.parametrize("kind", SPLITS)
def test_it_scores_what_was_recorded(kind):
    result = score(load_embedded(0), SPLITS[kind], RECORDED_SCENES)
    assert result["mIoU"] >= RECORDED[kind]["mIoU"] - 2
    assert result["objects"] >= RECORDED[kind]["objects"] - 2


@pytest.mark.parametrize("kind", SPLITS)
def test_early_rejection_among_459_names_loses_at_most_half_a_point(kind):
    """Most names are of things that no scene shows, in words that training never asked for."""
    names = shapes.vocabulary_of_size(459)
    full, early = (score(load_embedded(k), SPLITS[kind], RECORDED_SCENES, names) for k in (0, 8))
    assert early["survivors"] < 459 / 4
    assert early["mIoU"] >= full["mIoU"] - 0.5
    # These names cost little in comparison with the world's own names, all kept.
    assert early["mIoU"] >= RECORDED[kind]["mIoU"] - 2


@pytest.mark.parametrize("kind", SPLITS)
def test_half_precision_keeps_the_labels(kind):
    cfg = embedded.get_embedded_cfg(["TEST.PRECISION", "bfloat16", *CPU])
    single, half = load_embedded(0), OpenVocabPredictor(cfg)
    equal = []
    for index in range(8):
        image, _ = shapes.make_scene(index, SPLITS[kind])
        expected, labels = (model(image, shapes.CLASSES).labels for model in (single, half))
        equal.append((labels == expected).mean())
    assert sum(equal) / len(equal) >= 0.99


def test_open_clip_loads_its_clip():
    model = open_clip.create_model("shapes_convnext_atto", pretrained=str(embedded.CLIP_FILE))
    weights = torch.load(embedded.CLIP_FILE, weights_only=True)
    assert torch.equal(model.text_projection, weights["text_projection"].float())


def test_the_weights_are_small():
    assert embedded.CLIP_FILE.stat().st_size + embedded.SED_FILE.stat().st_size <= 16e6


def test_words_that_it_was_not_trained_with():
    vocabulary = Vocabulary.parse("red striped circle, giraffe|tall Giraffe, blue star, Grass")
    assert embedded.unknown_words(vocabulary) == ["giraffe", "tall", "Giraffe"]
    assert embedded.unknown_words(Vocabulary.from_names(shapes.CLASSES)) == []


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """Copies of the files, which the package looks for."""
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
