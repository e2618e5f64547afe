#!/usr/bin/env python
"""Install Detectron2 into the running Python, without a compiler and without GitHub.

If Detectron2 can be imported already, nothing is done. Otherwise this script downloads the source
archive ``pb1-detectron2`` 0.6 from PyPI (Detectron2 itself is not on PyPI; the archive holds the
Python files of the official tag v0.6), checks its SHA-256, patches it for current numpy, Pillow and
setuptools, and installs it with pip as the pure Python package ``detectron2`` 0.6. Remove it with
``pip uninstall detectron2``. Compiled operators (deformable convolution, rotated boxes) are left
out; calling one raises an error that says so.

Install PyTorch and torchvision first. The script needs only the standard library and pip. It
downloads with pip, so pip's settings for mirrors and proxies apply.

    python tools/install_detectron2.py
    python tools/install_detectron2.py --archive pb1-detectron2-0.6.tar.gz   # a copy of the archive
    python tools/install_detectron2.py --from-git main                       # needs a compiler
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

REQUIREMENT = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
UPSTREAM = "git+https://github.com/facebookresearch/detectron2.git"

#: What Detectron2 imports at run time. Its own list has a formatter and caffe2 helpers besides.
DEPENDENCIES = (
    "Pillow>=7.1",
    "cloudpickle",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "matplotlib",
    "numpy",
    "omegaconf>=2.1",
    "pycocotools>=2.0.2",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "tqdm>4.29.0",
    "yacs>=0.1.8",
)
#: Package in ``detectron2.projects`` -> its folder in the archive.
PROJECTS = {
    "deeplab": "DeepLab",
    "panoptic_deeplab": "Panoptic-DeepLab",
    "point_rend": "PointRend",
}
#: The engine imports nearly all of Detectron2. PointRend has the colour augmentation.
PROBE = "import detectron2.engine, detectron2.projects.point_rend"


class Patch(NamedTuple):
    """Replaces a regular expression in the files that match a glob."""

    files: str
    pattern: str
    replacement: str
    #: Number of matches in all of these files together.
    matches: int = 1


PATCHES = (
    # numpy 1.24 removed its aliases of Python's types.
    Patch("detectron2/**/*.py", r"\bnp\.(bool|float|int|str)\b", r"\1", 19),
    # numpy 2 raises an error where copy=False needs a copy.
    Patch("detectron2/layers/mask_ops.py", r"array\(mask, copy=False\)", "asarray(mask)"),
    # Pillow 10 removed the old name of BILINEAR.
    Patch("detectron2/data/transforms/transform.py", r"Image\.LINEAR", "Image.BILINEAR"),
    # setuptools 82 removed pkg_resources.
    Patch("detectron2/model_zoo/model_zoo.py", r"import pkg_resources\n", ""),
    Patch(
        "detectron2/model_zoo/model_zoo.py",
        r'pkg_resources\.resource_filename\(\s*"detectron2\.model_zoo"',
        "os.path.join(os.path.dirname(__file__)",
    ),
)

#: The source of ``detectron2._C``, in place of the compiled extension.
COMPILED_STUB = '''"""A placeholder for Detectron2's compiled extension."""


def get_compiler_version():
    return "none (pure Python installation)"


def get_cuda_version():
    return "not available"


def has_cuda():
    return False


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def operator(*args, **kwargs):
        raise NotImplementedError(
            f"detectron2._C.{name} is a compiled operator, and this Detectron2 was installed "
            "without them: build Detectron2 from its source to use it."
        )

    return operator
'''

PYPROJECT = """[build-system]
requires = ["setuptools>=61", "wheel"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "0.6"
description = "Detectron2 v0.6 without its compiled operators"
dependencies = {dependencies}

[tool.setuptools.packages.find]
include = ["detectron2*"]

[tool.setuptools.package-data]
"detectron2.model_zoo" = ["configs/**/*.yaml", "configs/**/*.py"]
"""


class InstallError(Exception):
    """An error whose message is one sentence: what went wrong and the way out."""


def last_error(output: str) -> str:
    """Return the most telling line of pip's or Python's error output, without its full stop."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # pip's own first error, else the last error of a program that pip ran, else the last line.
    own = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    others = [line for line in lines if re.match(r"(\w+\.)*(\w*[Ee]rror|fatal): .* ", line)]
    return ([*own[:1], *others[-1:], *lines[-1:]] or ["no message"])[0].rstrip(".")


def pip(arguments: list[str], failure: str, quiet: bool = False, other: Path | None = None) -> None:
    """Run this Python's pip, or the one in the folder ``other``; show its output unless ``quiet``.

    Raises:
        InstallError: pip failed; the message is ``failure`` with pip's own message for {error}.
    """
    result = subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(other)} if other else None,
        text=True,
    )
    if result.returncode:
        raise InstallError(failure.format(error=last_error(result.stderr)))


def probe() -> str:
    """Import Detectron2 in a new process; return the error's last line, "" if there is none."""
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    return last_error(result.stderr) if result.returncode else ""


def installed_version() -> str | None:
    """Return the version of a complete installation of Detectron2, working or not, else None."""
    try:
        distribution = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return None
    # pip writes RECORD last. Without it, the installation was interrupted.
    return distribution.version if distribution.read_text("RECORD") is not None else None


def need(*modules: str) -> None:
    """Raise InstallError unless all of these modules are installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InstallError(
            f"{' and '.join(missing)} must be installed before Detectron2: "
            f"run {sys.executable} -m pip install {' '.join(missing)}."
        )


def fetch(folder: Path) -> Path:
    """Download the source archive into ``folder`` and return its path."""
    # To read the metadata, pip runs the archive's setup.py, which imports torch. pip gets the hash,
    # so that it is checked before anything of the archive is run.
    need("torch", "setuptools", "wheel")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n")
    command = ["download", "--no-deps", "--no-build-isolation", "--dest", str(folder)]
    command += ["--requirement", str(requirements)]
    try:
        try:
            pip(command, "{error}", quiet=True)
        except InstallError as error:
            if "direct URL dependencies" not in str(error):
                raise
            # pip 26.3 refuses the archive, because an unused extra names a dependency by its URL.
            # An older pip accepts it.
            older = folder / "pip"
            pip(["install", "--target", str(older), "pip<26.3"], "{error}", quiet=True)
            pip(command, "{error}", quiet=True, other=older)
    except InstallError as error:
        if "HASHES" in str(error):
            raise InstallError(
                f"The package index offers a {REQUIREMENT} whose SHA-256 is not {SHA256}: check "
                "pip's index settings, or fetch the archive elsewhere and pass --archive FILE."
            ) from None
        raise InstallError(
            f"Cannot download {REQUIREMENT} ({error}): check the network and pip's index settings, "
            "or fetch the archive elsewhere and pass --archive FILE."
        ) from None
    return next(folder.glob("*.tar.gz"))


def check_archive(archive: Path) -> None:
    """Raise InstallError unless the file is the archive that the patches were made for."""
    try:
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    except OSError as error:
        raise InstallError(
            f"Cannot read {archive} ({error.strerror}): give --archive the path of "
            f"the source archive of {REQUIREMENT}."
        ) from None
    if digest != SHA256:
        raise InstallError(
            f"{archive} has SHA-256 {digest} instead of {SHA256}, so it is damaged or not "
            f"{REQUIREMENT}: download it again."
        )


def apply_patches(source: Path) -> None:
    """Patch the unpacked archive in ``source``.

    Raises:
        InstallError: a patch has more or fewer matches than it expects.
    """
    for patch in PATCHES:
        found = 0
        for path in source.glob(patch.files):
            text = path.read_text(encoding="utf-8")
            text, matches = re.subn(patch.pattern, patch.replacement, text)
            if matches:
                path.write_text(text, encoding="utf-8")
            found += matches
        if found != patch.matches:
            raise InstallError(
                f"The patch of {patch.files} expects {patch.pattern!r} {patch.matches} times and "
                f"found it {found} times: this archive needs another version of "
                f"{Path(__file__).name}."
            )


def prepare(archive: Path, folder: Path) -> Path:
    """Unpack and patch the archive in ``folder``; return the folder of the source to build."""
    shutil.unpack_archive(archive, folder, "gztar")
    source = next(path.parent for path in folder.glob("*/setup.py"))
    apply_patches(source)
    for package, project in PROJECTS.items():
        (source / "projects" / project / package).rename(source / "detectron2/projects" / package)
    (source / "detectron2/_C.py").write_text(COMPILED_STUB)
    for name in ("setup.py", "setup.cfg"):
        (source / name).unlink(missing_ok=True)
    dependencies = "[" + ", ".join(f'"{name}"' for name in DEPENDENCIES) + "]"
    (source / "pyproject.toml").write_text(PYPROJECT.format(dependencies=dependencies))
    return source


def install_release(archive: Path | None) -> None:
    """Install the patched 0.6 from ``archive``, or from PyPI."""
    need("setuptools", "wheel")
    with tempfile.TemporaryDirectory(prefix="detectron2-") as temporary:
        folder = Path(temporary)
        if archive is None:
            print(f"Downloading {REQUIREMENT} ...", flush=True)
            archive = fetch(folder)
        check_archive(archive)
        print("Patching and building Detectron2 0.6 ...", flush=True)
        source = prepare(archive, folder / "source")
        build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
        pip([*build, str(source)], "Cannot build the Detectron2 wheel ({error}).", quiet=True)
        wheel = next(folder.glob("*.whl"))
        # Detectron2 comes last, so that nothing of it is installed if a dependency fails. Any build
        # of OpenCV will do; the headless one needs no system library.
        opencv = () if importlib.util.find_spec("cv2") else ("opencv-python-headless",)
        if dependencies := [*DEPENDENCIES, *opencv]:
            print("Installing the dependencies of Detectron2 ...", flush=True)
            pip(
                ["install", *dependencies],
                "Cannot install the dependencies of Detectron2 ({error}): check the network and "
                "pip's index settings.",
            )
        # --ignore-installed overwrites what an interrupted installation left.
        pip(
            ["install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)],
            "Cannot install the Detectron2 wheel ({error}).",
        )


def install_from_git(reference: str) -> None:
    """Build and install upstream Detectron2 at a branch, tag or commit."""
    need("torch", "setuptools", "wheel")
    pip(
        ["install", "--no-build-isolation", f"{UPSTREAM}@{reference}"],
        f"Cannot build Detectron2 {reference} from GitHub ({{error}}): it needs git, the network "
        "and a C++ compiler; without them, leave out --from-git.",
    )


def install(archive: Path | None, git_reference: str | None) -> None:
    """Install Detectron2 unless it is installed, and check that it can be imported.

    Raises:
        InstallError: Detectron2 could not be installed; nothing of it is left then.
    """
    error = probe()
    version = installed_version()
    if not error:
        print(
            f"Detectron2 {version or '(a source tree)'} is already installed; to replace it, "
            "run pip uninstall detectron2 first."
        )
        return
    if version:
        raise InstallError(
            f"Detectron2 {version} is installed, but cannot be imported ({error}): install what is "
            "missing, or run pip uninstall detectron2 and then this command again."
        )
    if git_reference:
        install_from_git(git_reference)
    else:
        install_release(archive)
    error = probe()
    if error:
        pip(["uninstall", "--yes", "detectron2"], "Cannot remove Detectron2 ({error}).", quiet=True)
        raise InstallError(
            f"Detectron2 was installed, but cannot be imported ({error}), so it was removed again: "
            "install what is missing and run this command again."
        )
    print("Detectron2 is installed.")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0 if Detectron2 can be imported at the end, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--archive", type=Path, help=f"a copy of the source archive of {REQUIREMENT}"
    )
    source.add_argument(
        "--from-git", metavar="REF", help="build this upstream branch, tag or commit"
    )
    options = parser.parse_args(arguments)
    try:
        install(options.archive, options.from_git)
    except InstallError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
