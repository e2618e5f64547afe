"""What the README names exists, and its first example prints what it says."""

import ast
import contextlib
import io
import re
from pathlib import Path

import pytest

from sed_d2 import get_sed_cfg

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_linked_files_exist():
    links = set(re.findall(r"\]\(([^)#]+)\)", README))
    files = [link for link in links if not link.startswith("https:")]
    assert len(files) >= 6
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_files_in_commands_exist():
    files = re.findall(r"(?:python|--config-file|--input) ((?:\w+/)*\w+\.(?:py|yaml))", README)
    assert len(files) >= 6
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_config_keys_exist():
    cfg = get_sed_cfg("convnextB_768.yaml")
    keys = set(re.findall(r"\b(?:MODEL|DATASETS|TEST)(?:\.[A-Z_]+)+", README))
    assert len(keys) >= 8
    for key in keys:
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def test_first_example_prints_its_comments(monkeypatch):
    monkeypatch.chdir(ROOT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(EXAMPLES[0], {})
    assert printed.getvalue().splitlines() == re.findall(r"print\(.*\)  # (.*)", EXAMPLES[0])


@pytest.mark.parametrize("example", EXAMPLES)
def test_imports_of_the_examples_work(example):
    imports = [node for node in ast.parse(example).body if isinstance(node, ast.ImportFrom)]
    assert imports
    exec(compile(ast.Module(imports, []), "README.md", "exec"), {})
