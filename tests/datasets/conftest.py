"""Runs of the scripts of datasets/ in the test process."""

import runpy
import sys
from pathlib import Path

import pytest

DATASETS = Path(__file__).parents[2] / "datasets"


@pytest.fixture
def run_script(monkeypatch):
    """Return `run_script(name, *arguments)`, which runs datasets/<name> as a command."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(DATASETS / name), run_name="__main__")

    return run


@pytest.fixture
def run(run_script, monkeypatch):
    """Return `run(script, root)`, which prepares the data sets under a root with two workers."""

    def run(script, root):
        # The script sets the variable; monkeypatch restores it after the test.
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        run_script(script, "--root", root, "--jobs", "2")

    return run
