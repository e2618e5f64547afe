import logging
import subprocess
import sys

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog

from sed_d2 import add_sed_config, get_sed_cfg
from sed_d2.cli.errors import sentence
from sed_d2.config import RENAMED, flatten, unread_keys, warn_of_unread_keys
from tools import config_page

from .conftest import ROOT


@pytest.fixture
def config_file(tmp_path):
    """Writes a YAML file with nested values, on top of the base config."""

    def write(name="config.yaml", base=ROOT / "configs" / "Base-SED.yaml", **values):
        path = tmp_path / name
        path.write_text(yaml.safe_dump({"_BASE_": str(base), **values}))
        return path

    return write


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
    assert cfg.MODEL.META_ARCHITECTURE == "OpenVocabSegmenter"
    for key in ("BASE_LR", "CLIP_MULTIPLIER", "WEIGHT_DECAY_NORM", "LR_SCHEDULER_NAME"):
        assert cfg.SOLVER[key] == base.SOLVER[key]
    assert cfg.TEST.POOLING_SIZES == [1, 1]


def test_pairs_override_the_file():
    cfg = get_sed_cfg(ROOT / "configs" / "convnextB_768.yaml", ["TEST.TOPK", 3])
    assert cfg.TEST.TOPK == 3 and cfg.MODEL.CLIP.RESOLUTION == 768


def test_an_unknown_config_file_names_the_shipped_ones():
    with pytest.raises(FileNotFoundError, match="'no.yaml' does not exist.*convnextB_768.yaml"):
        get_sed_cfg("no.yaml")


def test_reading_a_config_registers_no_data_set(config_file):
    before = DatasetCatalog.list()
    cfg = get_sed_cfg(config_file(DATASETS={"CUSTOM": ["absent.yaml"]}))
    assert list(cfg.DATASETS.CUSTOM) == ["absent.yaml"] and DatasetCatalog.list() == before


def test_the_config_module_imports_no_data_room():
    code = (
        "import sys, sed_d2.config\n"
        "rooms = ('sed_d2.data', 'sed_d2.engine', 'sed_d2.shapes', 'sed_d2.cli')\n"
        "sys.exit(str([name for name in sys.modules if name.startswith(rooms)] or ''))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert result.stderr.strip() == ""


@pytest.mark.parametrize("old, new", RENAMED.items())
@pytest.mark.parametrize("source", ["pair", "file", "base"])
def test_an_old_key_is_one_sentence_that_names_the_new_one(config_file, old, new, source):
    assert new in flatten(get_sed_cfg())
    section, name = old.split(".")
    path = config_file(**{section: {name: "full"}})
    arguments = {
        "pair": ("", [old, "full"]),
        "file": (path,),
        "base": (config_file("child.yaml", base=path),),
    }
    with pytest.raises(ValueError) as caught:
        get_sed_cfg(*arguments[source])
    assert sentence(caught.value) == f"config key {old} was renamed: use {new} instead"


@pytest.mark.parametrize("old, new", RENAMED.items())
def test_an_old_key_in_a_detectron2_config_names_the_new_one(old, new):
    cfg = get_cfg()
    add_sed_config(cfg)
    with pytest.raises(KeyError, match=f"{old} was renamed to {new}"):
        cfg.merge_from_list([old, "full"])


UNREAD = {
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 171,
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p2", "p3", "p4", "p5"],  # Detectron2's default
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
    "MODEL.BACKBONE.FREEZE_AT": 2,  # Detectron2's default
    "SOLVER.WEIGHT_DECAY_BIAS": 0.1,
    "TEST.AUG.MIN_SIZES": (400,),
}


def nested(values):
    """The YAML form of a config by full keys."""
    tree = {}
    for key, value in values.items():
        *parents, name = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = list(value) if isinstance(value, tuple) else value
    return tree


def test_keys_that_nothing_reads_are_named_wherever_they_are_set(config_file):
    read = {"SOLVER.BASE_LR": 1.0, "TEST.TOPK": 4, "MODEL.CLIP.FINETUNE": "frozen"}
    pairs = [x for pair in (UNREAD | read).items() for x in pair]
    assert unread_keys("convnextB_768.yaml", pairs) == sorted(UNREAD)
    path = config_file(**nested(UNREAD | read))
    assert unread_keys(path) == sorted(UNREAD)
    assert unread_keys(config_file("child.yaml", base=path), ["VIS_PERIOD", 1]) == sorted(
        [*UNREAD, "VIS_PERIOD"]
    )
    assert unread_keys("", ["TEST.PRECISE_BN", CfgNode({"NUM_ITER": 3})]) == [
        "TEST.PRECISE_BN.NUM_ITER"
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_key_of_a_shipped_config_is_read(path):
    assert unread_keys(path) == []


def test_a_key_of_a_method_that_is_not_chosen_is_named(config_file):
    path = config_file(
        MODEL={"SEM_SEG_HEAD": {"NAME": "SemSegFPNHead", "NUM_HEADS": 2, "MASK_IGNORED": True}},
        TEST={"TOPK": 3},
    )
    named = ["MODEL.SEM_SEG_HEAD.NUM_HEADS", "TEST.TOPK"]
    assert unread_keys(path) == named
    assert unread_keys(path, ["MODEL.SEM_SEG_HEAD.NAME", "SEDHead"]) == []


def test_a_written_config_sets_what_differs_from_the_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    cfg = get_sed_cfg("convnextB_768.yaml", ["TEST.TOPK", 3, "MODEL.BACKBONE.FREEZE_AT", 0])
    path.write_text(cfg.dump())
    assert unread_keys(path) == ["MODEL.BACKBONE.FREEZE_AT"]
    # Of an earlier version, with fewer keys of ours.
    del cfg.TEST["KERNELS"]
    path.write_text(cfg.dump())
    assert unread_keys(path) == ["MODEL.BACKBONE.FREEZE_AT"]


def test_unread_keys_are_one_warning(caplog):
    with caplog.at_level(logging.WARNING, "sed_d2"):
        warn_of_unread_keys("convnextB_768.yaml", ["TEST.TOPK", 3])
        assert not caplog.messages
        warn_of_unread_keys("convnextB_768.yaml", ["VIS_PERIOD", 3, "GLOBAL.HACK", 2.0])
    assert len(caplog.messages) == 1 and "GLOBAL.HACK, VIS_PERIOD" in caplog.messages[0]


def test_the_page_of_the_keys_is_current():
    text = config_page.PAGE.read_text(encoding="utf-8")
    assert text == config_page.page(), "run: python tools/config_page.py"
    added = flatten(get_sed_cfg()).keys() - flatten(get_cfg()).keys()
    rows = [
        line.split("`")[1] for line in text.split("## Renamed")[0].splitlines() if "| `" in line
    ]
    assert sorted(rows) == sorted(added)


def test_the_page_joins_the_lines_of_a_comment_and_refuses_a_key_without_one():
    def add_commented_config(cfg):
        # A comment of
        # two lines.
        cfg.MODEL.FIRST = [1, 2]

    def add_config(cfg):
        # A comment.
        cfg.MODEL.FIRST = 1
        cfg.MODEL.SECOND = 2

    row = ("MODEL.FIRST", "[1, 2]", "A comment of two lines.")
    assert config_page.documented_keys(add_commented_config) == [row]
    with pytest.raises(ValueError, match="MODEL.SECOND has no comment"):
        config_page.documented_keys(add_config)
