import re

import pytest
from detectron2.config import get_cfg

from sed_d2 import add_sed_config, get_sed_cfg

from .conftest import ROOT


def leaves(node, prefix=()):
    for key, value in node.items():
        if hasattr(value, "items"):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)


def test_every_key_that_sed_adds_is_read():
    ours = get_cfg()
    add_sed_config(ours)
    added = set(leaves(ours)) - set(leaves(get_cfg()))
    assert ("MODEL", "CLIP", "NAME") in added
    files = [p for p in (ROOT / "sed_d2").rglob("*.py") if p.name != "config.py"]
    code = "\n".join(p.read_text() for p in [*files, ROOT / "train_net.py"])
    # Read as a whole (cfg.TEST.TOPK) or from a part of the config (head.HIDDEN_DIM).
    unread = {key for key in added if not re.search(rf"\.{key[-1]}\b", code)}
    assert not unread


@pytest.mark.parametrize("name", ["convnextB_768", "convnextL_768", "shapes_quickstart"])
def test_the_configs_build_on_the_base(name):
    base = get_sed_cfg(ROOT / "configs" / "Base-SED.yaml")
    cfg = get_sed_cfg(ROOT / "configs" / f"{name}.yaml")
    assert cfg.MODEL.META_ARCHITECTURE == "SED"
    for key in ("BASE_LR", "CLIP_MULTIPLIER", "WEIGHT_DECAY_NORM", "LR_SCHEDULER_NAME"):
        assert cfg.SOLVER[key] == base.SOLVER[key]
    assert cfg.TEST.POOLING_SIZES == [1, 1]


def test_pairs_override_the_file():
    cfg = get_sed_cfg(ROOT / "configs" / "convnextB_768.yaml", ["TEST.TOPK", 3])
    assert cfg.TEST.TOPK == 3 and cfg.MODEL.CLIP.RESOLUTION == 768
