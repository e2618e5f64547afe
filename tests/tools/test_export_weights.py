"""Exporting a trained model: what the two files hold, and that they make one model."""

import open_clip
import pytest
import torch
from detectron2.modeling import build_model

from sed_d2.checkpoint import SEDCheckpointer
from sed_d2.shapes import embedded
from tools import export_weights


@pytest.fixture
def trained(tiny_cfg, tmp_path, monkeypatch):
    """The weights of a tiny model that was exported."""
    for name in ("CLIP_FILE", "SED_FILE", "DIGESTS"):
        monkeypatch.setattr(embedded, name, tmp_path / "weights" / getattr(embedded, name).name)
    monkeypatch.setattr(embedded, "WEIGHTS", tmp_path / "weights")
    (tmp_path / "tiny.yaml").write_text(tiny_cfg().dump())
    monkeypatch.setattr(embedded, "CONFIG_FILE", str(tmp_path / "tiny.yaml"))
    torch.manual_seed(0)
    weights = build_model(tiny_cfg()).state_dict()
    torch.save({"model": weights, "iteration": 1}, tmp_path / "model_final.pth")
    export_weights.main([str(tmp_path / "model_final.pth")])
    return weights


def test_both_files_make_the_trained_model(trained, tiny_cfg):
    weights = ["MODEL.CLIP.PRETRAINED", str(embedded.CLIP_FILE)]
    model = build_model(tiny_cfg(*weights, "MODEL.WEIGHTS", str(embedded.SED_FILE)))
    SEDCheckpointer(model).load(str(embedded.SED_FILE))
    for key, value in model.state_dict().items():
        assert torch.equal(value, trained[key].half().float()), key
    embedded.check_weights()


def test_open_clip_loads_clips_file(trained):
    model = open_clip.create_model("shapes_convnext_atto", pretrained=str(embedded.CLIP_FILE))
    for key, value in model.state_dict().items():
        assert torch.equal(value, trained[f"backbone.clip.{key}"].half().float()), key


def test_without_clips_file_parameters_are_missing(trained, tiny_cfg):
    model = build_model(tiny_cfg("MODEL.WEIGHTS", str(embedded.SED_FILE)))
    with pytest.raises(ValueError, match="missing, such as backbone.clip"):
        SEDCheckpointer(model).load(str(embedded.SED_FILE))


def test_a_part_of_clip_is_not_excused(trained, tiny_cfg, tmp_path):
    """A file that lost some of CLIP is damaged, though CLIP's own file has them all."""
    lost = "backbone.clip.visual.trunk.stem.0.weight"
    torch.save({key: value for key, value in trained.items() if key != lost}, tmp_path / "part.pth")
    model = build_model(tiny_cfg("MODEL.CLIP.PRETRAINED", str(embedded.CLIP_FILE)))
    with pytest.raises(ValueError, match=f"1 missing, such as {lost}"):
        SEDCheckpointer(model).load(str(tmp_path / "part.pth"))


@pytest.mark.parametrize("part", ["backbone.clip.", "sem_seg_head.", ""])
def test_what_is_no_whole_model_is_not_exported(trained, tmp_path, part):
    """CLIP alone, the decoder alone, and a file that torch cannot read."""
    before = embedded.DIGESTS.read_text()
    file = tmp_path / "other.pth"
    torch.save({key: value for key, value in trained.items() if key.startswith(part)}, file)
    if not part:
        file.write_bytes(b"no weights")
    with pytest.raises(SystemExit, match="other.pth' (does not match|is no readable)"):
        export_weights.main([str(file)])
    assert embedded.DIGESTS.read_text() == before
    embedded.check_weights()
