"""A built wheel, installed away from the checkout, brings the package and all its data."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this checkout, built from a copy so that no build product is left in it."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    for name in ("sed_d2", "configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *build], check=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_every_module_and_data_file(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [p for p in (ROOT / "sed_d2").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    expected = {p.relative_to(ROOT).as_posix() for p in files}
    expected |= {f"sed_d2/configs/{p.name}" for p in (ROOT / "configs").iterdir()}
    assert packed == expected


def test_wheel_works_outside_the_checkout(wheel, tmp_path):
    target = tmp_path / "target"
    install = ["install", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *install], check=True)
    code = """
from pathlib import Path
import sed_d2

package = Path(sed_d2.__file__).parent
assert package == Path("target/sed_d2").resolve(), package
assert len(sed_d2.Vocabulary.builtin("ade20k_150")) == 150
cfg = sed_d2.get_sed_cfg(package / "configs" / "convnextL_768.yaml")
assert cfg.MODEL.META_ARCHITECTURE == "SED" and "large" in cfg.MODEL.CLIP.NAME
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
