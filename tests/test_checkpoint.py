import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from sed_d2.checkpoint import SEDCheckpointer
from sed_d2.modeling.released_keys import rename_keys
from sed_d2.modeling.sed.keys import RELEASED_PREFIXES


def released(model):
    """The model's weights, other values, under the released key names."""
    from .conftest import released_shapes

    names = {key: key for key in released_shapes("b")}
    rename_keys(names, RELEASED_PREFIXES)
    torch.manual_seed(5)
    return {
        names.get(
            key, key.replace("backbone.clip.", "sem_seg_head.predictor.clip_model.")
        ): torch.randn_like(value)
        for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, SEDCheckpointer])
def test_a_released_checkpoint_loads_by_its_own_names(tiny_model, tmp_path, checkpointer):
    model = tiny_model()
    weights = released(model)
    torch.save({"model": weights}, tmp_path / "released.pth")
    checkpointer(model).load(str(tmp_path / "released.pth"))
    state = model.state_dict()
    prefix = "sem_seg_head.predictor."
    for ours, theirs in (
        ("backbone.clip.ln_final.weight", "clip_model.ln_final.weight"),
        ("sem_seg_head.decoder.cost_conv.weight", "transformer.conv1.weight"),
        ("sem_seg_head.decoder.head.bias", "transformer.head.bias"),
        ("sem_seg_head.decoder.levels.2.aux_head.weight", "transformer.head2.weight"),
        (
            "sem_seg_head.decoder.levels.1.fam.classes.mlp.2.weight",
            "transformer.decoder2.attention.MLP.2.weight",
        ),
        (
            "sem_seg_head.decoder.levels.0.sfm.norm2.bias",
            "transformer.decoder1.conv.double_conv.4.bias",
        ),
    ):
        assert torch.equal(state[ours], weights[prefix + theirs])


def test_ours_save_and_load(tiny_model, tmp_path):
    model = tiny_model()
    SEDCheckpointer(model, str(tmp_path)).save("model_0")
    other = tiny_model()
    torch.nn.init.zeros_(other.sem_seg_head.decoder.head.weight)
    SEDCheckpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def mismatched(model, path):
    weights = released(model)
    weights["sem_seg_head.predictor.transformer.head.weight"] = torch.zeros(1, 99, 3, 3)
    del weights["sem_seg_head.predictor.transformer.head0.bias"]
    weights["surplus.weight"] = torch.zeros(1)
    torch.save({"model": weights}, path)
    return str(path)


def test_a_mismatch_is_an_error_that_names_it(tiny_model, tmp_path, caplog):
    model = tiny_model()
    path = mismatched(model, tmp_path / "other.pth")
    with pytest.raises(ValueError) as error:
        SEDCheckpointer(model).load(path)
    message = str(error.value)
    assert path in message and "MODEL.WEIGHTS_STRICT" in message
    assert "1 missing, such as sem_seg_head.decoder.levels.0.aux_head.bias" in message
    assert "1 unexpected, such as surplus.weight" in message
    assert "head.weight ((1, 99, 3, 3) in the file, (1, 16, 3, 3) in the model)" in message
    assert "sem_seg_head.decoder.levels.0.aux_head.bias" in caplog.text


def test_a_mismatch_is_reported_but_allowed_on_request(tiny_model, tmp_path, caplog):
    model = tiny_model()
    before = model.sem_seg_head.decoder.head.weight.clone()
    path = mismatched(model, tmp_path / "other.pth")
    SEDCheckpointer(model, strict=False).load(path)
    assert torch.equal(model.sem_seg_head.decoder.head.weight, before)
    expected = torch.load(path)["model"]["sem_seg_head.predictor.transformer.conv1.bias"]
    assert torch.equal(model.sem_seg_head.decoder.cost_conv.bias, expected)
    for name in ("surplus.weight", "levels.0.aux_head.bias", "head.weight ((1, 99, 3, 3)"):
        assert name in caplog.text


class Planted:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('planted code ran')",))


@pytest.mark.parametrize("content", [b"", b"no weights", Planted(), 5, {"a": 1}, [torch.zeros(1)]])
def test_an_unreadable_file_is_named(tiny_model, tmp_path, content):
    path = tmp_path / "model.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"model": content}, path)
    with pytest.raises(ValueError, match="model.pth' is no readable torch weight file"):
        SEDCheckpointer(tiny_model()).load(str(path))


def test_a_save_that_fails_leaves_the_checkpoint_before(tiny_model, tmp_path, monkeypatch):
    checkpointer = SEDCheckpointer(tiny_model(), str(tmp_path))
    checkpointer.save("model_final")
    before = (tmp_path / "model_final.pth").read_bytes()

    def cut_off(data, file):
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(OSError, match="disk full"):
        checkpointer.save("model_final")
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_final.pth")


def test_a_missing_file_is_named(tiny_model):
    with pytest.raises(FileNotFoundError, match="'nowhere.pth' does not exist: .*MODEL.WEIGHTS"):
        SEDCheckpointer(tiny_model()).load("nowhere.pth")
