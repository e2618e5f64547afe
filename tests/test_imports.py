"""What importing the package does, in a process of its own, and which rooms know of which."""

import re
import shutil
import subprocess
import sys

import pytest

from .conftest import ROOT

PACKAGE = ROOT / "sed_d2"


def run(code: str, path=ROOT):
    """Run Python in a new process and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


REGISTERED = """
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
import open_clip
assert "OpenVocabSegmenter" in META_ARCH_REGISTRY and "SEDHead" in SEM_SEG_HEADS_REGISTRY
assert {"ade20k_150_test_sem_seg", "shapes_train_sem_seg"} <= set(DatasetCatalog.list())
assert open_clip.get_model_config("shapes_convnext_atto")
"""


@pytest.mark.parametrize(
    "code",
    [
        "from sed_d2 import OpenVocabPredictor",
        "from sed_d2 import add_sed_config",
        "import sed_d2; sed_d2.Vocabulary",
        "import sed_d2; sed_d2.modeling.SEDHead",
        "import sed_d2; sed_d2.register()",
    ],
)
def test_the_first_public_name_registers_everything(code):
    run(f"{code}\n{REGISTERED}")


def test_a_predictor_registers_what_its_config_needs():
    run(
        "import torch; from sed_d2.predictor import OpenVocabPredictor\n"
        "from sed_d2.config import get_sed_cfg\n"
        "OpenVocabPredictor(get_sed_cfg('shapes_quickstart.yaml', ['MODEL.DEVICE', 'cpu']))\n"
        f"{REGISTERED}"
    )


def test_the_package_itself_loads_neither_torch_nor_detectron2():
    loaded = run("import sys, sed_d2; print({'torch', 'detectron2'} & set(sys.modules))")
    assert loaded == "set()"


def test_no_warning_filter_is_changed():
    changed = run(
        "import warnings, torch, detectron2.modeling, sed_d2; before = list(warnings.filters)\n"
        "sed_d2.register(); print(warnings.filters == before)"
    )
    assert changed == "True"


def imports(room: str) -> set[str]:
    """The top-level rooms of the package that the files of a room import."""
    found = set()
    for path in sorted((PACKAGE / room).rglob("*.py")):
        depth = len(path.relative_to(PACKAGE).parts)
        for dots, name in re.findall(r"^\s*from (\.+)([a-z_]*)", path.read_text(), re.MULTILINE):
            if len(dots) == depth:
                found.add(name)
    return found


def test_dependencies_point_one_way():
    assert not imports("data") & {"modeling", "engine", "cli", "predictor", "shapes", "config"}
    assert not imports("modeling") & {"data", "engine", "cli", "predictor", "shapes", "config"}
    assert not imports("evaluation") & {"modeling", "engine", "predictor", "shapes"}
    assert not imports("engine") & {"cli", "predictor", "shapes"}
    assert {"vocabulary", "device"} <= imports("modeling")  # the search finds something


def test_only_the_segmenter_knows_the_fast_forms(tmp_path):
    named = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"import .*\.fast|from \.+(modeling\.)?fast", path.read_text())
    ]
    assert named == ["modeling/segmenter.py"]
    copy = tmp_path / "sed_d2"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    image = ROOT / "demo" / "images" / "unseen_combinations.jpg"
    code = (
        "import sed_d2; from sed_d2.shapes.embedded import get_embedded_cfg\n"
        "p = sed_d2.OpenVocabPredictor(get_embedded_cfg(['MODEL.DEVICE', 'cpu']))\n"
        f"r = p({str(image)!r}, 'water, brick, blue star')\n"
        "print(sed_d2.__file__, type(p.model.accelerator).__name__, *(c.name for c in r.found))"
    )
    file, accelerator, *found = run(code, tmp_path).split()
    assert (file, accelerator) == (str(copy / "__init__.py"), "Accelerator")
    shutil.rmtree(copy / "modeling" / "fast")
    (copy / "modeling" / "fast" / "__pycache__").mkdir(parents=True)  # as git leaves it
    assert run(code, tmp_path).split() == [file, "NoneType", *found]
