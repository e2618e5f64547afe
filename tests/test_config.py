import re

import pytest
import yaml
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
    code = "\n".join(p.read_text() for p in [*files, ROOT / "sed_d2" / "config.py"])
    # A part of the config has a name of its own where several of its keys are read.
    parts = {"SEM_SEG_HEAD": "head", "AUG": "augment", "CROP": "crop", "SLIDING": "sliding"}
    unread = []
    for *_, part, key in added:
        node = rf"(?:{part}|{parts.get(part, part.lower())})"
        # The line that adds a key assigns to it.
        if not re.search(rf"\b{node}\.{key}\b(?! =)", code):
            unread.append(f"{part}.{key}")
    assert not unread


def test_a_config_file_cannot_run_code(tmp_path):
    path = tmp_path / "hostile.yaml"
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{tmp_path / 'ran'}']\n")
    with pytest.raises(yaml.YAMLError):
        get_sed_cfg(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["convnextB_768", "convnextL_768"])
def test_the_papers_models_have_the_papers_recipe(name):
    base = get_sed_cfg(ROOT / "configs" / "Base-SED.yaml")
    cfg = get_sed_cfg(ROOT / "configs" / f"{name}.yaml")
    assert cfg.MODEL.META_ARCHITECTURE == "SED"
    for key in ("BASE_LR", "CLIP_MULTIPLIER", "WEIGHT_DECAY_NORM", "LR_SCHEDULER_NAME"):
        assert cfg.SOLVER[key] == base.SOLVER[key]
    assert cfg.TEST.POOLING_SIZES == [1, 1]


def test_pairs_override_the_file():
    cfg = get_sed_cfg(ROOT / "configs" / "convnextB_768.yaml", ["TEST.TOPK", 3])
    assert cfg.TEST.TOPK == 3 and cfg.MODEL.CLIP.RESOLUTION == 768
