"""A built wheel, installed away from the checkout, brings the package and all its data."""

import email
import os
import re
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
from sed_d2.shapes.embedded import get_embedded_cfg

package = Path(sed_d2.__file__).parent
assert package == Path("target/sed_d2").resolve(), package
assert len(sed_d2.Vocabulary.builtin("ade20k_150")) == 150
cfg = sed_d2.get_sed_cfg(package / "configs" / "convnextL_768.yaml")
assert cfg.MODEL.META_ARCHITECTURE == "OpenVocabSegmenter" and "large" in cfg.MODEL.CLIP.NAME
weights = Path(get_embedded_cfg().MODEL.WEIGHTS)
assert weights.is_file() and weights.is_relative_to(package), weights
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def test_wheel_makefile_and_readme_name_the_same_pythons(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    classifiers = metadata.get_all("Classifier")
    minors = [int(c.rpartition(".")[2]) for c in classifiers if "Python :: 3." in c]
    oldest, newest = minors[0], minors[-1]
    assert minors == list(range(oldest, newest + 1))
    assert set(metadata["Requires-Python"].split(",")) == {f">=3.{oldest}", f"<3.{newest + 1}"}

    settings = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'target-version = "py3(\d+)"', settings)[1] == str(oldest)
    supported = f"3.{oldest} to 3.{newest}"
    assert f"Python 3.{oldest} or newer" in (ROOT / "README.md").read_text()
    result = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True)
    assert f"({supported})" in result.stdout


@pytest.mark.parametrize("version, refused", [((3, 9), True), ((3, 10), False), ((4, 0), True)])
def test_make_refuses_other_pythons(tmp_path, version, refused):
    for name in ("Makefile", "setup.py", "tools/install_detectron2.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    # Runs the version check as the given version, and fails at anything else.
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.version_info = {version}\n"
        "if sys.argv[1] == '--version':\n"
        f"    print('Python {version[0]}.{version[1]}.7')\n"
        "elif sys.argv[1] == '-c':\n"
        "    exec(sys.argv[2])\n"
        "else:\n"
        "    sys.exit('reached: ' + ' '.join(sys.argv[1:]))\n"
    )
    python.chmod(0o755)
    result = subprocess.run(
        ["make", "demo", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert ("reached: -m venv .venv" in result.stderr) is not refused
    sentence = (
        rf"Python 3.10 to 3.\d+ is needed, but {python} is Python {version[0]}.{version[1]}.7"
    )
    assert bool(re.search(sentence, result.stderr)) is refused, result.stderr
    assert (tmp_path / ".venv").exists() is not refused
