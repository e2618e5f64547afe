import pytest
import torch

from sed_d2.modeling.clip.build import build_clip


def test_errors_name_the_key_and_the_way_out(tmp_path):
    with pytest.raises(ValueError, match="'convnext_base_w_32O' .* convnext_base_w_320"):
        build_clip("convnext_base_w_32O")
    with pytest.raises(ValueError, match="'ViT-B-32' has no ConvNeXt image tower"):
        build_clip("ViT-B-32")
    with pytest.raises(ValueError, match="PRETRAINED 'no_such_tag'"):
        build_clip("shapes_convnext_atto", "no_such_tag")
    damaged = tmp_path / "clip.pt"
    damaged.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="clip.pt"):
        build_clip("shapes_convnext_atto", str(damaged))


def test_weights_come_from_a_local_file(tmp_path):
    clip = build_clip("shapes_convnext_atto")
    path = tmp_path / "clip.pt"
    torch.save(clip.state_dict(), path)
    again = build_clip("shapes_convnext_atto", str(path))
    assert torch.equal(again.text_projection, clip.text_projection)
