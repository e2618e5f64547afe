"""Running the scripts of datasets/ within the test process."""

import runpy
import sys
from pathlib import Path

import pytest

DATASETS = Path(__file__).parents[2] / "datasets"


@pytest.fixture
def run_script(monkeypatch):
    """`run_script(name, *arguments)` runs datasets/<name> as a command does."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(DATASETS / name), run_name="__main__")

    return run


@pytest.fixture
def run(run_script, monkeypatch):
    """`run(script, root)` prepares the data sets under a root, with two workers."""

    def run(script, root):
        # the script sets the variable by itself: have it restored afterwards
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        run_script(script, "--root", root, "--jobs", "2")

    return run
