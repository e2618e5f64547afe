"""The help texts of the commands, which must not load torch or Detectron2."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPTS = [ROOT / "train_net.py", *ROOT.glob("demo/*.py"), *ROOT.glob("datasets/*.py")]
# The other tools are for maintainers, and take their options from the code that they run.
SCRIPTS += [ROOT / "tools" / f"{name}.py" for name in ("make_shapes", "export_weights")]
COMMANDS = sorted(path for path in SCRIPTS if 'if __name__ == "__main__"' in path.read_text())


def run(*arguments):
    """Run Python; return its output and the names of the modules that it imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    imports = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done.stdout, {line.rpartition("|")[2].strip() for line in imports}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_help_loads_neither_torch_nor_detectron2(command):
    help_text, modules = run(command, "--help")
    assert help_text.startswith(f"usage: {command.name} ")
    assert "argparse" in modules
    assert not modules & {"torch", "detectron2"}


def test_a_vocabulary_loads_neither_torch_nor_detectron2():
    code = "from sed_d2.vocabulary import Vocabulary; print(len(Vocabulary.of('cat, dog')))"
    output, modules = run("-c", code)
    assert output == "2\n"
    assert "sed_d2.vocabulary" in modules
    assert not modules & {"torch", "detectron2"}
