"""The installer is run for real, on a small archive of the same layout, in throw-away venvs."""

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "install_detectron2.py"

FILES = {
    # pip runs setup.py to learn the metadata; the marker tells whether it did.
    "setup.py": "import os, pathlib, setuptools\n"
    "pathlib.Path(os.environ['SETUP_RAN']).touch()\n"
    "setuptools.setup(name='pb1-detectron2', version='0.6', packages=[])\n",
    "setup.cfg": "[metadata]\ndescription = not ours\n",
    "detectron2/__init__.py": "__version__ = '0.6'\n",
    "detectron2/engine/__init__.py": "import old_os\n",
    "detectron2/model_zoo/__init__.py": "",
    "detectron2/model_zoo/configs/COCO/base.yaml": "VERSION: 2\n",
    "detectron2/projects/__init__.py": "",
    "projects/DeepLab/deeplab/__init__.py": "",
    "projects/Panoptic-DeepLab/panoptic_deeplab/__init__.py": "",
    "projects/PointRend/point_rend/__init__.py": "NAME = 'point_rend'\n",
}
ENGINE = "detectron2/engine/__init__.py"
PATCH = ("detectron2/**/*.py", "old_(os)", r"\1")

# Runs the installer with the small archive's checksum and patches instead of the real ones.
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import install_detectron2 as tool
settings = json.loads(sys.argv[2])
tool.DEPENDENCIES = ()
tool.SHA256 = settings["sha256"]
tool.PATCHES = [tool.Patch(*patch) for patch in settings["patches"]]
sys.exit(tool.main(sys.argv[3:]))
"""


@pytest.fixture
def archive(tmp_path):
    """A source archive with the layout of the real one."""
    return write_archive(tmp_path / "index" / "pb1-detectron2-0.6.tar.gz", FILES)


def write_archive(path: Path, files: dict) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        metadata = "Metadata-Version: 2.1\nName: pb1-detectron2\nVersion: 0.6\n"
        for name, text in {**files, "PKG-INFO": metadata}.items():
            entry = tarfile.TarInfo(f"pb1-detectron2-0.6/{name}")
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return path


class Environment:
    """A throw-away venv that borrows pip and setuptools, and has empty stand-ins for torch, cv2."""

    def __init__(self, folder: Path):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv/bin/python"
        (self.packages,) = (folder / "venv").glob("lib/python*/site-packages")
        borrowed = folder / "borrowed"
        for stand_in in ("torch", "cv2"):
            (borrowed / stand_in).mkdir(parents=True)
            (borrowed / stand_in / "__init__.py").touch()
        for name in ("pip", "setuptools", "_distutils_hack", "wheel", "packaging"):
            parent = Path(importlib.util.find_spec(name).origin).parents[1]
            for entry in [parent / name, *parent.glob(f"{name}-*.dist-info")]:
                (borrowed / entry.name).symlink_to(entry)
        (self.packages / "borrowed.pth").write_text(f"{borrowed}\n")
        self.marker = folder / "setup_ran"
        self.before = self.listing()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
        self.environment = {
            **environment,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_CACHE_DIR": "1",
            "SETUP_RAN": str(self.marker),
        }

    def listing(self) -> set:
        return {p.name for p in self.packages.iterdir() if p.name != "__pycache__"}

    def run(self, *arguments, **environment):
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.packages.parent,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
        )

    def install(self, archive, download=False, patches=(PATCH,), sha256=None):
        """Run the installer on the small archive, directly or through pip's ``--find-links``."""
        settings = {
            "sha256": sha256 or hashlib.sha256(archive.read_bytes()).hexdigest(),
            "patches": patches,
        }
        arguments = [] if download else ["--archive", archive]
        return self.run(
            *("-c", DRIVER, SCRIPT.parent, json.dumps(settings), *arguments),
            PIP_NO_INDEX="1",
            PIP_FIND_LINKS=str(archive.parent),
        )

    def assert_refused(self, result, *fragments):
        """One sentence on stderr with all the fragments, exit code 1, nothing installed."""
        assert result.returncode == 1, result.stdout + result.stderr
        assert len(result.stderr.splitlines()) == 1, result.stderr
        for fragment in fragments:
            assert fragment in result.stderr
        assert self.listing() == self.before


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path)


def test_install_is_whole_and_pip_removes_it(environment, archive):
    result = environment.install(archive)
    assert result.returncode == 0, result.stdout + result.stderr
    assert not environment.marker.exists(), "--archive needs nothing of the archive's setup.py"

    check = (
        "import detectron2.engine, detectron2._C as C, importlib.metadata as m;"
        "from detectron2.projects import deeplab, panoptic_deeplab, point_rend;"
        "from pathlib import Path;"
        "assert (m.version('detectron2'), point_rend.NAME) == ('0.6', 'point_rend');"
        "folder = Path(detectron2.__file__).parent;"
        "assert (folder / 'model_zoo/configs/COCO/base.yaml').is_file();"
        "assert C.has_cuda() is False and C.get_cuda_version() and C.get_compiler_version();"
        "C.nms_rotated(1, 2)"
    )
    result = environment.run("-c", check)
    assert result.stderr.splitlines()[-1].startswith("NotImplementedError: detectron2._C.nms_rot")

    again = environment.install(archive)
    assert again.returncode == 0
    assert "Detectron2 0.6 is already installed" in again.stdout

    removed = environment.run("-m", "pip", "uninstall", "--yes", "detectron2")
    assert removed.returncode == 0, removed.stderr
    assert environment.listing() == environment.before


def test_downloads_through_pip(environment, archive):
    result = environment.install(archive, download=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "detectron2-0.6.dist-info" in environment.listing()


def test_a_wrong_download_is_not_even_run(environment, archive):
    result = environment.install(archive, download=True, sha256="0" * 64)
    environment.assert_refused(result, "pb1-detectron2==0.6", "0" * 64, "--archive FILE")
    assert not environment.marker.exists()


def test_a_wrong_archive(environment, archive):
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    result = environment.run(SCRIPT, "--archive", archive)
    environment.assert_refused(result, str(archive), digest, "5d2e9e51e523", "download it again")


def test_a_missing_archive(environment, tmp_path):
    result = environment.run(SCRIPT, "--archive", tmp_path / "absent.tar.gz")
    environment.assert_refused(result, "absent.tar.gz", "No such file", "--archive")


def test_no_network(environment):
    result = environment.run(SCRIPT, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="0")
    environment.assert_refused(result, "pb1-detectron2==0.6", "check the network", "--archive")


# Refuses the archive as pip 26.3 does; asked for an older pip, it installs one that downloads.
REFUSING_PIP = """
import pathlib, sys
if "install" not in sys.argv:
    sys.exit("ERROR: Distributions from PyPI cannot declare direct URL dependencies.")
assert sys.argv[-1] == "pip<26.3", sys.argv
older = pathlib.Path(sys.argv[sys.argv.index("--target") + 1]) / "pip"
older.mkdir(parents=True)
(older / "__main__.py").write_text(
    "import pathlib, sys;"
    "folder = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1]);"
    "(folder / 'by-the-older-pip.tar.gz').touch()"
)
"""
FETCH = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import install_detectron2
print(install_detectron2.fetch(pathlib.Path(sys.argv[2])).name)
"""


def test_where_pip_refuses_the_archive_an_older_one_downloads_it(environment, tmp_path):
    (tmp_path / "borrowed/pip").unlink()
    (tmp_path / "borrowed/pip").mkdir()
    (tmp_path / "borrowed/pip/__main__.py").write_text(REFUSING_PIP)
    (tmp_path / "download").mkdir()
    result = environment.run("-c", FETCH, SCRIPT.parent, tmp_path / "download")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "by-the-older-pip.tar.gz"


def test_from_git_without_network(environment):
    proxy = {"https_proxy": "http://127.0.0.1:9", "GIT_CONFIG_GLOBAL": os.devnull}
    result = environment.run(SCRIPT, "--from-git", "v0.6", **proxy)
    environment.assert_refused(result, "Detectron2 v0.6", "GitHub", "leave out --from-git")


def test_no_torch(environment):
    result = environment.run("-S", SCRIPT)
    environment.assert_refused(result, "setuptools and wheel", "pip install")


@pytest.mark.parametrize(
    "patch, found",
    [
        ((ENGINE, "absent", "x"), "0 times"),
        ((ENGINE, "[ir]", "x"), "2 times"),
        (("detectron2/absent.py", "import", "x"), "0 times"),
    ],
)
def test_a_patch_that_does_not_match(environment, archive, patch, found):
    result = environment.install(archive, patches=[PATCH, patch])
    environment.assert_refused(result, patch[0], repr(patch[1]), found)


def test_what_cannot_be_imported_is_removed_again(environment, tmp_path):
    broken = write_archive(
        tmp_path / "index" / "broken.tar.gz", {**FILES, ENGINE: "import old_os, absent_module"}
    )
    result = environment.install(broken)
    environment.assert_refused(result, "No module named 'absent_module'", "removed again")


def test_repairs_an_interrupted_installation(environment, archive):
    assert environment.install(archive).returncode == 0
    (environment.packages / "detectron2/engine/__init__.py").unlink()
    (environment.packages / "detectron2-0.6.dist-info/RECORD").unlink()
    assert environment.run("-c", "import detectron2.engine.defaults").returncode == 1
    (environment.packages / "detectron2/__init__.py").write_text("import half_written")

    result = environment.install(archive)
    assert result.returncode == 0, result.stdout + result.stderr
    assert environment.run("-c", "import detectron2.engine").returncode == 0


def test_leaves_a_broken_detectron2_of_the_user_alone(environment, archive):
    assert environment.install(archive).returncode == 0
    module = environment.packages / "detectron2/engine/__init__.py"
    module.write_text("import absent_module")
    environment.before = environment.listing()

    result = environment.install(archive)
    environment.assert_refused(result, "Detectron2 0.6 is installed", "absent_module", "uninstall")
    assert module.read_text() == "import absent_module"


def test_import_without_detectron2_names_the_installer():
    code = "import sys; sys.modules['detectron2'] = None; from sed_d2 import Vocabulary"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "python tools/install_detectron2.py" in last
